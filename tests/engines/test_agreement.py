import copy

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.engine import made_for
from optkit.core.errors import StageError
from optkit.core.probe import PROBE_FILE, keep_probe, load_probe, probe_of
from optkit.core.variant import Variant
from optkit.engines.agreement import batches, check_agreement, decibels, without_rounding
from optkit.models import MLP
from optkit.quantize import quantize_dynamic, quantize_static

ENGINES = ("inductor", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def int8():
    torch.manual_seed(0)
    model = MLP([1, 8, 8], 10, [32, 32]).eval()
    return model, quantize_static(
        model, (torch.rand(16, 1, 8, 8),), [(torch.rand(16, 1, 8, 8),)], reduce_range=False
    ).module


def powers(expected, actual):
    return 10 * torch.log10(expected.square().sum() / (actual - expected).square().sum())


def test_decibels_are_the_power_of_the_answers_over_that_of_the_difference():
    expected = torch.tensor([3.0, -4.0])
    assert decibels(expected, expected * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert decibels(expected, expected) == 200.0
    assert decibels(torch.tensor([1.0, -torch.inf]), torch.tensor([1.1, -torch.inf])) == pytest.approx(20.0, abs=1e-4)
    assert decibels(expected, torch.tensor([3.0, torch.nan])) == -200.0
    assert decibels(torch.zeros(2), torch.tensor([1e-30, 0.0])) == 200.0
    assert decibels(torch.zeros(2), torch.ones(2)) == -200.0


@pytest.mark.parametrize(
    ("size", "rows"),
    [(1, [[0], [1], [2]]), (2, [[0, 1], [2, 0]]), (3, [[0, 1, 2]]), (5, [[0, 1, 2, 0, 1]])],
)
def test_every_example_is_asked_for_in_batches_of_the_size_that_was_compiled(size, rows):
    probe = (torch.tensor([[0, 0], [1, 1], [2, 2]]),)
    found = [inputs[0][:, 0].tolist() for inputs in batches(probe, (torch.zeros(size, 2),))]
    assert found == rows


def test_texts_are_cut_or_repeated_to_the_length_that_was_compiled():
    probe = (torch.tensor([[5, 6, 7]]),)
    assert [inputs[0].tolist() for inputs in batches(probe, (torch.zeros(1, 2),))] == [[[5, 6]]]
    assert [inputs[0].tolist() for inputs in batches(probe, (torch.zeros(1, 5),))] == [[[5, 6, 7, 5, 6]]]


def test_a_graph_without_rounding_is_the_float_model_with_int8_weights(int8):
    model, graph = int8
    reference = copy.deepcopy(model)
    for layer in reference.modules():
        if isinstance(layer, nn.Linear):
            scale = layer.weight.detach().abs().amax(1) / 127.5
            # the largest weight lies between two integers: which of them it becomes hangs on this very product
            rounded = (layer.weight.detach() * (1 / scale)[:, None]).round().clamp(-128, 127)
            layer.weight.data = rounded * scale[:, None]
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        plain = without_rounding(graph)(x)
        assert powers(reference(x), plain) > 90 > powers(plain, graph(x))


def test_the_first_eight_calibration_examples_stay_with_the_graph():
    examples = torch.rand(16, 1, 8, 8)
    model = MLP([1, 8, 8], 10, [8]).eval()
    graph = quantize_static(model, (examples[:2],), [(examples,), (examples + 1,)]).module
    assert torch.equal(probe_of(graph)[0], examples[:8])
    assert probe_of(model) is None


def test_a_large_example_stays_alone(int8):
    graph = copy.copy(int8[1])
    graph.meta = {}
    keep_probe(graph, (torch.zeros(4, 2**20),))
    assert probe_of(graph)[0].shape == (1, 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_computes_the_graph_says_how_near_it_comes(int8, engine):
    model, _ = int8
    examples = torch.rand(16, 1, 8, 8)
    graph = quantize_static(model, (examples,), [(examples,)], target=engine).module
    session = engines.compile(graph, (torch.zeros(4, 1, 8, 8),), engine=engines.ENGINES[engine]().for_trials())
    with torch.no_grad():
        expected, plain = graph(examples[:8]), without_rounding(graph)(examples[:8])
    facts = session.facts()
    assert facts["rounding_sqnr_db"] == pytest.approx(float(powers(expected, plain)), abs=0.1)
    ours = torch.cat([session(examples[:4]), session(examples[4:8])])
    assert facts["engine_sqnr_db"] == pytest.approx(decibels(expected, ours), abs=0.1)
    assert facts["engine_sqnr_db"] > facts["rounding_sqnr_db"] - 6


def test_an_engine_that_computes_something_else_is_refused(int8):
    _, graph = int8
    fitting = (torch.zeros(4, 1, 8, 8),)
    assert check_agreement("inductor", graph, graph, fitting)["engine_sqnr_db"] == 200.0
    with pytest.raises(
        StageError,
        match=r"openvino does not compute this int8 graph: .* dB of signal to noise, where rounding alone leaves",
    ) as info:
        check_agreement("openvino", lambda x: graph(x) * 1.3, graph, fitting)
    assert "another target" in info.value.fix


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x).relu()
        return y, {"logits": self.second(y)}


def test_every_tensor_of_structured_answers_is_compared():
    torch.manual_seed(0)
    examples = torch.randn(8, 8)
    graph = quantize_static(Structured().eval(), (examples,), [(examples,)]).module

    def wrong(x):
        y, rest = graph(x)
        return y, {"logits": rest["logits"] + 1}

    assert check_agreement("inductor", graph, graph, (examples,))["engine_sqnr_db"] == 200.0
    with pytest.raises(StageError, match="output 1: "):
        check_agreement("inductor", wrong, graph, (examples,))


def test_a_float_module_and_inputs_of_another_kind_are_not_compared(int8):
    model, graph = int8
    assert check_agreement("inductor", model, model, (torch.zeros(2, 1, 8, 8),)) == {}
    assert check_agreement("inductor", graph, graph, (torch.zeros(2, 64, dtype=torch.int64),)) == {}


def test_an_answer_that_mixes_the_examples_is_compared_on_the_whole_batch(int8):
    _, graph = int8
    seen = []

    def session(x):
        seen.append(len(x))
        return graph(x)

    check_agreement("inductor", session, graph, (torch.zeros(20, 1, 8, 8),))
    assert seen == [20]


def test_dynamic_int8_is_compared_on_its_examples():
    torch.manual_seed(0)
    graph = quantize_dynamic(MLP([1, 8, 8], 10, [32]).eval(), (torch.rand(8, 1, 8, 8),)).module
    facts = check_agreement("inductor", graph, graph, (torch.zeros(2, 1, 8, 8),))
    assert facts["engine_sqnr_db"] == 200.0 > facts["rounding_sqnr_db"] > 20


def test_the_examples_lie_beside_the_weights(int8, tmp_path):
    _, graph = int8
    variant = Variant("v", None, made_for("inductor"), {})
    save_artifact(tmp_path, variant, graph, (torch.zeros(2, 1, 8, 8),))
    fresh = copy.copy(graph)
    fresh.meta = {}
    load_probe(fresh, tmp_path)
    assert torch.equal(probe_of(fresh)[0], probe_of(graph)[0])
    assert open_artifact(tmp_path).variant == variant
    (tmp_path / PROBE_FILE).unlink()
    fresh.meta = {}
    load_probe(fresh, tmp_path)
    assert probe_of(fresh) is None
