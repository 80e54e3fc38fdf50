"""What is recorded on fake tensors is what runs on real ones."""

import pytest
import torch

from optkit.prune.record import RESULTS

aten = torch.ops.aten
LAST = {"memory_format": torch.channels_last}


def _images(*shape):
    return torch.randn(*shape).to(**LAST)


CALLS = {
    "convolution": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 2), torch.randn(6))),
    "strides": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3), None, [2, 1], [1, 2], [2, 1], 2)),
    "one number": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3), None, [2], [1], [1], 1)),
    "channels last": (aten.conv2d.default, (_images(2, 4, 9, 8), torch.randn(6, 4, 3, 3))),
    "channels last weights": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), _images(6, 4, 3, 3))),
    "part of channels last": (aten.conv2d.default, (_images(2, 4, 9, 8)[:, :, ::2], torch.randn(6, 4, 3, 3))),
    "permuted": (aten.conv2d.default, (torch.randn(2, 9, 8, 6).permute(0, 3, 1, 2)[:, :2], torch.randn(6, 2, 3, 3))),
    "one channel": (aten.conv2d.default, (_images(2, 1, 9, 8), torch.randn(6, 1, 3, 3))),
    "pointwise": (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 1, 1))),
    "batch norm": (aten.batch_norm.default, (_images(2, 4, 3, 3), *[torch.ones(4)] * 4, False, 0.1, 1e-5, False)),
    "batch norm, no weights": (
        aten.batch_norm.default, (torch.randn(2, 4), None, None, torch.ones(4), torch.ones(4), False, 0.1, 1e-5, False),
    ),
    "layer norm": (aten.layer_norm.default, (torch.randn(3, 2, 4, 5).transpose(0, 1), [4, 5], torch.ones(4, 5), None)),
    "linear": (aten.linear.default, (torch.randn(5, 2, 3).transpose(0, 1), torch.randn(7, 3), torch.randn(7))),
    "reshape": (aten.reshape.default, (torch.randn(2, 6, 4), [-1, 3, 8])),
    "view": (aten.view.default, (torch.randn(2, 6, 4)[1], [24])),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_shortcuts_give_the_shapes_and_strides_that_the_operators_give(name):
    func, args = CALLS[name]
    expected, found = func(*args), RESULTS[func](*args)
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 3, 3, 3))),
        (aten.conv2d.default, (torch.randn(2, 4, 2, 2), torch.randn(6, 4, 3, 3))),
        (aten.conv2d.default, (torch.randn(4, 9, 8), torch.randn(6, 4, 3, 3))),
        (aten.conv2d.default, (torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3).half())),
        (aten.linear.default, (torch.randn(2, 4), torch.randn(7, 4).half())),
        (aten.batch_norm.default, (torch.randn(2, 4), None, None, None, None, False, 0.1, 1e-5, False)),
        (aten.batch_norm.default, (torch.randn(2, 4), None, None, *[torch.ones(3)] * 2, False, 0.1, 1e-5, False)),
        (aten.layer_norm.default, (torch.randn(2, 4), [4], torch.ones(3))),
        (aten.linear.default, (torch.randn(2, 4), torch.randn(7, 3))),
        (aten.reshape.default, (torch.randn(2, 4), [3, -1])),
        (aten.reshape.default, (torch.randn(2, 4).T, [8])),
        (aten.view.default, (torch.randn(2, 4), [-1, -1])),
    ],
)  # fmt: skip
def test_what_they_do_not_know_is_left_to_torch(func, args):
    assert RESULTS[func](*args) is None
