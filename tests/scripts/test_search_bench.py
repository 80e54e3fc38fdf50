"""A row of a search beside its control, and what the table says of several."""

import pytest

from scripts.search_bench import row_of, table


def figures(loss: float, speedup: float) -> dict:
    return {
        "run": "r", "chain": [], "engine": "eager", "setting": "batch 32", "split": "validation", "quality": 0.9,
        "quality_ci": None, "loss": loss, "loss_ci": None, "speedup": speedup, "speedup_ci": None,
        "costs": {"latency": 1 / speedup}, "metric": {}, "caveat": None,
    }  # fmt: skip


def trial(number: int, loss: float, speedup: float, *, within: bool = True) -> dict:
    return {"number": number, "figures": figures(loss, speedup), "within": within, "seconds": 2.0}


def found(best: dict | None, *others: dict) -> dict:
    return {
        "trials": [*([best] if best else []), *others],
        "control": [trial(0, 0.0, 1.5)],
        "written": figures(0.004, 3.0),
        "front": [best | {"test": best["figures"] | {"loss": 0.002}}] if best else [],
        "winner": best and best["number"],
        "hypervolume": {"search": 0.5, "random": 0.4, "written": 0.3} if best else {},
        "stages": {"made_again": 0},
    }


def test_a_trial_that_dominates_the_recipe_as_written_is_within_the_limits() -> None:
    row = row_of(1, found(trial(4, 0.003, 3.5)))

    assert row["dominates_written"]
    assert row["seconds"] == {"search": 2.0, "random": 2.0}
    assert row["winner"] == {"speedup": 3.5, "speedup_ci": None, "loss": 0.002, "loss_ci": None, "caveat": None}
    assert not row_of(1, found(trial(4, 0.003, 2.5), trial(5, 0.001, 9.0, within=False)))["dominates_written"]


def test_the_table_counts_seeds_and_keeps_those_without_a_winner() -> None:
    rows = [row_of(seed, found(best)) | {"machine": "m"} for seed, best in enumerate([trial(4, 0.003, 3.5), None])]

    said = table(rows[::-1]).splitlines()

    assert said[2] == "| 0 | 0.5000 | 0.4000 | 0.3000 | yes | 2 | 2 | 3.50 | +0.0020 |"
    assert said[3].endswith("| no | 0 | 2 | none |  |")
    assert "for 1 of 2 seeds, and dominated the recipe as written for 1" in said[5]
    assert pytest.approx(0.5) == rows[0]["volumes"]["search"]
