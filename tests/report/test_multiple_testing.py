import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from optkit.core.statistics import holm
from optkit.report import render, rows
from optkit.report.controls import against_controls, pooled_against_controls
from optkit.report.multiple_testing import LEVEL
from optkit.report.page.verdict import keeps_quality, verdict
from optkit.report.paired import TOLERANCES, share_within_p
from optkit.report.written import ACCURACY
from tests.conftest import make_record
from tests.report.runs import answers, chain, series, write_run


def _family(lost, gained=0, total=1000, right=900):
    """A baseline, and a variant for each number of examples that it loses, all 2 times as fast or more."""
    base = answers(right, total)
    found = [make_record(correct=base, series=series({"eager": 4.0}, None), batch_size=8)]
    for n, count in enumerate(lost, 1):
        own = base.copy()
        own[:count] = False
        own[right : right + gained] = True
        times = series({"eager": 4.0 / (1 + n)}, 4.0, n)
        found.append(
            make_record(variant=f"v{n}", parent="v0", step=n, stage=f"s{n}", correct=own, series=times, batch_size=8)
        )
    return found


def test_the_score_test_by_hand():
    # nothing gained, nothing lost: z is -sqrt(n x / (1 - x))
    assert share_within_p(0, 0, 1000, 0.01) == pytest.approx(norm.cdf(-np.sqrt(10 / 0.99)))
    assert share_within_p(5, 15, 1000, 0.01) == pytest.approx(0.5)
    assert share_within_p(0, 30, 1000, 0.01) > 0.99
    assert share_within_p(12, 15, 1000, 0.05) < share_within_p(12, 15, 1000, 0.02) < share_within_p(40, 43, 1000, 0.02)


def test_one_family_in_forty_at_most_calls_a_loss_smaller_than_it_is():
    random = np.random.default_rng(0)
    n, families, size = 2000, 1500, 8
    for tolerance, gains in ((0.01, 0.005), (0.02, 0.0), (0.05, 0.03)):
        shares = [gains, gains + tolerance, 1 - 2 * gains - tolerance]
        counts = random.multinomial(n, shares, size=(families, size))
        false = alone = 0
        for family in counts:
            p_values = [share_within_p(gained, lost, n, tolerance) for gained, lost, _ in family]
            false += min(holm(p_values)) <= LEVEL
            alone += min(p_values) <= LEVEL
        assert false / families < 0.04
        assert alone / families > 0.1  # which is what the correction is for


def test_p_values_are_corrected_within_a_family_and_are_plain_json():
    found = rows(_family([0, 8, 15, 30]))
    json.dumps(found, allow_nan=False)
    variants = [r for r in found if r["step"] > 0]
    assert {r["quality_compared"] for r in variants} == {4}
    assert [r["quality_delta_p_holm"] for r in variants] == holm([r["quality_delta_p"] for r in variants])
    assert [r["quality_delta_counts"] for r in variants] == [[0, 0], [0, 8], [0, 15], [0, 30]]
    for tolerance in map(str, TOLERANCES):
        alone = [r["quality_loss_within_p"][tolerance] for r in variants]
        assert [r["quality_loss_within_p_holm"][tolerance] for r in variants] == holm(alone)
        assert alone != holm(alone)
    assert found[0]["quality_compared"] is None


def test_among_many_a_loss_must_be_surer():
    alone = rows(_family([8]))[1]
    assert keeps_quality(alone, 0.02)
    many = rows(_family([8, 60, 60, 60, 60, 60, 60, 60]))[1]
    assert many["quality_delta_ci"] == alone["quality_delta_ci"]
    assert many["quality_delta_ci"][0] >= -0.02
    assert not keeps_quality(many, 0.02)
    assert keeps_quality(many, 0.05)


def test_a_loss_that_shows_alone_is_not_let_through_by_the_correction():
    records = _family([0, 0, 0, 0, 0, 14], gained=3)
    found = rows(records)
    last = found[-1]
    assert last["quality_delta_p"] < 0.05 < last["quality_delta_p_holm"]
    judged = verdict(found)
    assert judged.row["stage"] == "s5"
    (remark,) = [r for r in judged.remarks if "does not count" in r]
    assert "“s6”" in remark
    assert "not among 6 variants" in remark


def _controlled(margins):
    """The chain of four with a control of prune and recover, right on so many more or fewer examples."""
    found = chain()
    for step, right in margins.items():
        own = found[step]
        other = make_record(
            variant=f"c{step}", parent="v0", step=step, stage=own.stage, batch_size=8, correct=answers(right),
            series=series({"eager": 2.0, "inductor": 1.0}, 4.0, step),
        )  # fmt: skip
        found.append(replace(other, control="random_prune", environment=own.environment, data=own.data))
    return found


def test_each_technique_is_judged_against_its_control_in_words():
    found = rows(_controlled({1: 400, 2: 945}))
    first, second = against_controls(found)
    assert first.startswith("prune beats random_prune beyond chance: +15.0 points [+")
    assert first.endswith("corrected p < 0.001, on eager at batch 8.")
    assert second.startswith("recover does not beat random_prune beyond chance: +0.3 points [")
    assert "corrected p = 0.250" in second
    worse = against_controls(rows(_controlled({1: 700, 2: 948})))
    assert worse[0].startswith("prune is worse than random_prune beyond chance: -15.0 points")
    assert worse[1].startswith("recover does not beat random_prune beyond chance: +0.0 points")


def test_a_margin_is_corrected_for_how_many_are_compared():
    by = {
        r["step"]: r for r in rows(_controlled({1: 544, 2: 941, 3: 941})) if r["control"] and r["engine"] == "inductor"
    }
    assert [by[n]["control_margin_p_holm"] for n in (1, 2, 3)] == holm([by[n]["control_margin_p"] for n in (1, 2, 3)])
    # by itself beyond chance, and not among three
    assert by[1]["control_margin_p"] < 0.05 < by[1]["control_margin_p_holm"]
    assert "prune does not beat random_prune beyond chance: +0.6" in against_controls([by[1]])[0]


def test_engines_that_judge_otherwise_are_named():
    records = _controlled({1: 400})
    control = records[-1]
    swapped = [
        replace(m, raw=records[1].find("accuracy").raw)
        if m.name == "accuracy" and m.conditions["engine"] == "inductor"
        else m
        for m in control.measurements
    ]
    (line,) = against_controls(rows([*records[:-1], replace(control, measurements=swapped)]))
    assert line.endswith("on eager at batch 8; it does not beat it on inductor at batch 8.")


def test_what_cannot_be_paired_is_said(tmp_path):
    records = _controlled({1: 400})
    other = make_record(variant="c1", step=1, stage="prune", batch_size=8, correct=answers(40, 100))
    lines = against_controls(rows([*records[:-1], replace(other, control="random_prune")]))
    assert lines == ["prune and random_prune were not judged on the same examples of one engine."]


def test_every_format_says_it(tmp_path):
    folder = write_run(tmp_path / "run", _controlled({1: 400, 2: 945}))
    for format_ in ("md", "table", "html"):
        text = " ".join(render([folder], format_).split())
        assert "Against the controls" in text
        assert "prune beats random_prune beyond chance" in text
        assert "recover does not beat random_prune beyond chance" in text
    assert "Against the controls" not in render([write_run(tmp_path / "plain", chain())], "html")


def _pooled(ci, batch_size=8, seeds=(0, 1), without=()):
    margin = {"value": sum(ci) / 2, "ci": list(ci)} if ci else None
    entry = {
        "control": "no_teacher", "stage": "tune", "step": 2, "engine": "eager", "seeds": [*seeds],
        "seeds_without": [*without], "quality": margin,
    }  # fmt: skip
    return {"batch_size": batch_size, "controls": [entry]}


@pytest.mark.parametrize(
    ("batches", "line"),
    [
        (
            [_pooled((0.01, 0.03))],
            "tune beats no_teacher beyond chance: +2.0 points [+1.0, +3.0] over seeds 0, 1 and the test examples, on "
            "eager at batch 8.",
        ),
        (
            [_pooled((-0.03, -0.01)), _pooled((-0.03, 0.01), 32)],
            "tune does not beat no_teacher beyond chance: -1.0 points [-3.0, +1.0] over seeds 0, 1 and the test "
            "examples, on eager at batch 32; it is worse than it on eager at batch 8.",
        ),
        (
            [_pooled((0.0, 0.02), seeds=[1], without=[0])],
            "tune does not beat no_teacher beyond chance: +1.0 points [+0.0, +2.0] over seed 1 and the test examples, "
            "on eager at batch 8; one seed says nothing about others; without seed 0, where one of the two is missing.",
        ),
        ([_pooled(None)], "tune and no_teacher were not judged on the same examples of one engine."),
    ],
)
def test_margins_over_seeds_are_one_sentence(batches, line):
    assert pooled_against_controls(batches, ACCURACY) == [line]
