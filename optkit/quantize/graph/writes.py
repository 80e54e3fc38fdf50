"""Programs that write to a tensor and read it afterwards by another name, made functional.

``y[:, :6] = 0`` writes through a view of ``y``, which later operators read. Where ``y`` is rounded, they would read a
rounded copy from before the write.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from optkit.core.compat.torch_operators import is_operator, schema


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program, without operators that write if it reads by another name what they wrote."""
    return program.run_decompositions({}) if reads_what_is_written(program.graph) else program


def reads_what_is_written(graph: Graph) -> bool:
    """Whether a node reads a tensor that another one wrote to, and does not take it from that one."""
    memory: dict[Node, Node] = {}  # the node whose memory a node's value is
    stale: set[Node] = set()
    for node in graph.nodes:
        reads = node.op == "output" or isinstance(node.meta.get("val"), (Tensor, tuple, list))
        if reads and stale.intersection(node.all_input_nodes):
            return True
        for source, writes in _aliases(node):
            base = memory.get(source, source)
            if writes:
                stale |= {other for other in (base, *memory) if memory.get(other, other) is base}
            memory.setdefault(node, base)
    return False


def _aliases(node: Node) -> Iterator[tuple[Node, bool]]:
    """The tensors whose memory a node writes to or gives a view of, and whether it writes."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        yield node.args[0], False
    if node.op != "call_function" or not is_operator(node.target):
        return
    for place, argument in enumerate(schema(node.target).arguments):
        given: Any = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(given, Node):
            yield given, bool(argument.alias_info.is_write)
