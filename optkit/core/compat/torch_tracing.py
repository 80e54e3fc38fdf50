"""Tensors without data, and the operators that run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optkit.core.compat.versions import attribute, private

if TYPE_CHECKING:
    from torch._prims_common import suggest_memory_format
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._mode_utils import no_dispatch
    from torch.utils._python_dispatch import TorchDispatchMode
else:
    FakeTensor = private("torch._subclasses.fake_tensor.FakeTensor")
    """A tensor with a shape, a type and a device, and no data (torch 2.14)."""
    FakeTensorMode = private("torch._subclasses.fake_tensor.FakeTensorMode")
    """Inside it, operators give fake tensors (torch 2.14)."""
    TorchDispatchMode = private("torch.utils._python_dispatch.TorchDispatchMode")
    """The base of modes that see every operator that runs inside them (torch 2.14)."""
    no_dispatch = private("torch.utils._mode_utils.no_dispatch")
    """Inside it, no mode sees the operators that run (torch 2.14)."""
    suggest_memory_format = private("torch._prims_common.suggest_memory_format")
    """The memory format that a tensor's strides follow, by the rule of torch's kernels (torch 2.14)."""

RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "no_dispatch",
    "recurrence_by_shape",
    "suggest_memory_format",
]


@contextmanager
def recurrence_by_shape() -> Iterator[None]:
    """Tells an export the shapes of what recurrent layers give, without unrolling them to find out (torch 2.14).

    An exported graph keeps a GRU or LSTM as one operator. To learn its output's shape, torch runs it step by step on
    fake tensors, which takes a second and more for each step of two bidirectional layers.
    """
    keys = [getattr(private("torch._C.DispatchKey"), name) for name in ("CompositeImplicitAutograd", "Autograd")]
    operators = [getattr(torch.ops.aten, name).input for name in RECURRENT]
    before = [dict(attribute(operator, "py_kernels")) for operator in operators]
    try:
        for operator in operators:
            for key in keys:
                if key in operator.py_kernels:
                    operator.py_kernels[key] = _by_shape(operator.py_kernels[key])
            attribute(operator, "_dispatch_cache").clear()
        yield
    finally:
        for operator, kernels in zip(operators, before, strict=True):
            operator.py_kernels.update(kernels)
            attribute(operator, "_dispatch_cache").clear()


def _by_shape(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that gives fake tensors of the right shape for fake tensors, and computes everything else."""

    def shapes(
        x: Tensor, state: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if type(x) is not FakeTensor:
            rest = (params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
            found: tuple[Tensor, ...] = kernel(x, state, *rest)
            return found
        states = [state] if isinstance(state, Tensor) else list(state)
        width = states[0].shape[-1] * (2 if bidirectional else 1)
        return (x.new_empty((*x.shape[:-1], width)), *(s.new_empty(s.shape) for s in states))

    return shapes
