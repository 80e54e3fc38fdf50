"""Walk the operators that a model runs with labels instead of numbers."""

from __future__ import annotations

from collections import Counter

import torch

from optkit.core.compat import torch_trees as pytree
from optkit.prune.trace.randomness import draws
from optkit.prune.trace.recorder import Recording, Step
from optkit.prune.trace.rules.dispatch import apply_rule, operator_name
from optkit.prune.trace.rules.layout import blank, freeze_all
from optkit.prune.trace.rules.scale import forfeit
from optkit.prune.trace.values import Call, Trace, Value

INPUT, OUTPUT = "model input", "model output"


def walk(recording: Recording, trace: Trace, training: bool = False) -> None:
    """Carry labels through what was recorded of a model, adding what is found to ``trace``.

    Args:
        recording: of the model.
        trace: gets what is found.
        training: whether the model was in training mode, where it may draw random numbers as it likes.
    """
    names = {id(tensor): name for name, tensor in recording.tensors.items()}
    reads = Counter(id(leaf) for step in recording.steps for leaf in _tensors(step))
    uses = Counter({name: reads[number] for number, name in names.items()})
    env = {id(tensor): _parameter(name, tensor, trace, uses[name]) for name, tensor in recording.tensors.items()}
    for step in recording.steps:
        _carry(step, env, trace, reads, training)
    _check_norms(recording, trace, reads)
    trace.space.operator = OUTPUT
    for tensor in recording.outputs:
        value = _value(tensor, env)
        forfeit(trace, value.debts)
        for axis in value.axes:
            trace.space.freeze(axis)


def _tensors(step: Step) -> set[torch.Tensor]:
    return {leaf for leaf in pytree.tree_leaves((step.args, step.kwargs)) if isinstance(leaf, torch.Tensor)}


def _parameter(name: str, tensor: torch.Tensor, trace: Trace, uses: int) -> Value:
    if not trace.uses.get(name):
        cuttable = (tensor.is_floating_point() or tensor.is_complex()) and uses > 0
        trace.params[name] = [trace.space.fresh(n) if n > 1 and cuttable else None for n in tensor.shape]
    trace.uses[name] = max(uses, trace.uses.get(name, 0))
    zero = [(name, dim) not in trace.spared for dim in range(tensor.ndim)]
    axes = list(trace.params[name])
    return Value(tuple(tensor.shape), axes, zero, param=name, sources=frozenset((name,)), dtype=tensor.dtype)


def _value(tensor: torch.Tensor, env: dict[int, Value]) -> Value:
    """What is known of a tensor; one that no operator has made is an input."""
    if id(tensor) not in env:
        value = blank(tuple(tensor.shape), INPUT)
        value.dtype, value.data = tensor.dtype, True
        env[id(tensor)] = value
    return env[id(tensor)]


def _carry(step: Step, env: dict[int, Value], trace: Trace, reads: Counter[int], training: bool) -> None:
    space, called = trace.space, step.called
    space.where = step.where
    space.operator = f"{operator_name(called)} in {step.where or 'the model'}"
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _value(t, env), (step.args, step.kwargs))
    held = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    reasons = [reason for v in held for _, reason in _whole(v)]
    space.whole_by = next((r for r in reasons if r != INPUT), INPUT if reasons else "")
    counted, frozen = len(trace.macs), len(space.frozen)
    if not training and draws(step.target, args, kwargs):
        trace.random.append(space.operator)
        space.operator += ", which is random"
        result = freeze_all(trace, step.shapes, held)
    else:
        result = apply_rule(trace, step.target, step.shapes, args, kwargs)
    stopped = any(reason == space.operator for _, reason in space.frozen[frozen:])
    for tensor, value in zip(pytree.tree_leaves(step.out), pytree.tree_leaves(result), strict=True):
        env[id(tensor)] = value
        if isinstance(value, Value):
            value.dtype = tensor.dtype
            value.data = any(v.data for v in held)
            value.sources = frozenset() if value.data else frozenset().union(*(v.sources for v in held))
            value.whole_by = value.whole_by or _inherited(value, held, space.operator if stopped else space.whole_by)
            if reads[id(tensor)] > 1:
                value.param = ""  # a factor may be made up for in one place only
    trace.calls.append(Call(step.target, args, kwargs, result, len(trace.macs) > counted))
    if isinstance(result, Value):
        held.append(result)
        trace.shapes[step.where] = result
    labels = [axis for v in held for axis in v.axes if axis is not None]
    if labels:
        trace.touched.append((step.where, labels))


def _whole(value: Value) -> list[tuple[int, str]]:
    """Dimensions that stay whole, counted from the last (-1), and why."""
    rank = len(value.shape)
    found = zip(range(-rank, 0), value.axes, value.shape, value.whole_by, strict=False)
    return [(k, reason) for k, axis, size, reason in found if axis is None and size > 1 and reason]


def _inherited(value: Value, held: list[Value], reason: str) -> list[str]:
    """Why dimensions of a result stay whole: as those of operands at the same place do, or for another reason."""
    reasons = [reason] * len(value.shape)
    for k, earlier in [pair for v in reversed(held) for pair in _whole(v)]:
        if -k <= len(reasons):
            reasons[k] = earlier
    return reasons


def _check_norms(recording: Recording, trace: Trace, reads: Counter[int]) -> None:
    """Freeze parameters of a weight norm that are read elsewhere, too."""
    normed = Counter(
        id(leaf) for step in recording.steps if operator_name(step.target) == "_weight_norm" for leaf in _tensors(step)
    )
    for pair in [(scale, direction) for scale, (direction, _) in trace.norms.items()]:
        if any(normed[number] != reads[number] for number in (id(recording.tensors[name]) for name in pair)):
            for name in pair:
                for axis in trace.params[name]:
                    trace.space.freeze(axis, f"weight norm of {pair[1]}, which is read without it, too")
