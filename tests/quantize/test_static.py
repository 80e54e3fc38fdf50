import copy

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.core.errors import UserError
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.engines import Inductor
from optkit.models import MLP, ResNetCIFAR, SmallCNN, huggingface, torchvision
from optkit.quantize import quantize_static, replay_static
from optkit.quantize.graph.conversion import activation_nodes
from optkit.quantize.graph.float_layers import float_layers
from optkit.quantize.stages.calibrated import Calibration
from optkit.tasks import ImageFolder


class PreActivation(nn.Module):
    """Every place a batch norm can have: before a convolution, behind one with and without a bias, behind a linear."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.plain = nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8, affine=False)
        self.linear, self.norm3, self.dropout = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x)
        y = self.conv1(self.norm1(x).relu())
        x = x + self.conv2(self.norm2(y).relu())
        x = self.plain(self.up(x)).mean((2, 3))
        return self.last(self.dropout(self.norm3(self.linear(x)).relu()))


class Twice(nn.Module):
    """Calls a convolution and its batch norm twice."""

    def __init__(self, bias):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 1), nn.Linear(4, 10)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = self.norm(self.conv(x)).relu()
        return self.last(x.mean((2, 3)))


class Windows(nn.Module):
    """Linears as the attention of torchvision's Swin V2 has them: called as functions, and for biases of constants."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(8, 8), nn.Linear(8, 10)
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))
        self.register_buffer("places", torch.randn(4, 2))

    def forward(self, x):
        bias = self.project.bias.clone()
        bias[2:4] = 0
        x = nn.functional.linear(x, self.project.weight, bias) + self.bias(self.places)
        return self.head(x.relu().mean(1))


VARIANT = Variant("v", None, frozenset({"int8"}), {})
MODELS = {
    "resnet": (lambda: ResNetCIFAR(8, 10, 1), (1, 16, 16)),
    "small_cnn": (lambda: SmallCNN(10, 1, [8, 16]), (1, 16, 16)),
    "mlp": (lambda: MLP([1, 8, 8], 10, [32]), (1, 8, 8)),
    # one ReLU module serves three calls in each block, on which torchao's annotator stops
    "shared relu": (lambda: torchvision("resnet18", 10), (3, 32, 32)),
}


@pytest.fixture(params=MODELS, scope="module")
def quantized(request):
    torch.manual_seed(0)
    build, shape = MODELS[request.param]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    batches = [(torch.randn(16, *shape),) for _ in range(4)]
    before = copy.deepcopy(model.state_dict())
    found = quantize_static(model, (torch.randn(2, *shape),), batches)
    return model, before, shape, found, batches


def test_the_model_passed_in_is_not_touched(quantized):
    model, before, *_ = quantized
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_int8_stays_close_to_fp32(quantized):
    model, _, _, found, batches = quantized
    with torch.no_grad():
        expected, actual = model(*batches[0]), found.module(*batches[0])
    noise = (actual - expected).pow(2).mean() / expected.pow(2).mean()
    assert 0 < noise < 0.05


def test_weights_are_stored_as_int8_and_float_copies_are_gone(quantized):
    model, _, _, found, _ = quantized
    stored = sum(t.numel() * t.element_size() for t in found.module.state_dict().values())
    assert stored < 0.4 * sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_replay_gives_the_same_answers_bit_by_bit(quantized):
    model, _, shape, found, batches = quantized
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter)
    again = replay_static(fresh, (torch.zeros(2, *shape),), found.activations, found.reduce_range)
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*batches[0]), found.module(*batches[0]))


@pytest.mark.slow
def test_replay_refuses_a_graph_that_other_versions_of_torch_and_torchao_made(quantized):
    model, _, shape, found, _ = quantized
    renamed = dict(found.activations)
    renamed["of_another_version"] = renamed.popitem()[1]
    with pytest.raises(
        UserError, match=r"torch \d.* and torchao \d.* quantize other activations.*run the recipe again"
    ):
        replay_static(copy.deepcopy(model), (torch.zeros(2, *shape),), renamed, found.reduce_range)


@pytest.mark.slow
def test_every_product_runs_in_int8_kernels_on_inductor(quantized):
    _, _, _, found, batches = quantized
    session = Inductor(cpp_wrapper=False).compile(found.module, VARIANT, batches[0])
    assert session.facts()["int8_share"] == pytest.approx(1.0)
    with torch.no_grad():
        expected = found.module(*batches[0])
    actual = session(*batches[0])
    assert (actual - expected).pow(2).mean() < 0.01 * expected.pow(2).mean()


@pytest.mark.parametrize(
    ("isa", "reduced"), [(["avx2"], True), (["avx2", "avx512_vnni"], False), (["avx2", "avx_vnni"], False), ([], False)]
)
def test_weights_have_the_bits_that_the_processor_can_add_up(isa, reduced, monkeypatch):
    monkeypatch.setattr("optkit.quantize.options.cpu", lambda: {"isa": isa})
    model, x = MLP([1, 8, 8], 10, [32]).eval(), torch.randn(16, 1, 8, 8)
    for target, lowest in {"inductor": -128, "openvino": -127}.items():
        found = quantize_static(model, (x,), [(x,)], target=target)
        weights = [t for t in found.module.state_dict().values() if t.dtype == torch.int8]
        assert found.reduce_range is reduced
        assert {int(w.max()) for w in weights} <= ({63} if reduced else {127})
        assert min(int(w.min()) for w in weights) >= (-63 if reduced else lowest)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_no_sum_of_two_products_overflows_16_bits(target):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = huggingface(
        config={"model_type": "bert", **size}, num_classes=3, vocab_size=50, pad_token_id=0, max_length=8
    )
    x = torch.randint(1, 50, (4, 8)), torch.ones(4, 8, dtype=torch.long)
    found = quantize_static(model.eval(), x, [x], target=target, reduce_range=True)
    spans = {node.name: int(node.args[4]) - int(node.args[3]) for node in activation_nodes(found.module)}
    # queries and keys, which are multiplied with each other; all else is multiplied with weights
    assert sorted(spans.values()).count(127) == 2 * 2
    assert set(spans.values()) == {127, 255}
    weights = [t for t in found.module.state_dict().values() if t.dtype == torch.int8]
    assert 2 * 255 * max(int(w.abs().max()) for w in weights) < 2**15


def test_the_batch_size_stays_free(quantized):
    _, _, shape, found, _ = quantized
    with torch.no_grad():
        assert found.module(torch.randn(7, *shape)).shape == (7, 10)


@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
@pytest.mark.parametrize("build", [PreActivation, lambda: Twice(True), lambda: Twice(False)])
def test_a_norm_is_not_folded_into_a_layer_that_others_read(build, target):
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(16, 1, 8, 8)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 1)
            module.running_var.uniform_(0.1, 0.5)
    found = quantize_static(model, (x,), [(x,)], target=target)
    fresh = copy.deepcopy(model)
    again = replay_static(fresh, (x[:2],), found.activations, found.reduce_range, target)
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        expected, actual = model(x), found.module(x)
        assert torch.equal(again(x), actual)
    assert (actual - expected).pow(2).mean() < 0.001 * expected.pow(2).mean()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
def test_linears_that_are_called_as_functions_are_int8(target):
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(4, 4, 8)
    int8 = quantize_static(model, (x,), [(torch.randn(16, 4, 8),)], target=target).module
    read = {n.args[0].target for n in int8.graph.nodes if "dequantize_per_channel" in str(n.target)}
    # torchao's annotator takes the two of constants as well, which engines compute when they compile
    assert len(read) == (4 if target == "inductor" else 2)
    assert not float_layers(int8)
    session = engines.compile(int8, (x,), engine=target)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(session(x), int8(x), atol=0.02, rtol=0)
    assert (session(x) - expected).square().mean() < 1e-2 * expected.square().mean()


class Shared(nn.Module):
    """Reads one linear's weight twice, as ALBERT does."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).relu()).relu())


@pytest.mark.slow
def test_layers_that_share_a_weight_run_in_int8_kernels_on_inductor():
    torch.manual_seed(0)
    x = torch.randn(8, 64)
    int8 = quantize_static(Shared().eval(), (x,), [(torch.randn(64, 64),)]).module
    stored = {name: value.shape for name, value in int8.state_dict().items() if value.dtype == torch.int8}
    session = engines.compile(int8, (x,), engine=Inductor(cpp_wrapper=False))
    assert session.facts()["int8_share"] == 1
    torch.testing.assert_close(session(x), int8(x), atol=0.02, rtol=0)
    assert len(stored) == 2
    assert stored == {name: value.shape for name, value in int8.state_dict().items() if value.dtype == torch.int8}


def test_a_calibration_sees_all_classes_of_a_split_that_lists_one_after_the_other(image_folder):
    task = SealedTask(ImageFolder(path=str(image_folder), image_size=8))
    (plain,) = task.batches("train", 100)
    bright = plain.inputs[0][plain.targets == 1].amin()  # dogs are bright, and every pixel of a cat is darker

    def of(seed):
        return Calibration(task, batch_size=4, batches=2, seed=seed)

    found = of(1)
    assert [len(inputs[0]) for inputs in found] == [4, 4]
    assert found.examples == 8
    seen, again, other = (torch.cat([inputs[0] for inputs in batches]) for batches in (found, found, of(2)))
    assert set((seen.amax((1, 2, 3)) >= bright).tolist()) == {True, False}
    assert torch.equal(seen, again)
    assert not torch.equal(seen, other)
