"""Walk an exported graph with labels instead of numbers."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from optkit.prune.graph import Trace, Value
from optkit.prune.rules import apply_rule


def walk(program: torch.export.ExportedProgram, trace: Trace) -> None:
    """Carry labels through an exported graph, adding what is found to ``trace``."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    env: dict[torch.fx.Node, Any] = {}
    uses: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _placeholder(node, targets.get(node.name), trace, uses)
    trace.uses = {name: max(count, trace.uses.get(name, 0)) for name, count in {**trace.uses, **uses}.items()}
    _run(program.graph_module, env, trace)
    outputs = next(node for node in program.graph.nodes if node.op == "output")
    for value in pytree.tree_leaves(torch.fx.map_arg(outputs.args, lambda n: env[n])):
        if isinstance(value, Value):
            for axis in value.axes:
                trace.space.freeze(axis, "model output")


def _placeholder(node: torch.fx.Node, target: str | None, trace: Trace, uses: Counter[str]) -> Any:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return meta
    shape = tuple(int(n) for n in meta.shape)
    if target is None:
        return Value(shape, [None] * len(shape))
    name = trace.aliases.get(target.removeprefix("model."), target.removeprefix("model."))
    if not (trace.uses.get(name) or uses[name]):
        cuttable = meta.is_floating_point() and bool(node.users)
        trace.params[name] = [trace.space.fresh(n) if n > 1 and cuttable else None for n in shape]
    uses[name] += sum(not _is_check(user) for user in node.users)
    return Value(shape, list(trace.params[name]), param=name)


def _run(graph_module: torch.fx.GraphModule, env: dict, trace: Trace) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            held = operator.attrgetter(node.target)(graph_module)
            shape = tuple(held.shape) if isinstance(held, torch.Tensor) else ()
            env[node] = Value(shape, [None] * len(shape)) if isinstance(held, torch.Tensor) else held
        elif node.op == "call_function" and not _is_check(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                env[node] = _inline(node, args, kwargs, trace)
            else:
                _enter(node, trace)
                env[node] = apply_rule(trace, node, args, kwargs)
                _note(node, env, trace)


def _is_check(node: torch.fx.Node) -> bool:
    return "_assert" in str(node.target)


def _enter(node: torch.fx.Node, trace: Trace) -> None:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0].split("@")[0] if stack else ""
    trace.space.where = path.removeprefix("model").removeprefix(".")
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    trace.space.operator = f"{name} in {trace.space.where or 'the model'}"


def _note(node: torch.fx.Node, env: dict, trace: Trace) -> None:
    where, value = trace.space.where, env[node]
    held = [
        v
        for v in pytree.tree_leaves(torch.fx.map_arg((node.args, node.kwargs), lambda n: env[n]))
        if isinstance(v, Value)
    ]
    if isinstance(value, Value):
        held.append(value)
        trace.shapes[where] = value
        base = node.args[0] if node.args else None
        if isinstance(base, torch.fx.Node) and node.target is not operator.getitem and _mutates(node.target):
            env[base] = value
    labels = [axis for v in held for axis in v.axes if axis is not None]
    if labels:
        trace.touched.append((where, np.unique(np.concatenate(labels))))


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    first = schema.arguments[0] if schema is not None and schema.arguments else None
    return first is not None and first.alias_info is not None and first.alias_info.is_write


def _inline(node: torch.fx.Node, args: Any, kwargs: Any, trace: Trace) -> Any:
    """Walk the subgraph of a wrapper (autocast, no_grad); freeze what enters any other higher-order operator."""
    bodies = [k for k, arg in enumerate(args) if isinstance(arg, torch.fx.GraphModule)]
    if len(bodies) != 1 or not node.target.__name__.startswith("wrap_with"):
        _enter(node, trace)
        return apply_rule(trace, node, args, kwargs)
    body, inputs = args[bodies[0]], args[bodies[0] + 1 :]
    inner = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    _run(body, inner, trace)
    output = next(n for n in body.graph.nodes if n.op == "output")
    return torch.fx.map_arg(output.args[0], lambda n: inner[n])
