"""Record the operators that a model runs, on fake tensors: no data, next to no memory, no side effects."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optkit.core.attention import spelled_out
from optkit.core.calls import ERRORS, Inputs, call
from optkit.core.compat import torch_trees as pytree
from optkit.core.compat.torch_operators import is_operator, schema
from optkit.core.compat.torch_tracing import (
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    no_dispatch,
    suggest_memory_format,
)
from optkit.core.errors import UserError, first_line
from optkit.core.model_copy import sharing
from optkit.core.nested import outputs_of, tensors_of
from optkit.prune.trace.values import Shape

log = logging.getLogger(__name__)


@dataclass
class Step:
    """One call of an operator.

    Attributes:
        where: path of the module that calls it.
        called: the operator that the module calls; it may consist of several steps.
        target: the operator, as in the graphs of ``torch.export``.
        args: what it is called with; parameters are the model's own, buffers are copies, other tensors are fake.
        kwargs: by name.
        out: the tensors it returns.
        shapes: the same with a ``Shape`` for every tensor, as of this moment.
    """

    where: str
    called: Any
    target: Any
    args: tuple
    kwargs: dict[str, Any]
    out: Any
    shapes: Any


@dataclass
class Recording:
    """The operators that a model runs, in order.

    Attributes:
        tensors: parameters and buffers by name, as the steps hold them.
        steps: the calls.
        outputs: the tensors that the model returns.
    """

    tensors: dict[str, torch.Tensor]
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

    # before other hooks, which may compute weights of the module
    handles = [m.register_forward_pre_hook(enter, prepend=True) for m in names]
    handles += [m.register_forward_hook(leave) for m in names]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    """Notes every operator that runs inside.

    Fake tensors take a third of a millisecond for most operators and several for some. Here an operator runs on meta
    tensors, once for all arguments laid out alike, and falls back to fake tensors where its result is not plain.
    """

    supports_higher_order_operators = True

    def __init__(self, stack: list[str], fake: FakeTensorMode, is_known: Callable[[Any], bool]):
        super().__init__()
        self.stack, self.fake, self.steps = stack, fake, list[Step]()
        self._is_known = is_known
        self._called: Any = None
        self._results: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = NotImplemented if self._is_known(func) else self._in_parts(func, args, kwargs)
        if out is not NotImplemented:
            return out
        out = self._plain_result(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(out)):
            where = self.stack[-1] if self.stack else ""
            called = func if self._called is None else self._called
            self.steps.append(Step(where, called, func, args, kwargs, out, pytree.tree_map(_shape, out)))
        return out

    def _in_parts(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What the operator returns, the operators it consists of recorded in its place; NotImplemented if none are."""
        parts = _decompositions().get(func)
        if parts is None:
            return NotImplemented
        before, called = len(self.steps), self._called
        self._called = called or func
        try:
            with self:
                return parts(*args, **kwargs)
        except ERRORS as error:
            del self.steps[before:]
            log.debug("%s is not taken apart: %s", func, first_line(error))
            return NotImplemented
        finally:
            self._called = called

    def _plain_result(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What the operator returns, tensors without data; None if it takes fake tensors to tell."""
        if not _is_plain(func) or any(isinstance(value, torch.device) for value in (*args, *kwargs.values())):
            return None
        tensors: list[torch.Tensor] = []
        key = (func, _key(args, tensors), _key(tuple(kwargs.items()), tensors))
        if not tensors or any(_is_special(tensor) or tensor.device != tensors[0].device for tensor in tensors):
            return None
        if func.is_view and not tensors[0].is_inference():
            return None  # torch counts the versions of these, and cannot of what is made here
        if "conv" in schema(func).name and any(suggest_memory_format(t) != torch.contiguous_format for t in tensors):
            return None  # how the result lies in memory depends on the device
        with no_dispatch():
            if key not in self._results:
                self._results[key] = _run_on_meta(func, args, kwargs)
            return pytree.tree_map_only((_Layout, int), lambda leaf: self._tensor(leaf, tensors), self._results[key])

    def _tensor(self, found: _Layout | int, tensors: list[torch.Tensor]) -> torch.Tensor:
        """A new tensor, or the one of the operator's own that it returns as it is."""
        if isinstance(found, int):
            if isinstance(tensors[found], FakeTensor):
                return tensors[found]
            found = _Layout.of(tensors[found])  # what is done to it must not be done to the model's parameter
        return FakeTensor(self.fake, found.meta(), tensors[0].device)


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """How torch writes operators by means of others."""
    return dict(torch.export.default_decompositions().items())


@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Layout:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def meta(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


@functools.cache
def _is_plain(func: Any) -> bool:
    """Whether what the operator returns follows from the layouts of its arguments, on every device alike."""
    if not is_operator(func) or func.namespace != "aten" or schema(func).is_mutable:
        return False
    if any(word in schema(func).name for word in ("lift", "attention")):
        return False  # the values of constants are known; how an attention's result lies depends on the device
    return all(str(value.type) in ("Tensor", "List[Tensor]") for value in schema(func).returns)


def _key(value: Any, tensors: list[torch.Tensor]) -> Any:
    """What the result depends on, hashable; the tensors in it are added to a list."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_key(item, tensors) for item in value])
    return type(value), value


def _is_special(tensor: torch.Tensor) -> bool:
    """Whether there is more to a tensor than its layout."""
    if isinstance(tensor, FakeTensor):
        return tensor.constant is not None or tensor.is_complex()
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    return not plain or tensor.is_quantized or tensor.is_complex()


def _run_on_meta(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The layouts of what an operator returns, places of those it was given, or None if meta tensors do not say."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _Layout.of(t).meta(), (args, kwargs))
    try:
        out = func(*args, **kwargs)
    except ERRORS:
        return None
    given = {id(tensor): place for place, tensor in enumerate(tensors_of([*args, *kwargs.values()]))}
    return pytree.tree_map(lambda t: given[id(t)] if id(t) in given else _Layout.of(t), out)


def _shape(value: Any) -> Any:
    return Shape(tuple(value.shape)) if isinstance(value, torch.Tensor) else value


def record(model: nn.Module, inputs: Inputs, is_known: Callable[[Any], bool] | None = None) -> Recording:
    """The operators of one run of a model as it stands (training or evaluation mode), with static shapes.

    These are the operators that a graph of ``torch.export`` holds (linear, layer norm, attention stay whole), in a
    fifth of its time. Control flow that depends on data is refused, as it is there. What runs is a copy that shares the
    parameters: a forward pass may keep tensors, fake ones here, and write to buffers.

    Args:
        model: any module.
        inputs: a tuple of arguments or a dict of keyword arguments.
        is_known: says of an operator whether it is recorded as it is; others are taken apart where torch knows how.
            None records all as they are.

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
    try:
        model = sharing(model)
        # in inference mode, operators that consist of others reach the recorder whole
        with (
            spelled_out(),
            running(model) as stack,
            torch.inference_mode(),
            fake,
            _Recorder(stack, fake, is_known or (lambda _: True)) as recorder,
        ):
            outputs = outputs_of(call(model, copies))
    except ERRORS as error:
        where = f"{stack[-1]}: " if stack and stack[-1] else ""
        raise UserError(
            f"{type(model).__name__} cannot be traced: {where}{first_line(error)}",
            fix="it must run on the example inputs, without control flow that depends on their values",
        ) from error
    if not outputs:
        raise UserError(f"{type(model).__name__} returns no tensors", fix="it must return tensors")
    return Recording(dict([*model.named_parameters(), *model.named_buffers()]), recorder.steps, outputs)
