"""What exported graphs return, and how they take it apart and put it together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from optkit.core.compat.torch_trees import register_pytree_node, tree_structure
from optkit.core.compat.versions import attribute, private
from optkit.core.structure import Structure, Value, build, values

Made = Callable[[Structure, Iterable[Tensor]], Any]
GUARDS = "_guards_fn"
"""The submodule of an exported program's module that checks its inputs (torch 2.14)."""
_EXPORTED: Any = private("torch.fx.graph._PyTreeCodeGen")


@dataclass(frozen=True)
class _Returned:
    """What a graph returns, in its specification: a structure, and the function that gives it its tensors."""

    structure: Structure
    made: Made = build

    def leaves(self) -> tuple[list[Value], _Returned]:
        return list(values(self.structure)), self

    def built(self, tensors: Any) -> Any:
        return self.made(self.structure, tensors)


register_pytree_node(_Returned, _Returned.leaves, lambda tensors, returned: returned.built(tensors))


def return_structure(module: GraphModule, structure: Structure, made: Made = build) -> None:
    """Lets an exported program's graph, which returns a tuple of tensors, put them into a structure (torch 2.14).

    Args:
        module: the graph; one that returns a tensor on its own stays as it is.
        structure: of what it is to return.
        made: makes that of the structure and its tensors, or something else.
    """
    if not isinstance(structure, Value) or structure.number:
        spec = tree_structure(_Returned(structure, made))
        codegen = _codegen(module.graph)
        assert isinstance(codegen, _EXPORTED)
        module.graph.set_codegen(_EXPORTED(codegen.pytree_info._replace(out_spec=spec)))
        module.recompile()


def return_tensors(graph: Graph) -> None:
    """Lets an exported program's graph take its inputs by position, and give its tensors as a tuple."""
    output = graph.output_node()
    returned: Any = output.args[0]
    output.args = (tuple(x for x in returned if isinstance(x, Node)),)
    graph.set_codegen(CodeGen())


def graph_returning(module: GraphModule, made: Made) -> GraphModule:
    """A copy of a graph that returns what a function makes of its structure and tensors, its weights shared.

    The graph itself where its structure is not known (`graph_structure`), or is one tensor.
    """
    structure = graph_structure(module.graph)
    if structure is None or isinstance(structure, Value):
        return module
    found = GraphModule(module, copy.deepcopy(module.graph))
    return_structure(found, structure, made)
    return found


def is_exported(graph: Graph) -> bool:
    """Whether the graph builds what it returns by a specification of ``torch.export`` (torch 2.14)."""
    return isinstance(_codegen(graph), _EXPORTED)


def graph_structure(graph: Graph) -> Structure | None:
    """What an exported graph returns: one tensor, or what `return_structure` has set; None for any other."""
    spec: Any = _codegen(graph).pytree_info.out_spec if is_exported(graph) else None
    if spec is not None and spec.type is _Returned:
        found: Structure = spec.context.structure
        return found
    if spec is None or not spec.is_leaf():
        return None
    returned: Any = graph.output_node().args[0]
    (output,) = returned
    value = output.meta.get("val") if isinstance(output, Node) else None
    return Value(value.dtype) if isinstance(value, Tensor) else None


def _codegen(graph: Graph) -> Any:
    """What writes a graph's Python code, and knows how inputs and outputs are nested (torch 2.14)."""
    return attribute(graph, "_codegen")
