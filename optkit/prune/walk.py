"""Walk the operators that a model runs with labels instead of numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

<<<<<<< HEAD
from optkit.prune.graph import Trace, Value
from optkit.prune.record import Recording, Step
=======
from optkit.prune.graph import Call, Trace, Value
>>>>>>> 6d8d293 (Blocks of a graph and a table of their latencies)
from optkit.prune.rules import apply_rule
from optkit.prune.rules_layout import blank


def walk(model: nn.Module, recording: Recording, trace: Trace) -> None:
    """Carry labels through what was recorded of a model, adding what is found to ``trace``."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    names = {id(tensor): name for name, tensor in tensors.items()}
    uses: Counter[str] = Counter()
    for step in recording.steps:
        uses.update({names[id(leaf)] for leaf in pytree.tree_leaves((step.args, step.kwargs)) if id(leaf) in names})
    env = {id(tensor): _parameter(name, tensor, trace, uses[name]) for name, tensor in tensors.items()}
    for step in recording.steps:
        _carry(step, env, trace)
    for tensor in recording.outputs:
        for axis in _value(tensor, env).axes:
            trace.space.freeze(axis, "model output")


<<<<<<< HEAD
def _parameter(name: str, tensor: torch.Tensor, trace: Trace, uses: int) -> Value:
    if not trace.uses.get(name):
        cuttable = tensor.is_floating_point() and uses > 0
        trace.params[name] = [trace.space.fresh(n) if n > 1 and cuttable else None for n in tensor.shape]
    trace.uses[name] = max(uses, trace.uses.get(name, 0))
    return Value(tuple(tensor.shape), list(trace.params[name]), param=name)


def _value(tensor: torch.Tensor, env: dict[int, Value]) -> Value:
    return env[id(tensor)] if id(tensor) in env else blank(tuple(tensor.shape))
=======
def _placeholder(node: torch.fx.Node, target: str | None, trace: Trace, uses: Counter[str]) -> Any:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return meta
    shape = tuple(int(n) for n in meta.shape)
    if target is None:
        return Value(shape, [None] * len(shape), dtype=meta.dtype)
    name = trace.aliases.get(target.removeprefix("model."), target.removeprefix("model."))
    if not (trace.uses.get(name) or uses[name]):
        cuttable = meta.is_floating_point() and bool(node.users)
        trace.params[name] = [trace.space.fresh(n) if n > 1 and cuttable else None for n in shape]
    uses[name] += sum(not _is_check(user) for user in node.users)
    return Value(shape, list(trace.params[name]), param=name, dtype=meta.dtype)


def _run(graph_module: torch.fx.GraphModule, env: dict, trace: Trace) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            held = operator.attrgetter(node.target)(graph_module)
            shape = tuple(held.shape) if isinstance(held, torch.Tensor) else ()
            env[node] = Value(shape, [None] * len(shape), dtype=held.dtype) if isinstance(held, torch.Tensor) else held
        elif node.op == "call_function" and not _is_check(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                env[node] = _inline(node, args, kwargs, trace)
            else:
                _enter(node, trace)
                counted = len(trace.macs)
                env[node] = apply_rule(trace, node, args, kwargs)
                _note(node, env, trace)
                if node.target is not operator.getitem:
                    _set_types(node, env[node])
                    trace.calls.append(Call(node.target, args, kwargs, env[node], len(trace.macs) > counted))


def _set_types(node: torch.fx.Node, result: Any) -> None:
    for value, meta in zip(pytree.tree_leaves(result), pytree.tree_leaves(node.meta.get("val")), strict=False):
        if isinstance(value, Value) and isinstance(meta, torch.Tensor):
            value.dtype = meta.dtype
>>>>>>> 6d8d293 (Blocks of a graph and a table of their latencies)


def _carry(step: Step, env: dict[int, Value], trace: Trace) -> None:
    trace.space.where = step.where
    name = getattr(step.target, "__name__", str(step.target)).split(".")[0]
    trace.space.operator = f"{name} in {step.where or 'the model'}"
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _value(t, env), (step.args, step.kwargs))
    result = apply_rule(trace, step.target, step.shapes, args, kwargs)
    for tensor, value in zip(pytree.tree_leaves(step.out), pytree.tree_leaves(result), strict=True):
        env[id(tensor)] = value
    held = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    if isinstance(result, Value):
        held.append(result)
        trace.shapes[step.where] = result
    labels = [axis for v in held for axis in v.axes if axis is not None]
    if labels:
        trace.touched.append((step.where, labels))
