"""Latency budgets on clocks that count multiply-accumulates, so that what they must find is known."""

import json

import numpy as np
import pytest
import torch
import torchvision

from optkit.core.cache import cache_dir
from optkit.core.errors import UserError
from optkit.core.macs import count_macs
from optkit.engines import CUDA, Eager
from optkit.measure import alone
from optkit.measure.alone import corrected, machine_key
from optkit.measure.latency import Series
from optkit.models import ResNetCIFAR
from optkit.prune import StructuredPruning, prune_structured
from optkit.prune.cut.analysis import Analysis
from optkit.prune.latency import budget, table
from optkit.prune.latency.blocks import find_blocks
from optkit.prune.latency.table import LatencyTable
from tests.prune import zoo
from tests.prune.test_structured import CASES, IMAGE, VECTOR

CALLING = 0.5


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))


@pytest.fixture
def clock(monkeypatch):
    """Blocks take a microsecond for 1000 MACs and some for calling; ``clock(f)`` makes models take f(MACs in ms)."""

    def count(session, inputs):
        return 1e-6 * count_macs(session.module, inputs)

    def install(whole=lambda ms: ms):
        monkeypatch.setattr(table, "time_session", lambda s, x: CALLING + count(s, x))
        monkeypatch.setattr(
            budget,
            "interleaved",
            lambda sessions, x, seconds, seed: {
                name: Series(np.full((20, 5), whole(count(s, x)))) for name, s in sessions.items()
            },
        )

    install()
    return install


def _table(model, inputs, threads=1):
    analysis = Analysis(model, inputs)
    return analysis, LatencyTable(analysis.units, analysis.trace, Eager(), threads, channels_last=False)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_every_family_run_alone_at_any_cut(name):
    make, inputs = CASES[name]
    analysis = Analysis(zoo.randomize(make()), inputs)
    units = analysis.units
    calls = [call for block in find_blocks(analysis.trace, units) for call in block.calls]
    assert sorted(map(id, calls)) == sorted(map(id, analysis.trace.calls))
    failed = 0
    for block in find_blocks(analysis.trace, units):
        for removed in (np.zeros(units.count, bool), block.ladder(1, (0.5,), units)[0]):
            try:
                module, tensors = block.build(units, removed, channels_last=False)
                module(*tensors)
            except RuntimeError:
                assert removed.any()
                failed += 1
    assert failed <= 2


@pytest.mark.parametrize("make", [zoo.plain_cnn, lambda: torchvision.models.resnet18(num_classes=10)])
def test_the_table_adds_up_to_the_model(clock, make):
    model = zoo.randomize(make())
    analysis, table = _table(model, IMAGE)
    removed = np.arange(analysis.units.count) % 3 == 1
    cut = analysis.plan(removed).apply(model)
    assert table.modelled == 0
    assert table.total == pytest.approx(1e-6 * count_macs(model, IMAGE), rel=1e-3)
    assert table(removed) == pytest.approx(1e-6 * count_macs(cut, IMAGE), rel=0.02)


def test_equal_blocks_share_a_table_and_tables_are_kept(clock):
    model = zoo.randomize(ResNetCIFAR(20, width=4))
    _, first = _table(model, IMAGE)
    assert 0 < first.measured < len(first.blocks)
    _, again = _table(model, IMAGE)
    assert (again.measured, again.total) == (0, first.total)
    _, other = _table(model, IMAGE, threads=2)
    assert other.measured == first.measured


def test_tables_are_measured_anew_under_another_version_of_the_engine(clock, monkeypatch):
    _, first = _table(zoo.randomize(zoo.plain_cnn()), IMAGE)
    monkeypatch.setattr(alone, "version_of", lambda package: f"another {package}")
    assert _table(zoo.randomize(zoo.plain_cnn()), IMAGE)[1].measured == first.measured
    monkeypatch.setattr(alone, "code_of", lambda kind: "another")
    assert _table(zoo.randomize(zoo.plain_cnn()), IMAGE)[1].measured == first.measured


def test_the_place_of_a_table_names_the_gpu_where_it_is_measured_on_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert [machine_key(engine, 1)["gpu"] for engine in (Eager(), CUDA())] == [None, "a GPU"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"in": [1], "out": [1], "ms": [[1, 2]], "modelled": 0}', "nan"])
def test_a_damaged_table_is_measured_anew(clock, damage):
    _, first = _table(zoo.randomize(zoo.plain_cnn()), IMAGE)
    path = sorted((cache_dir() / "latency").glob("*.json"))[0]
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps(whole | {"ms": [[float("nan")] * len(r) for r in whole["ms"]]}) if damage == "nan" else damage
    )
    _, again = _table(zoo.randomize(zoo.plain_cnn()), IMAGE)
    assert (again.measured, again.total) == (1, first.total)
    assert json.loads(path.read_text()) == whole


def test_a_cut_is_corrected_by_what_the_model_takes(clock):
    clock(lambda ms: 2 * ms**0.5)
    model = zoo.randomize(ResNetCIFAR(8))
    pruned = prune_structured(model, IMAGE, amount=0.3, budget="latency", round_to=1)
    facts = pruned.plan.facts
    left = count_macs(pruned.module, IMAGE) / count_macs(model, IMAGE)
    assert left**0.5 == pytest.approx(0.7, rel=budget.CLOSE)
    assert facts["latency_ratio"] == pytest.approx(left**0.5, rel=1e-3)
    assert facts["latency_ratio_ci"] == [facts["latency_ratio"]] * 2
    assert facts["latency_table_ratio"] == pytest.approx(left, rel=0.05)
    assert facts["latency_rounds"] > 1
    zoo.assert_exact(model, pruned, IMAGE)


def test_the_table_alone_is_enough_where_it_is_right(clock):
    pruned = prune_structured(zoo.randomize(zoo.CifarResNet()), IMAGE, amount=0.4, budget="latency", round_to=1)
    assert pruned.plan.facts["latency_rounds"] == 1
    assert pruned.plan.facts["latency_ratio"] == pytest.approx(0.6, rel=budget.CLOSE)


def test_sizes_are_multiples_of_eight_unless_told(clock):
    model = zoo.randomize(ResNetCIFAR(8, width=32))
    pruned = prune_structured(model, IMAGE, amount=0.4, budget="latency")
    assert pruned.plan.facts["round_to"] == 8
    assert all(layer["kept"] * layer["width"] % 8 == 0 for layer in pruned.plan.layers)


def test_a_disturbed_measurement_is_repeated(clock, monkeypatch):
    steady, calls = budget.interleaved, []

    def disturbed(sessions, inputs, seconds, seed):
        found = steady(sessions, inputs, seconds, seed)
        calls.append(seed)
        if len(calls) == 1:
            found["cut"].samples[:10] *= 50
        return found

    monkeypatch.setattr(budget, "interleaved", disturbed)
    pruned = prune_structured(zoo.randomize(zoo.CifarResNet()), IMAGE, amount=0.4, budget="latency", round_to=1)
    assert len(calls) == 2
    assert pruned.plan.facts["latency_ratio"] == pytest.approx(0.6, rel=budget.CLOSE)


def test_a_latency_out_of_reach_names_the_least(clock):
    clock(lambda ms: 100 + ms)
    with pytest.raises(UserError, match=r"least reachable latency on eager is 1\d\d ms of 1\d\d ms .*asked were 50.0%"):
        prune_structured(zoo.randomize(zoo.CifarResNet()), IMAGE, amount=0.5, budget="latency")


@pytest.mark.parametrize("budget", ["params", "macs", "latency"])
def test_a_floor_can_make_a_budget_unreachable(clock, budget):
    model = zoo.randomize(zoo.CifarResNet())
    with pytest.raises(UserError, match="at most|least reachable"):
        prune_structured(model, IMAGE, amount=0.5, budget=budget, floor=0.9, round_to=1)


def test_a_floor_holds():
    pruned = prune_structured(zoo.randomize(zoo.CifarResNet()), IMAGE, amount=0.3, floor=0.5)
    assert all(layer["kept"] >= layer["units"] / 2 for layer in pruned.plan.layers)
    assert pruned.plan.facts["floor"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "eager"}, "budget 'params' needs no engine"),
        ({"threads": 1}, "budget 'params' needs no threads"),
        ({"budget": "latency", "engine": "egaer"}, "did you mean 'eager'"),
        ({"budget": "latency", "threads": 0}, "threads: 0 is not a whole number"),
        ({"floor": 1.0}, "floor: 1.0 is not a share"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        prune_structured(zoo.mlp().eval(), VECTOR, amount=0.5, **options)


def test_corrected():
    assert corrected(0.5, []) == 0.5
    assert corrected(0.5, [(0.5, 0.75)]) == pytest.approx(0.0)
    assert corrected(0.7, [(0.6, 0.8)]) == pytest.approx(0.4)
    assert corrected(0.7, [(0.6, 0.8), (0.4, 0.6)]) == pytest.approx(0.5)
    assert corrected(0.9, [(0.6, 0.8), (0.4, 0.6)]) == pytest.approx(0.8)


def test_the_stage_cuts_by_latency(clock, context):
    stage = StructuredPruning(amount=0.4, budget="latency", engine="eager", threads=1, batch_size=3, round_to=1)
    torch.manual_seed(0)
    model = ResNetCIFAR(8, 10, 1, 8).eval()
    outcome = stage.apply(model, context())
    assert outcome.facts["cut"]["batch_size"] == 3
    json.dumps([outcome.facts, outcome.surgery], allow_nan=False)
    with pytest.raises(UserError, match="needs no batch_size"):
        StructuredPruning(batch_size=3)


def test_steps_add_up_to_the_latency_asked_for(clock, context):
    torch.manual_seed(0)
    model = ResNetCIFAR(8, 10, 1, 8).eval()
    stage = StructuredPruning(amount=0.4, budget="latency", round_to=1)
    first = stage.one_step(model, context(), 0.2, [])
    second = stage.one_step(first.module, context(), 0.4, [first.facts])
    left = second.facts["cut"]["latency_ratio"]
    example = context().task.example(1)
    assert left == pytest.approx(count_macs(second.module, example) / count_macs(model, example), rel=1e-3)
    assert left == pytest.approx(0.6, rel=budget.CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "inductor", "openvino", "onnxruntime"])
def test_real_clocks(engine, monkeypatch):
    monkeypatch.setattr(budget, "TOLERANCE", 100.0)
    monkeypatch.setattr(budget, "SECONDS", 0.01)
    model = zoo.randomize(zoo.mlp())
    pruned = prune_structured(model, VECTOR, amount=0.3, budget="latency", engine=engine, round_to=1, threads=1)
    facts = pruned.plan.facts
    assert (facts["engine"], facts["threads"], facts["batch_size"]) == (engine, 1, 4)
    assert facts["latency_blocks_modelled"] == 0
    for name in ("before_ms", "after_ms", "ratio"):
        low, high = facts[f"latency_{name}_ci"]
        assert 0 < low <= facts[f"latency_{name}"] <= high
    assert facts["latency_table_over_real"] > 0
    assert facts["latency_tables_measured"] > 0
    zoo.assert_exact(model, pruned, VECTOR)
