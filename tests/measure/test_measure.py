import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from optkit.core.artifact import save_artifact
from optkit.core.errors import StageError, UserError
from optkit.core.records import unpack_values
from optkit.core.variant import Variant
from optkit.engines import Eager
from optkit.measure import Bench, Measure
from optkit.measure.latency import CALLS, MIN_ROUNDS, interleaved
from optkit.measure.memory import measure_memory
from optkit.measure.quality import measure_quality
from optkit.measure.static import measure_macs, measure_static
from optkit.models import SmallCNN
from optkit.report import rows
from tests.conftest import make_record

SPEC = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32], "num_classes": 10}}


@pytest.fixture
def variant():
    return Variant("v0", None, frozenset({"float"}), SPEC)


class _Recorder:
    """A session that sleeps, and writes down the order of calls."""

    def __init__(self, name, calls, ms=0.0):
        self.name, self.calls, self.ms = name, calls, ms

    def __call__(self, *inputs):
        self.calls.append(self.name)
        time.sleep(self.ms / 1e3)
        return inputs[0]


def test_every_round_calls_every_session_the_same_number_of_times():
    calls: list[str] = []
    found = interleaved({n: _Recorder(n, calls) for n in "abc"}, (torch.zeros(1),), seconds=0.01, seed=0)
    rounds = len(found["a"].samples)
    assert rounds >= MIN_ROUNDS
    assert {n: s.samples.shape for n, s in found.items()} == dict.fromkeys("abc", (rounds, CALLS))
    a_round = 3 * (CALLS + 1)
    timed = calls[-rounds * a_round :]
    orders = set()
    for start in range(0, len(timed), a_round):
        turns = timed[start : start + a_round]
        order = tuple(turns[:: CALLS + 1])
        assert turns == [name for name in order for _ in range(CALLS + 1)]
        assert set(order) == set("abc")
        orders.add(order)
    assert len(orders) > 1


def test_warming_up_goes_on_until_calls_are_no_longer_faster():
    class Settling:
        """Each block of calls takes half as long as the one before, down to 0.5 ms."""

        def __init__(self):
            self.calls = 0

        def __call__(self, x):
            time.sleep(max(16 / 2 ** (self.calls // (CALLS + 1)), 0.5) / 1e3)
            self.calls += 1
            return x

    settling = Settling()
    found = interleaved({"settling": settling}, (torch.zeros(1),), seconds=0.01, seed=0)
    assert np.median(found["settling"].samples[0]) < 2
    assert settling.calls >= len(found["settling"].samples) * (CALLS + 1) + 4 * (CALLS + 1)


def test_latency_is_in_milliseconds():
    found = interleaved({"slow": _Recorder("slow", [], ms=4.0)}, (torch.zeros(1),), seconds=0.01, seed=0)
    assert np.median(found["slow"].samples) >= 4.0


def test_the_last_batch_is_filled_up_and_its_repeats_are_not_counted(digits, mlp, variant):
    with torch.no_grad():
        expected = np.concatenate([(mlp(*b.inputs).argmax(-1) == b.targets).numpy() for b in digits.batches("test", 7)])
    session = Eager().compile(mlp, variant, digits.example(48))
    assert digits.size("test") % 48
    found = measure_quality(session, digits, "test", 48, {"engine": "eager"})[0]
    assert found.value == pytest.approx(expected.mean())
    assert found.n == len(expected)
    np.testing.assert_array_equal(unpack_values(found.raw), expected)


def test_static_figures_are_counted_by_hand(tmp_path):
    model = SmallCNN(3, 2, [4]).eval()
    with torch.no_grad():
        model.classifier.weight[0] = 0
    example = (torch.zeros(2, 2, 6, 6),)
    variant = Variant("v", None, frozenset(), {})
    found = {m.name: m.value for m in measure_static(save_artifact(tmp_path, variant, model, example), model)}
    assert found["params"] == 4 * 2 * 9 + 4 + 4 + 3 * 4 + 3
    assert measure_macs(model, example, {}).value == 36 * 4 * 2 * 9 + 3 * 4
    assert found["sparsity"] == pytest.approx(4 / (72 + 12))
    assert found["size"] == pytest.approx(sum(f.stat().st_size for f in tmp_path.iterdir()) / 1e6)


def test_memory_and_load_time_are_those_of_a_fresh_process_that_gives_the_same_answers(digits, mlp, variant):
    session = Eager().compile(mlp, variant, digits.example(4))
    start = time.monotonic()
    peak, load = measure_memory(session, digits.example(4), 1, (), {"engine": "eager"})
    assert (peak.name, load.name, load.unit) == ("peak_memory", "load", "s")
    assert 50 < peak.value < 5000
    assert 0.1 < load.value < time.monotonic() - start
    assert peak.conditions["reload_difference"] == 0


@pytest.mark.slow
def test_a_variant_that_reloads_to_other_answers_is_an_error(digits, mlp, variant):
    session = Eager().compile(mlp, variant, digits.example(4))

    class Lying:
        def __init__(self, by):
            self.by = by

        def save(self, folder):
            session.save(folder)

        def facts(self):
            return session.facts()

        def __call__(self, *inputs):
            return session(*inputs) + self.by

    for by in (1, float("nan")):
        with pytest.raises(StageError, match="reloaded in a fresh process differs"):
            measure_memory(Lying(by), digits.example(4), 1, (), {})


@pytest.mark.slow
def test_the_bench_times_the_baseline_beside_the_candidate(digits, mlp, variant, tmp_path):
    folders = [tmp_path / "base", tmp_path / "candidate"]
    artifacts = []
    for folder in folders:
        folder.mkdir()
        artifacts.append(save_artifact(folder, variant, mlp, digits.example(2)))
    config = Measure(batch_sizes=[3], seconds=0.01, memory=False)
    bench = Bench(digits, {"eager": Eager()}, config, Eager(), 1, ("optkit",), 0)
    said: list[str] = []
    found = bench.measure(artifacts[1], artifacts[0], False, said.append)
    latencies = [m for m in found if m.name == "latency"]
    assert {m.conditions["of"] for m in latencies} == {"variant", "baseline"}
    assert len({m.conditions["interleaved"] for m in latencies}) == 1
    assert len({np.shape(m.raw) for m in latencies}) == 1
    assert said == ["measuring at batch size 3 on eager"]
    of_baseline = bench.measure(artifacts[0], artifacts[0], True, said.append)
    assert [m.conditions["of"] for m in of_baseline if m.name == "latency"] == ["variant"]


@pytest.mark.slow
def test_without_eager_the_baseline_still_answers_on_it(digits, mlp, variant, tmp_path):
    artifact = save_artifact(tmp_path, variant, mlp, digits.example(2))
    config = Measure(batch_sizes=[16], seconds=0.01, memory=False)
    bench = Bench(digits, {"other": Eager()}, config, Eager(), 1, ("optkit",), 0)
    base, candidate = (bench.measure(artifact, artifact, first, lambda text: None) for first in (True, False))

    def engines(found, name, **conditions):
        return [
            m.conditions["engine"] for m in found if m.name == name and m.conditions.items() >= conditions.items()
        ]  # fmt: skip

    assert engines(base, "accuracy") == engines(base, "latency", of="variant") == ["eager", "other"]
    assert engines(base, "latency", of="baseline") == []
    assert engines(candidate, "accuracy") == engines(candidate, "latency", of="variant") == ["other"]
    assert engines(candidate, "latency", of="baseline") == ["eager", "other"]
    first = replace(make_record(), measurements=base)
    second = replace(make_record(variant="v1", parent="v0", step=1), measurements=candidate)
    deltas = {(r["step"], r["engine"]): r["quality_delta"] for r in rows([first, second])}
    assert deltas == {(0, "eager"): 0.0, (0, "other"): 0.0, (1, "other"): 0.0}


@pytest.mark.parametrize(
    "options",
    [
        {"batch_sizes": []},
        {"batch_sizes": [0]},
        {"seconds": 0},
        {"seconds": "5"},
        {"split": "train"},
        {"precision": 0},
        {"precision": 2},
    ],
)
def test_what_cannot_be_measured_is_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Measure(**options)


@dataclass
class _Named(Eager):
    """Another engine than the reference."""


@pytest.mark.slow
def test_a_recipes_engine_called_eager_does_not_take_the_references_place(digits, mlp, variant, tmp_path):
    artifact = save_artifact(tmp_path, variant, mlp, digits.example(2))
    config = Measure(batch_sizes=[16], seconds=0.01, memory=False)
    bench = Bench(digits, {"eager": _Named()}, config, Eager(), 1, ("optkit",), 0)
    base, candidate = (bench.measure(artifact, artifact, first, lambda text: None) for first in (True, False))
    first = replace(make_record(), measurements=base)
    second = replace(make_record(variant="v1", parent="v0", step=1), measurements=candidate)
    found = {(r["step"], r["engine"]): r for r in rows([first, second])}
    assert found.keys() == {(0, "eager (reference)"), (0, "eager"), (1, "eager")}
    assert {r["reference"] for r in found.values()} == {"eager (reference)"}
    assert found[0, "eager (reference)"]["speedup"] == 1.0
    assert found[1, "eager"]["speedup_same_engine"] is not None
    sessions = {m.conditions["engine"]: m.conditions.get("reference") for m in base if m.name == "latency"}
    assert sessions == {"eager (reference)": True, "eager": None}
