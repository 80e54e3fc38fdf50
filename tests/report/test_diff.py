import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from optkit.core.errors import UserError
from optkit.core.records import pack_values
from optkit.core.statistics import paired_difference
from optkit.report.diff import diff_runs, table
from tests.report.runs import answers, chain, series, write_run

CHAINS = (["prune"], ["prune", "recover"], ["prune", "recover", "quantize"])
RECIPE = "name: r\nout: {out}\nstages:\n  prune: {{amount: {amount}}}\nchain: [train, prune]\n"


def _faster(records):
    """The same run with a last variant that is twice as fast and 20 answers worse."""
    from tests.conftest import make_record

    last = make_record(
        variant="other", parent="v2", step=3, stage="quantize", batch_size=8, correct=answers(927),
        series=series({"inductor": 0.5}, 4.0, 9),
    )  # fmt: skip
    return [*records[:3], replace(records[3], variant="other", measurements=last.measurements)]


@pytest.fixture
def folders(tmp_path):
    first = write_run(tmp_path / "a", chain(), RECIPE.format(out="x", amount=0.5))
    second = write_run(tmp_path / "b", _faster(chain()), RECIPE.format(out="y", amount=0.7))
    return first, second


def test_namesakes_are_compared_on_the_same_examples(folders):
    found = diff_runs(*folders)
    assert found.overrides == [{"key": "stages.prune.amount", "first": 0.5, "second": 0.7}]
    assert found.warnings == []
    by = {(p.stage, p.engine): p for p in found.pairs}
    assert len(by) == len(found.pairs) == 7
    same = by["prune", "eager"]
    assert (same.quality_delta, same.latency_ratio, same.speedup_ratio) == (0.0, 1.0, 1.0)
    last = by["quantize", "inductor"]
    expected = paired_difference(answers(927), answers(947))
    assert last.quality_delta == pytest.approx(-0.02)
    assert (last.quality_delta_ci, last.quality_delta_p) == (expected.delta.ci, expected.p_value)
    assert last.latency_ratio == pytest.approx(2, rel=0.02)
    assert last.speedup_ratio == pytest.approx(2, rel=0.03)
    assert last.speedup_ratio_ci[0] < last.speedup_ratio < last.speedup_ratio_ci[1]


def test_other_machines_and_other_data_are_named_and_not_compared(tmp_path):
    others = [
        replace(
            r,
            environment={"cpu": {"name": "Another", "cores": 8}, "packages": {"torch": "2.13"}},
            data={"fingerprint": "f1"},
        )
        for r in chain()
    ]
    found = diff_runs(write_run(tmp_path / "a", chain()), write_run(tmp_path / "b", others))
    assert "processor differs: A Processor, 2 cores; Another, 8 cores" in found.warnings
    assert "data differs: f0; f1" in found.warnings
    assert "torch differs: 2.14.1; 2.13" in found.warnings
    for pair in found.pairs:
        assert pair.latency_ratio is None
        assert pair.speedup_ratio is None
        assert pair.quality_delta_ci is None


def test_rows_of_other_batch_sizes_are_not_mixed(tmp_path):
    found = diff_runs(write_run(tmp_path / "a", chain(8)), write_run(tmp_path / "b", chain(1)))
    assert found.pairs == []
    assert "quantize on inductor, batch 8, 2 threads" in found.only_first
    assert "quantize on inductor, batch 1, 2 threads" in found.only_second
    assert any("no variant of one has a namesake" in w for w in found.warnings)


@pytest.mark.slow
def test_the_command(command_here, folders, tmp_path):
    shown = command_here("diff", *folders)
    assert "stages.prune.amount: 0.5 > 0.7" in shown.stdout
    assert "not interleaved" in " ".join(shown.stdout.split())
    found = json.loads(command_here("diff", *folders, "--format", "json").stdout)
    assert found == json.loads(json.dumps(diff_runs(*folders).to_json()))
    assert str(command_here("diff", folders[0], tmp_path / "typo").exception).startswith("no ledger at")


def _judged(record, right):
    raw = pack_values(answers(right))
    return [replace(m, raw=raw, value=right / 1000) if m.name == "accuracy" else m for m in record.measurements]


def _branching(controlled_right):
    """The chain of four with a control of its third, and a chain without the pruning."""
    own = [replace(r, chain=names) for r, names in zip(chain(), ([], *CHAINS), strict=True)]
    control = replace(own[2], variant="c2", control="random_prune", measurements=_judged(own[2], controlled_right))
    other = replace(own[2], variant="o1", step=1, parent="v0", chain=["recover"], measurements=_judged(own[2], 949))
    return [*own, control, other]


def test_a_control_and_another_chain_do_not_take_a_variants_place(tmp_path):
    first, second = (write_run(tmp_path / name, _branching(right)) for name, right in (("a", 900), ("b", 910)))
    by = {(p.stage, p.engine): p for p in diff_runs(first, second).pairs}
    assert by["recover", "eager"].quality == (0.948, 0.948)
    assert by["random_prune: recover", "eager"].quality == (0.9, 0.91)
    assert by["baseline+recover", "eager"].quality == (0.949, 0.949)
    assert len(by) == 7 + 2 + 2


def test_of_several_runs_in_a_folder_one_is_asked_for(folders):
    with pytest.raises(UserError, match="holds 2 runs"):
        diff_runs(folders[0].parent, folders[1])


@pytest.mark.parametrize("width", [44, 80, 400])
def test_a_narrow_terminal_gets_fewer_columns_not_broken_ones(folders, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table(diff_runs(*folders), width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ("change, points" in lines[0]) == (width >= 80)
    assert sum("[" in line for line in lines) == 7
