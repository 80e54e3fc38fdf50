"""Which layers stay in float for a latency: the choice, the parts that are timed, and the limit that is kept."""

import copy
import json
from itertools import combinations

import pytest
import torch
from torch import nn

from optkit.core.errors import StageError, UserError
from optkit.core.macs import count_macs
from optkit.engines import ONNXRuntime
from optkit.models import MLP
from optkit.quantize import StaticOptions, StaticQuantization, calibrate, quantize_static, quantize_within
from optkit.quantize import layer_times as timing
from optkit.quantize.graph.layers import int8_layers, simulated, without_observers
from optkit.quantize.mixed_precision import LayerTime, layers_in_float, mixes, quantize_to_latency

TARGETS = ("inductor", "onnxruntime", "openvino")
GAINS = {"a": 10.0, "b": 6.0, "c": 6.5, "d": -1.0, "e": 0.5}
TIMES = {
    "a": LayerTime(1, 10), "b": LayerTime(1, 4), "c": LayerTime(1, 4), "d": LayerTime(1, 2), "e": LayerTime(3, 2),
}  # fmt: skip


@pytest.mark.parametrize("budget", [6, 8, 9, 12, 15, 18, 25])
def test_no_other_layers_save_more_loss_within_the_time(budget):
    def ms(chosen):
        return sum(one.float if path in chosen else one.int8 for path, one in TIMES.items())

    found = layers_in_float(GAINS, TIMES, budget)
    fitting = [one for n in range(6) for one in combinations(GAINS, n) if ms(one) <= budget]
    assert ms(found) <= budget
    assert sum(GAINS[path] for path in found) == max(sum(GAINS[path] for path in one) for one in fitting)
    assert "e" in found
    assert "d" not in found


def test_mixes_go_from_the_fastest_to_the_one_that_loses_least():
    expected = [["e"], ["c", "e"], ["b", "c", "e"], ["a", "c", "e"], ["a", "b", "c", "e"]]
    assert mixes(GAINS, TIMES) == expected


class Net(nn.Module):
    """Convolutions with a sum and a layer that is called twice, and a linear layer behind a mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = (x + self.norm(self.twice(x))).relu()
        x = self.twice(x).relu()
        return self.head(x.mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=TARGETS)
def calibrated(request):
    return calibrate(Net().eval(), (X,), [(X,)], target=request.param, schemes=["minmax"]).choose("minmax")


def test_parts_compute_what_the_graph_does(calibrated):
    in_int8, in_float = timing.parts_in_int8(calibrated, (X,)), timing.parts_in_float(calibrated, (X,))
    paths = [layer.path for layer in int8_layers(calibrated.graph)]
    assert [part.path for part in in_int8] == [part.path for part in in_float] == paths
    assert paths == ["first", "twice", "twice", "head"]
    with torch.no_grad():
        (answer,) = in_int8[-1].module(*in_int8[-1].inputs)
        assert torch.allclose(answer, calibrated.convert("minmax").module(X), atol=1e-5)
        (answer,) = in_float[-1].module(*in_float[-1].inputs)
        assert torch.allclose(answer, Net().eval()(X), atol=1e-5)
        assert torch.equal(without_observers(calibrated.graph)(X), simulated(without_observers(calibrated.graph))(X))
    # between int8 layers integers pass
    assert [part.inputs[0].dtype for part in in_int8[1:3]] == [torch.uint8, torch.uint8]
    assert {x.dtype for part in in_float for x in part.inputs} == {torch.float32}
    assert sum(count_macs(part.module, part.inputs) for part in in_float) == count_macs(Net().eval(), (X,))


@pytest.mark.parametrize(
    "target", ["openvino", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnxruntime", "inductor"))]
)
def test_layers_are_timed_in_int8_kernels_once_and_kept(target, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    calibrated = calibrate(Net().eval(), (X,), [(X,)], target=target, schemes=["minmax"]).choose("minmax")
    timed = []

    def clock(session, inputs):
        timed.append(session)
        calling = inputs[0].shape == (1, 8)
        return 0.5 if calling else 1.0 if session.facts()["int8_share"] > 0.99 else 2.0

    monkeypatch.setattr(timing, "time_session", clock)
    found = timing.time_layers(calibrated, (X,), 1)
    once, twice = LayerTime(0.5, 1.5), LayerTime(1.0, 3.0)
    assert found == {"first": once, "twice": twice, "head": once}
    count = len(timed)
    assert timing.time_layers(calibrated, (X,), 1) == found
    assert len(timed) == count


class Deep(nn.Module):
    """Six linear layers, the inputs of two of which have outliers that take their int8 range."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.scale = torch.ones(16)
        self.scale[0] = 3e3
        for fragile in (2, 4):
            self.layers[fragile].weight.data[:, 0] /= 1e6

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x * self.scale if number in (2, 4) else x)
        return x


ROWS = torch.randn(128, 16, generator=torch.Generator().manual_seed(2))


def error(module):
    with torch.no_grad():
        return float((module(ROWS) - Deep().eval()(ROWS)).square().mean())


def times(_):
    return {f"layers.{n}": LayerTime(0.25, 1.0) for n in range(6)}


def ratio(graph):
    """Of a clock on which all takes a tenth longer than the layers alone do."""
    in_int8 = sum("dequantize_per_channel" in str(node.target) for node in graph.graph.nodes)
    return 1.1 * (1 - 0.75 * in_int8 / 6)


def to_latency(share):
    options = StaticOptions(target="openvino", reduce_range=False)
    return quantize_to_latency(
        Deep().eval(), (ROWS[:2],), [(ROWS,)], options, max_latency=share, loss=error, times=times, ratio=ratio
    )


def test_the_layers_that_lose_most_stay_in_float_as_far_as_the_time_allows():
    found, facts = to_latency(0.56)  # two layers in float take 0.55
    assert found.protect == ("layers.2", "layers.4")
    assert facts["latency_ratio"] == pytest.approx(0.55)
    assert facts["latency_ratio_by_layers"] == pytest.approx(0.5)
    one, _ = to_latency(0.5)  # two take 0.5 by the layers, and 0.55 really
    assert len(one.protect) == 1
    assert error(found.module) < error(one.module) < error(to_latency(0.28)[0].module)


def test_a_latency_that_int8_does_not_reach_names_the_least():
    with pytest.raises(StageError, match="max_latency: the least latency of int8 is 0.275 of the float model's"):
        to_latency(0.2)


def test_layers_that_are_slower_in_int8_stay_in_float(monkeypatch):
    slower = {f"layers.{n}": LayerTime(2.0, 1.0) for n in range(6)}
    monkeypatch.setattr("tests.quantize.test_mixed_precision.times", lambda _: slower)
    with pytest.raises(StageError, match="no layer of this model is faster in int8"):
        to_latency(0.8)


def test_the_fastest_layers_in_float_are_taken_where_time_counts():
    slow = dict(times(None), **{"layers.2": LayerTime(0.25, 9.0)})
    all_int8 = error(quantize_static(Deep().eval(), (ROWS[:2],), [(ROWS,)], target="openvino").module)
    found = quantize_within(
        Deep().eval(), (ROWS[:2],), [(ROWS,)], target="openvino", max_drop=0.99 * all_int8,
        evaluate=error, loss=error, higher_is_better=False, times=lambda _: slow,
    )  # fmt: skip
    assert found.protect
    assert "layers.2" not in found.protect
    assert error(found.module) <= 0.99 * all_int8


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"max_latency": 1.5}, "max_latency"),
        ({"max_latency": "3 s"}, "max_latency"),
        ({"max_latency": "0.0 ms"}, "max_latency"),
        ({"max_latency": 0.5, "max_drop": 0.1}, "max_latency"),
        ({"allocation": "fastest"}, "allocation"),
        ({"allocation": "best"}, "allocation"),
        ({"latency_batch_size": 8}, "latency_batch_size"),
    ],
)
def test_options_are_checked(fields, key):
    with pytest.raises(UserError) as found:
        StaticQuantization(**fields)
    assert found.value.key == key


def test_a_stage_that_times_depends_on_the_machine_and_runs_in_one_process():
    assert StaticQuantization().in_all_processes
    assert not StaticQuantization(max_latency="2 ms").in_all_processes
    assert ONNXRuntime().name == timing.engine_of("onnxruntime").name


class Clock:
    """Of a float model that takes 5 ms, and a quarter of its share in each layer that is int8."""

    def __init__(self, model, example, target, threads, seed):
        self.batch = len(example[0])

    def float_ms(self):
        return 5.0

    def __call__(self, graph):
        in_int8 = sum("dequantize_per_channel" in str(node.target) for node in graph.graph.nodes)
        return 1 - 0.75 * in_int8 / 3

    def facts(self):
        return {"batch_size": self.batch}


@pytest.mark.parametrize(("limit", "in_float"), [("2.5 ms", 1), (0.75, 2)])
def test_a_stage_keeps_a_latency_and_is_replayed(context, digits, monkeypatch, limit, in_float):
    torch.manual_seed(0)
    model = MLP([1, 8, 8], 10, [32, 32]).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    monkeypatch.setattr(timing, "AgainstFloat", Clock)
    layer_ms = dict.fromkeys(names, LayerTime(0.25, 1.0))
    monkeypatch.setattr(timing, "time_layers", lambda calibrated, example, threads: layer_ms)
    stage = StaticQuantization(
        target="openvino", batches=1, max_latency=limit, latency_batch_size=4, sensitivity_examples=32
    )
    gains = dict(zip(names, (3.0, 1.0, 2.0), strict=True))
    monkeypatch.setattr("optkit.quantize.mixed_precision.gains_in_float", lambda *_: gains)
    found = stage.apply(model, context())
    assert set(found.facts["in_float"]) == set(sorted(names, key=lambda name: -gains[name])[:in_float])
    latency = found.facts["latency"]
    assert (latency["latency_ratio"], latency["batch_size"]) == (pytest.approx(0.25 + 0.25 * in_float), 4)
    assert latency["predicted_loss"] == sum(gains[name] for name in names if name not in found.facts["in_float"])
    again = StaticQuantization.replay(copy.deepcopy(model), json.loads(json.dumps(found.surgery)), digits.example(2))
    again.load_state_dict(found.module.state_dict())
    assert torch.equal(again(*digits.example(8)), found.module(*digits.example(8)))
