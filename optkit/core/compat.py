"""Private names of other libraries: what optkit needs of them and finds nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._subclasses import FakeTensor

RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` was given to make this one; None for any other module."""
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None  # type: ignore[return-value]


@contextmanager
def recurrence_by_shape() -> Iterator[None]:
    """Tells an export the shapes of what recurrent layers give, instead of letting it unroll them to find out.

    An exported graph keeps a GRU or LSTM as one operator. To learn its output's shape, torch runs it step by step on
    fake tensors, which takes a second and more for each step of two bidirectional layers.
    """
    operators = [getattr(torch.ops.aten, name).input for name in RECURRENT]
    before = [dict(operator.py_kernels) for operator in operators]
    try:
        for operator in operators:
            for key in KEYS:
                if key in operator.py_kernels:
                    operator.py_kernels[key] = _by_shape(operator.py_kernels[key])
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in zip(operators, before, strict=True):
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()


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
