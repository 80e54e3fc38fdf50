"""What is recorded on fake tensors is what runs on real ones."""

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchvision.models import convnext_tiny, densenet121, shufflenet_v2_x0_5, swin_t

from optkit.core.errors import UserError
from optkit.prune.trace.recorder import _Recorder, record
from scripts.prune_cases import transformer_cases

aten = torch.ops.aten
LAST = {"memory_format": torch.channels_last}


class Calls(nn.Module):
    """One call of one operator."""

    def __init__(self, func):
        super().__init__()
        self.func = func

    def forward(self, *args):
        return self.func(*args)


def _images(*shape):
    return torch.randn(*shape).to(**LAST)


CALLS = {
    "convolution": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 2), torch.randn(6))),
    "strides": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3), None, [2, 1], [1, 2], [2, 1], 2)),
    "one number": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3), None, [2], [1], [1], 1)),
    "channels last": (aten.conv2d.default, (_images(2, 4, 9, 8), torch.randn(6, 4, 3, 3))),
    "channels last weights": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), _images(6, 4, 3, 3))),
    "part of channels last": (aten.conv2d.default, (_images(2, 4, 9, 8)[:, :, ::2], torch.randn(6, 4, 3, 3))),
    "one channel": (aten.conv2d.default, (_images(2, 1, 9, 8), torch.randn(6, 1, 3, 3))),
    "one image": (aten.conv2d.default, (torch.randn(4, 9, 8), torch.randn(6, 4, 3, 3))),
    "permuted": (aten.conv2d.default, (torch.randn(2, 9, 8, 6).permute(0, 3, 1, 2)[:, :2], torch.randn(6, 2, 3, 3))),
    "pointwise": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 1, 1))),
    "batch norm": (aten.batch_norm.default, (_images(2, 4, 3, 3), *[torch.ones(4)] * 4, False, 0.1, 1e-5, False)),
    "batch norm, no weights": (
        aten.batch_norm.default, (torch.randn(2, 4), None, None, torch.ones(4), torch.ones(4), False, 0.1, 1e-5, False),
    ),
    "layer norm": (aten.layer_norm.default, (torch.randn(3, 2, 4, 5).transpose(0, 1), [4, 5], torch.ones(4, 5), None)),
    "linear": (aten.linear.default, (torch.randn(5, 2, 3).transpose(0, 1), torch.randn(7, 3), torch.randn(7))),
    "reshape": (aten.reshape.default, (torch.randn(2, 6, 4), [-1, 3, 8])),
    "reshape that copies": (aten.reshape.default, (torch.randn(2, 6, 4).transpose(0, 1), [-1, 8])),
    "view": (aten.view.default, (torch.randn(2, 6, 4)[1], [24])),
    "several": (aten.chunk.default, (torch.randn(2, 6, 4), 3, 1)),
    "types": (aten.add.Tensor, (torch.ones(2, dtype=torch.int64), 1.5)),
    "attention": (aten.scaled_dot_product_attention.default, tuple(torch.randn(2, 3, 4, 8) for _ in range(3))),
    "complex": (aten.mul.Tensor, (torch.randn(2, 3, dtype=torch.complex64), 2.0)),
    "like another": (aten.zeros_like.default, (torch.randn(3, 2).T,)),
}  # fmt: skip


def _layouts(out):
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in pytree.tree_leaves(out)]


@pytest.mark.parametrize("name", CALLS)
def test_operators_are_recorded_with_the_layouts_that_they_have(name):
    func, args = CALLS[name]
    (step,) = record(Calls(func), args).steps
    assert step.target is func
    assert _layouts(step.out) == _layouts(func(*args))


def test_a_number_and_a_truth_value_are_not_taken_for_one_another():
    x = torch.ones(2, dtype=torch.int64)
    steps = record(Calls(lambda x: [x + 1, x + 1.0, x * True]), (x,)).steps
    assert [step.out.dtype for step in steps] == [torch.int64, torch.float32, torch.int64]


def test_what_goes_to_another_device_is_there():
    step, *_ = record(Calls(lambda x: torch.zeros_like(x, device="meta")), (torch.ones(2),)).steps
    assert step.out.device.type == "meta"


def test_what_returns_its_argument_gives_the_same_tensor_but_never_a_parameter():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: (nn.functional.dropout(x, 0.5, training=False), layer.weight.to(torch.float32))
    same, other = record(layer, (torch.ones(2, 3),)).steps
    assert same.out is same.args[0]
    assert other.args[0] is layer.weight
    assert other.out is not layer.weight


def test_operators_are_taken_apart_where_they_are_not_known():
    x = torch.randn(2, 6)
    call = Calls(lambda x: nn.functional.glu(x).relu())
    steps = record(call, (x,), lambda func: func is not aten.glu.default).steps
    assert {step.called for step in steps[:-1]} == {aten.glu.default}
    assert aten.mul.Tensor in [step.target for step in steps]
    assert steps[-1].called is steps[-1].target is aten.relu.default
    assert [step.target for step in record(call, (x,)).steps] == [aten.glu.default, aten.relu.default]


def test_constants_keep_their_values():
    class Constant(nn.Module):
        def forward(self, x):
            return x * 2 if torch.tensor(2).item() == 2 else x

    assert [step.target for step in record(Constant(), (torch.ones(2),)).steps][-1] is aten.mul.Tensor


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 3, 3, 3))),
        (aten.conv2d.default, (torch.randn(2, 4, 2, 2), torch.randn(6, 4, 3, 3))),
        (aten.batch_norm.default, (torch.randn(2, 4), None, None, None, None, False, 0.1, 1e-5, False)),
        (aten.batch_norm.default, (torch.randn(2, 4), None, None, *[torch.ones(3)] * 2, False, 0.1, 1e-5, False)),
        (aten.layer_norm.default, (torch.randn(2, 4), [4], torch.ones(3))),
        (aten.linear.default, (torch.randn(2, 4), torch.randn(7, 3))),
        (aten.reshape.default, (torch.randn(2, 4), [3, -1])),
        (aten.view.default, (torch.randn(2, 4).T, [8])),
        (aten.view.default, (torch.randn(2, 4), [-1, -1])),
        (aten.nonzero.default, (torch.randn(2, 4),)),
        (lambda x: x if x.sum() > 0 else -x, (torch.ones(2),)),
    ],
)  # fmt: skip
def test_what_cannot_run_or_depends_on_data_is_refused(func, args):
    with pytest.raises(UserError, match="Calls cannot be traced"):
        record(Calls(func), args)


IMAGES = {make.__name__: make for make in (convnext_tiny, densenet121, shufflenet_v2_x0_5, swin_t)}
NETWORKS = {name: (lambda make=make: (make(), (torch.randn(1, 3, 64, 64),))) for name, make in IMAGES.items()}
NETWORKS |= {
    name: (lambda make=make, inputs=inputs: (make(), inputs)) for name, (make, inputs) in transformer_cases().items()
}


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_are_recorded_as_on_fake_tensors_alone(name, training, monkeypatch):
    model, inputs = NETWORKS[name]()
    model.train(training)
    fast = record(model, inputs)
    monkeypatch.setattr(_Recorder, "_plain_result", lambda *_: None)
    slow = record(model, inputs)
    assert _steps(fast) == _steps(slow)


def _steps(recording):
    """What there is to a recording, with every tensor numbered as it is first seen."""
    number = {}

    def tensors(step):
        leaves = pytree.tree_leaves((step.args, step.kwargs, step.out))
        return [number.setdefault(id(leaf), len(number)) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return [(s.target, s.where, s.shapes, _layouts(s.out), tensors(s)) for s in recording.steps]
