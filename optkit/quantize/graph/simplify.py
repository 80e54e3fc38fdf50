"""What an exported graph says the long way: weights that it computes from parameters, and padding by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from optkit.core.compat.torch_operators import is_operator, schema
from optkit.quantize.graph.annotate import CONVOLUTIONS, LINEAR, aten, calls, is_float, tensor_at
from optkit.quantize.graph.norms import BATCH_NORM, TRANSPOSED, set_parameter

# with ``"same"`` or ``"valid"`` for the padding, and the same with numbers
BY_NAME: dict[object, Callable[..., Any]] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def simplify(graph: GraphModule) -> None:
    """Folds computed weights and writes padding as numbers, in place; the answers stay the same."""
    fold_computed_weights(graph)
    write_padding_as_numbers(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def write_padding_as_numbers(graph: GraphModule) -> None:
    """Gives convolutions with ``padding="same"`` or ``"valid"`` their numbers.

    Where ``"same"`` needs one more on the right than on the left, a padding of its own comes first, as in torch.
    """
    for node in calls(graph, BY_NAME):
        defaults = (None, None, None, 1, "valid", 1, 1)
        given: list[Any] = [*node.args, *defaults[len(node.args) :]]
        x, weight, bias, stride, padding, dilation, groups = given
        sizes = weight.meta["val"].shape[2:]
        strides, each = _for_each(stride, len(sizes)), _for_each(dilation, len(sizes))
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(each, sizes, strict=True)]
        if any(t % 2 for t in total):
            more = [n for t in reversed(total) for n in (0, t % 2)]
            with graph.graph.inserting_before(node):
                padded = graph.graph.call_function(aten.constant_pad_nd.default, (x, more, 0.0))
            padded.meta["val"] = aten.constant_pad_nd.default(x.meta["val"], more, 0.0)
            x = padded
        node.target = BY_NAME[node.target]
        node.args = (x, weight, bias, strides, [t // 2 for t in total], each, groups)


def _for_each(given: Any, dimensions: int) -> list[int]:
    """One number for each dimension."""
    numbers = list(given) if isinstance(given, (list, tuple)) else [given]
    return numbers * dimensions if len(numbers) == 1 else numbers


@torch.no_grad()
def fold_computed_weights(graph: GraphModule) -> int:
    """Computes, in place, the weights and biases of layers and norms that the graph computes from parameters alone.

    Weight normalization, other parametrizations and products of parameters become plain weights. Each is computed on
    its own, and what it was computed from goes where nothing else reads it, so the memory stays that of the model.

    Returns:
        How many were folded.
    """
    constant = _constants(graph)
    folded: dict[Any, str] = {}
    keys: dict[Node, Any] = {}
    for operand in dict.fromkeys(_operands(graph)):
        if operand.op == "get_attr" or operand not in constant or not is_float(operand):
            continue
        key = _key(operand, keys)
        if key not in folded:
            folded[key] = _free_name(graph, operand)
            found: Tensor = _evaluate(graph, operand, {})
            set_parameter(graph, folded[key], found.detach().clone(memory_format=torch.contiguous_format))
        with graph.graph.inserting_before(operand):
            weight = graph.graph.get_attr(folded[key])
        weight.meta["val"] = operand.meta["val"]
        operand.replace_all_uses_with(weight)
    if folded:
        graph.graph.eliminate_dead_code()
        drop_unused(graph)
    return len(folded)


def drop_unused(graph: GraphModule) -> None:
    """Removes the parameters and buffers that the graph does not read."""
    used = {_place(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]:
        owner, leaf = _place(graph, name)
        if (owner, leaf) not in used and hasattr(owner, leaf):  # a module may have two names
            delattr(owner, leaf)


def _place(graph: GraphModule, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return graph.get_submodule(path), leaf


def _operands(graph: GraphModule) -> Iterator[Node]:
    """Weights, biases and statistics of the layers and norms."""
    for node in calls(graph, CONVOLUTIONS | LINEAR | TRANSPOSED | set(BY_NAME)):
        yield from (x for x in node.args[1:3] if isinstance(x, Node))
    for node in calls(graph, {BATCH_NORM}):
        yield from (x for x in node.args[1:5] if isinstance(x, Node))


def _constants(graph: GraphModule) -> set[Node]:
    """Parameters, buffers, and what is computed from them alone, but for tensors that the graph writes to."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        computed = node.op == "call_function" and found.issuperset(node.all_input_nodes) and _is_pure(node)
        if node.op == "get_attr" or computed:
            found.add(node)
    written = [node.args[0] for node in graph.graph.nodes if _writes(node)]
    while written:
        node = written.pop()
        if isinstance(node, Node) and node in found:
            found.discard(node)
            written += [*node.all_input_nodes, *node.users]
    return found


def _is_pure(node: Node) -> bool:
    """Whether an operator gives the same for the same, and changes nothing."""
    if node.target is operator.getitem:
        return True
    if not is_operator(node.target) or _writes(node):
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _writes(node: Node) -> bool:
    return is_operator(node.target) and bool(schema(node.target).is_mutable)


def _key(node: Node, known: dict[Node, Any]) -> Any:
    """Equal for nodes that compute the same from the same parameters: a module that is called twice does so."""
    if node not in known:
        args = (node.args, tuple(node.kwargs.items()))
        known[node] = (str(node.target), repr(map_arg(args, lambda n: hash(_key(n, known)))))
    return known[node]


def _evaluate(graph: GraphModule, node: Node, known: dict[Node, Any]) -> Any:
    """What a node of constants gives."""
    if node not in known:
        if node.op == "get_attr":
            known[node] = tensor_at(graph, str(node.target))
        else:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: _evaluate(graph, n, known))
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _free_name(graph: GraphModule, node: Node) -> str:
    """``weight``, at the module whose parameters a node is computed from, if there is none yet."""
    sources = [_owner(str(leaf.target)).split(".") for leaf in _leaves(node)]
    owner: list[str] = []
    for parts in zip(*sources, strict=False):
        if len(set(parts)) > 1:
            break
        owner.append(parts[0])
    path = ".".join(owner)
    leaf = f"computed_{node.name}" if hasattr(graph.get_submodule(path), "weight") else "weight"
    return f"{path}.{leaf}" if path else leaf


def _owner(parameter: str) -> str:
    """The path of the module that a parameter, or what it is parametrized by, belongs to."""
    module, parametrized, _ = parameter.partition(".parametrizations.")
    return module if parametrized else parameter.rpartition(".")[0]


def _leaves(node: Node) -> list[Node]:
    """The parameters that a node is computed from."""
    seen, waiting = {node}, [node]
    for current in waiting:
        for read in current.all_input_nodes:
            if read not in seen:
                seen.add(read)
                waiting.append(read)
    return [n for n in waiting if n.op == "get_attr"]
