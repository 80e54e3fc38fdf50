"""Private names of other libraries: what optkit needs of them and finds nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.utils import _pytree as pytree

from optkit.core.structure import Structure, Value, build, values

RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)
Made = Callable[[Structure, Iterable[Tensor]], Any]


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


@dataclass(frozen=True)
class _Returned:
    """What a graph returns, in its specification: a structure, and the function that gives it its tensors."""

    structure: Structure
    made: Made = build

    def leaves(self) -> tuple[list[Value], _Returned]:
        return list(values(self.structure)), self

    def built(self, tensors: Any) -> Any:
        return self.made(self.structure, tensors)


pytree.register_pytree_node(_Returned, _Returned.leaves, lambda tensors, returned: returned.built(tensors))


def return_structure(module: GraphModule, structure: Structure, made: Made = build) -> None:
    """Lets an exported program's graph, which returns a tuple of tensors, put them into a structure.

    Args:
        module: the graph; one that returns a tensor on its own stays as it is.
        structure: of what it is to return.
        made: makes that of the structure and its tensors, or something else.
    """
    if not isinstance(structure, Value) or structure.number:
        spec = pytree.tree_structure(_Returned(structure, made))
        codegen = module.graph._codegen
        assert isinstance(codegen, _PyTreeCodeGen)
        module.graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=spec)))
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
    """Whether the graph builds what it returns by a specification of ``torch.export``."""
    return isinstance(graph._codegen, _PyTreeCodeGen)


def graph_structure(graph: Graph) -> Structure | None:
    """What an exported graph returns: one tensor, or what `return_structure` has set; None for any other."""
    codegen = graph._codegen
    spec: Any = codegen.pytree_info.out_spec if isinstance(codegen, _PyTreeCodeGen) else None
    if spec is not None and spec.type is _Returned:
        return spec.context.structure
    if spec is None or not spec.is_leaf():
        return None
    returned: Any = graph.output_node().args[0]
    (output,) = returned
    value = output.meta.get("val") if isinstance(output, Node) else None
    return Value(value.dtype) if isinstance(value, Tensor) else None
