"""Record the operators that a model runs, on fake tensors: no data, next to no memory, no side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from optkit.core.errors import UserError
from optkit.prune.graph import Inputs, Shape, call, tensors_of

ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError, AttributeError, KeyError)


@dataclass
class Step:
    """One call of an operator.

    Attributes:
        where: path of the module that calls it.
        target: the operator, as in the graphs of ``torch.export``.
        args: what it is called with; parameters and buffers are the model's own, other tensors are fake.
        kwargs: by name.
        out: the tensors it returns.
        shapes: the same with a ``Shape`` for every tensor, as of this moment.
    """

    where: str
    target: Any
    args: tuple
    kwargs: dict[str, Any]
    out: Any
    shapes: Any


@dataclass
class Recording:
    """The operators that a model runs, in order, and the tensors that it returns."""

    steps: list[Step]
    outputs: list[torch.Tensor]


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules inside whose forward the program is, innermost last."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(names[module])

    def leave(*_: Any) -> None:
        stack.pop()

    handles = [m.register_forward_pre_hook(enter) for m in names] + [m.register_forward_hook(leave) for m in names]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, stack: list[str]):
        super().__init__()
        self.stack, self.steps = stack, list[Step]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = RESULTS[func](*args) if func in RESULTS and not kwargs else None
        if out is None:
            out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(out)):
            where = self.stack[-1] if self.stack else ""
            self.steps.append(Step(where, func, args, kwargs or {}, out, pytree.tree_map(_shape, out)))
        return out


def _of_one_type(*tensors: torch.Tensor | None) -> bool:
    return len({t.dtype for t in tensors if t is not None}) == 1


def _batch_norm(x: torch.Tensor, *of_channels: Any) -> torch.Tensor | None:
    *tensors, training = of_channels[:5]
    known = training or (tensors[2] is not None and tensors[3] is not None)
    fits = known and x.dim() > 1 and all(t is None or tuple(t.shape) == (x.shape[1],) for t in tensors)
    return torch.empty_like(x) if fits else None


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor | None:
    fits = weight.dim() == 2 and x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    fits = fits and _of_one_type(x, weight, bias)
    return x.new_empty(*x.shape[:-1], weight.shape[0]) if fits else None


def _layer_norm(x: torch.Tensor, shape: Any, *of_features: Any) -> torch.Tensor | None:
    shapes = [x.shape[-len(shape) :], *(t.shape for t in of_features[:2] if t is not None)]
    return x.new_empty(x.shape) if all(tuple(s) == tuple(shape) for s in shapes) else None


def _conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = (1, 1), padding: Any = (0, 0),
    dilation: Any = (1, 1), groups: int = 1,
) -> torch.Tensor | None:  # fmt: skip
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    if (bias is not None and bias.shape != weight.shape[:1]) or not _of_one_type(x, weight, bias):
        return None
    pairs = [p if len(p) == 2 else (*p, *p) for p in (stride, padding, dilation)]
    size = [
        (n + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for n, kernel, step, pad, spread in zip(x.shape[2:], weight.shape[2:], *pairs, strict=True)
    ]
    if min(size) <= 0:
        return None
    last = torch.channels_last in (suggest_memory_format(x), suggest_memory_format(weight))
    layout = torch.channels_last if last else torch.contiguous_format
    return x.new_empty(x.shape[0], weight.shape[0], *size).to(memory_format=layout)


def _reshape(x: torch.Tensor, shape: Any) -> torch.Tensor | None:
    known = math.prod(n for n in shape if n != -1)
    sizes = [x.numel() // max(known, 1) if n == -1 else n for n in shape]
    if not x.is_contiguous() or math.prod(sizes) != x.numel() or list(shape).count(-1) > 1 or not x.numel():
        return None
    strides = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
    return x.as_strided(sizes, strides, x.storage_offset())


# what fake tensors make a long detour for, most of a recording's time: its result where the arguments fit, else None
RESULTS = {
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten.conv2d.default: _conv2d,
    torch.ops.aten.layer_norm.default: _layer_norm,
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.reshape.default: _reshape,
    torch.ops.aten.view.default: _reshape,
}


def _shape(value: Any) -> Any:
    return Shape(tuple(value.shape)) if isinstance(value, torch.Tensor) else value


def record(model: nn.Module, inputs: Inputs) -> Recording:
    """The operators of one run of a model as it stands (training or evaluation mode), with static shapes.

    These are the operators that a graph of ``torch.export`` holds (linear, layer norm, attention stay whole), in a
    fifth of its time. Control flow that depends on data is refused, as it is there.

    Raises:
        UserError: if the inputs are neither a tuple nor a mapping, or the model cannot run on fake tensors.
    """
    if not isinstance(inputs, (tuple, list, Mapping)):
        raise UserError(
            f"example_inputs is a {type(inputs).__name__}",
            fix="give a tuple of arguments or a dict of keyword arguments",
        )
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copies = pytree.tree_map_only(
        torch.Tensor, fake.from_tensor, dict(inputs) if isinstance(inputs, Mapping) else inputs
    )
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whole encoder layers in one operator would say nothing
    try:
        # in inference mode, operators that consist of others reach the recorder whole
        with running(model) as stack, torch.inference_mode(), fake, _Recorder(stack) as recorder:
            outputs = tensors_of(call(model, copies))
    except ERRORS as error:
        line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise UserError(
            f"{type(model).__name__} cannot be traced: {line}",
            fix="it must run on the example inputs, without control flow that depends on their values",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if not outputs:
        raise UserError(f"{type(model).__name__} returns no tensors", fix="it must return tensors")
    return Recording(recorder.steps, outputs)
