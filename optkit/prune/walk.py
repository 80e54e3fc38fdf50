"""Walk the operators that a model runs with labels instead of numbers."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils import _pytree as pytree

from optkit.prune.graph import Call, Trace, Value
from optkit.prune.record import Recording, Step
from optkit.prune.rules import apply_rule
from optkit.prune.rules_layout import blank
from optkit.prune.rules_scale import forfeit


def walk(recording: Recording, trace: Trace) -> None:
    """Carry labels through what was recorded of a model, adding what is found to ``trace``."""
    names = {id(tensor): name for name, tensor in recording.tensors.items()}
    uses: Counter[str] = Counter()
    for step in recording.steps:
        uses.update({names[id(leaf)] for leaf in pytree.tree_leaves((step.args, step.kwargs)) if id(leaf) in names})
    env = {id(tensor): _parameter(name, tensor, trace, uses[name]) for name, tensor in recording.tensors.items()}
    for step in recording.steps:
        _carry(step, env, trace)
    trace.space.operator = "model output"
    for tensor in recording.outputs:
        value = _value(tensor, env)
        forfeit(trace, value.debts)
        for axis in value.axes:
            trace.space.freeze(axis)


def _parameter(name: str, tensor: torch.Tensor, trace: Trace, uses: int) -> Value:
    if not trace.uses.get(name):
        cuttable = tensor.is_floating_point() and uses > 0
        trace.params[name] = [trace.space.fresh(n) if n > 1 and cuttable else None for n in tensor.shape]
    trace.uses[name] = max(uses, trace.uses.get(name, 0))
    return Value(tuple(tensor.shape), list(trace.params[name]), param=name, dtype=tensor.dtype)


def _value(tensor: torch.Tensor, env: dict[int, Value]) -> Value:
    if id(tensor) not in env:
        env[id(tensor)] = blank(tuple(tensor.shape))
        env[id(tensor)].dtype = tensor.dtype
    return env[id(tensor)]


def _carry(step: Step, env: dict[int, Value], trace: Trace) -> None:
    trace.space.where = step.where
    name = getattr(step.target, "__name__", str(step.target)).split(".")[0]
    trace.space.operator = f"{name} in {step.where or 'the model'}"
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _value(t, env), (step.args, step.kwargs))
    counted = len(trace.macs)
    result = apply_rule(trace, step.target, step.shapes, args, kwargs)
    for tensor, value in zip(pytree.tree_leaves(step.out), pytree.tree_leaves(result), strict=True):
        env[id(tensor)] = value
        if isinstance(value, Value):
            value.dtype = tensor.dtype
    trace.calls.append(Call(step.target, args, kwargs, result, len(trace.macs) > counted))
    held = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    if isinstance(result, Value):
        held.append(result)
        trace.shapes[step.where] = result
    labels = [axis for v in held for axis in v.axes if axis is not None]
    if labels:
        trace.touched.append((step.where, labels))
