"""The CUDA engine; what needs a GPU is skipped where there is none."""

import pytest
import torch
from torch import nn

import optkit
from optkit.core.errors import StageError, UserError
from optkit.core.variant import Variant
from optkit.engines import CUDA, cuda
from optkit.engines.cuda import takes_sparse_kernels
from optkit.models import MLP, SmallCNN
from optkit.prune.masks import Pattern, apply_masks_, magnitude_masks

VARIANT = Variant(
    "v", None, frozenset({"float", "sparse"}), {"target": "optkit.models.MLP", "params": {"input_shape": [64]}}
)
on_gpu = pytest.mark.skipif(CUDA().unavailable() is not None, reason=str(CUDA().unavailable()))


@pytest.fixture
def masked():
    """Three linear layers, of which 2:4 kernels take two."""
    torch.manual_seed(0)
    model = MLP(num_classes=10, input_shape=[64], widths=[128, 64]).eval()
    apply_masks_(model, magnitude_masks(model, None, pattern=Pattern(2, 4)))
    return model


def test_a_machine_without_a_gpu_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CUDA().unavailable() == "no CUDA device found"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in CUDA().unavailable()


def test_int8_graphs_are_refused():
    assert "simulation" in CUDA().unsupported(frozenset({"int8", "int8:inductor"}))
    assert CUDA().unsupported(frozenset({"float", "sparse", "cut"})) is None
    assert "no kernels" in CUDA().unsupported(frozenset({"weight_only"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp61"}, "did you mean 'fp16'"), ({"sparse_kernels": "alway"}, "did you mean 'always'")],
)
def test_mistakes_in_its_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        CUDA(**options)


def test_sparse_kernels_are_for_the_pattern_and_for_whole_tiles_only():
    weight = torch.randn(32, 64)
    assert not takes_sparse_kernels(weight)
    two_of_four = weight * Pattern(2, 4).keep(weight, 1)
    assert takes_sparse_kernels(two_of_four)
    assert takes_sparse_kernels(weight * Pattern(1, 4).keep(weight, 1))
    assert not takes_sparse_kernels(two_of_four[:31])
    assert not takes_sparse_kernels(two_of_four[:, :32])
    # half of the weights are zero, but in one place three of four are not
    moved = two_of_four.clone()
    moved[5, 8:16] = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert not takes_sparse_kernels(moved)


class First(nn.Module):
    """A linear layer of what comes first in each sequence, as BERT's pooler: its input is strided."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x):
        return self.linear(x[:, 0])


@pytest.mark.parametrize("way", [cuda.BY_ROWS, cuda.BY_COLUMNS])
@pytest.mark.parametrize("x", [torch.randn(3, 5, 64)[:, 0], torch.randn(2, 4, 64), torch.randn(64, 8).t()])
def test_sparse_kernels_are_given_the_operand_that_they_assume(way, x, monkeypatch):
    def kernel(weight, columns, bias, transpose_result):
        assert not columns.is_contiguous()
        assert columns.t().is_contiguous()
        assert columns.shape[1] % 8 == 0
        out = weight @ columns + bias[:, None]
        return out.t().contiguous() if transpose_result else out

    monkeypatch.setattr(cuda, "MULTIPLY", kernel)
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        found = cuda._SparseLinear(layer.weight.detach(), layer.bias, 32, way)(x)
        torch.testing.assert_close(found, layer(x))
    assert found.is_contiguous()


def test_a_layer_is_replaced_where_sparse_kernels_are_faster(monkeypatch):
    timed, packed = [], []

    def time_linear(weight, bias, rows):
        timed.append((tuple(weight.shape), rows))
        return {"dense": 1.0 + (rows == 8), "rows": 1.7, "columns": 1.5}

    monkeypatch.setattr(cuda, "_has_sparse_kernels", lambda: True)
    monkeypatch.setattr(cuda, "_pack", lambda weight: packed.append(weight) or weight.detach())
    monkeypatch.setattr(cuda, "time_linear", time_linear)
    layers = [nn.Linear(64, 32) for _ in range(4)]
    layers[1].weight = layers[0].weight
    rows = dict(zip(layers, [8, 8, 8, 4], strict=True))
    found = CUDA()._sparse_layers(rows)
    assert list(found) == layers[:3]
    assert not any(layer.by_rows for layer in found.values())
    assert timed == [((32, 64), 8), ((32, 64), 4)]
    assert len(packed) == 2
    assert found[layers[0]].weight is found[layers[1]].weight
    assert list(CUDA(sparse_kernels="always")._sparse_layers(rows)) == layers
    assert not CUDA(sparse_kernels="never")._sparse_layers(rows)
    assert not CUDA("fp32", "always")._sparse_layers(rows)
    # wherever the layer is held, the model itself included
    twice = cuda._replace(nn.Sequential(layers[0], nn.Sequential(layers[0], layers[3])), found)
    assert twice[0] is twice[1][0] is found[layers[0]]
    assert twice[1][1] is layers[3]
    assert cuda._replace(layers[0], found) is found[layers[0]]


def test_a_layer_called_several_times_counts_at_its_most_rows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.linear(x)[:, :1])

    model = Twice()
    assert cuda._linear_macs(model, (torch.ones(2, 3, 4),)) == {model.linear: cuda._Called(macs=8 * 16, rows=6)}


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_session_gives_the_modules_answers(precision):
    torch.manual_seed(0)
    model = SmallCNN(4, 1, [4, 8]).eval()
    session = CUDA(precision).compile(model, VARIANT, (torch.zeros(3, 1, 8, 8),))
    for _ in range(2):
        x = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            expected = model(x)
        most = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}[precision]
        torch.testing.assert_close(session(x), expected, atol=most, rtol=most)
        assert session(x).device.type == "cpu"
    assert session.facts()["precision"] == precision
    with pytest.raises(StageError, match="compiled for inputs"):
        session(x[:1])


@on_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_the_2_to_4_pattern_runs_in_sparse_kernels_and_is_exact(masked, batch_size, precision):
    x = torch.randn(batch_size, 64)
    always, fastest, never = (
        CUDA(precision, kind).compile(masked, VARIANT, (x,)) for kind in ("always", "fastest", "never")
    )
    most = {"fp16": 5e-3, "bf16": 4e-2}[precision]
    torch.testing.assert_close(always(x), never(x), atol=most, rtol=most)
    torch.testing.assert_close(fastest(x), never(x), atol=most, rtol=most)
    in_pattern = 64 * 128 + 128 * 64
    share = pytest.approx(in_pattern / (in_pattern + 64 * 10))
    assert always.facts()["sparse_share"] == share
    assert always.facts()["sparse_layers"] == 2
    assert never.facts()["sparse_share"] == 0
    assert never.facts()["sparse_layers"] == 0
    assert all(session.facts()["pattern_share"] == share for session in (always, fastest, never))
    assert CUDA("fp32", "always").compile(masked, VARIANT, (x,)).facts()["sparse_share"] == 0
    # the module that came in is not touched
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in masked.parameters())


@on_gpu
@pytest.mark.parametrize("batch_size", [3, 32])
def test_sparse_kernels_are_exact_for_a_strided_input(batch_size):
    torch.manual_seed(0)
    model = First().eval()
    apply_masks_(model, magnitude_masks(model, None, pattern=Pattern(2, 4)))
    x = torch.randn(batch_size, 5, 64)
    always, fastest, never = (
        CUDA(sparse_kernels=kind).compile(model, VARIANT, (x,)) for kind in ("always", "fastest", "never")
    )
    assert always.facts()["sparse_share"] == 1
    torch.testing.assert_close(always(x), never(x), atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(fastest(x), never(x), atol=5e-3, rtol=5e-3)


@on_gpu
@pytest.mark.parametrize("way", [cuda.BY_ROWS, cuda.BY_COLUMNS])
@pytest.mark.parametrize("bias", [False, True])
def test_both_sparse_ways_are_exact(way, bias):
    layer = nn.Linear(64, 32, bias=bias, device="cuda", dtype=torch.float16)
    x = torch.randn(3, 5, 64, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        layer.weight.mul_(Pattern(2, 4).keep(layer.weight, 1))
        found = cuda._SparseLinear(cuda._pack(layer.weight), layer.bias, 32, way)
        for rows in (x, x[:, 0], x[:1, 0]):
            torch.testing.assert_close(found(rows), layer(rows), atol=5e-3, rtol=5e-3)


@on_gpu
def test_what_cannot_be_recorded_is_an_error(masked):
    class Asks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(StageError, match="cuda cannot run this model"):
        CUDA().compile(Asks(), VARIANT, (torch.ones(2, 2),))
    # and the device is as it was
    assert CUDA().compile(masked, VARIANT, (torch.ones(32, 64),))(torch.ones(32, 64)).shape == (32, 10)


@on_gpu
def test_a_saved_session_opens_again(masked, tmp_path):
    x = torch.randn(32, 64)
    params = {"num_classes": 10, "input_shape": [64], "widths": [128, 64]}
    variant = Variant("v", None, VARIANT.traits, {"target": "optkit.models.MLP", "params": params})
    session = CUDA("bf16").compile(masked, variant, (x,))
    session.save(tmp_path)
    again = optkit.load(tmp_path)
    assert again.engine == session.engine
    assert torch.equal(again(x), session(x))
