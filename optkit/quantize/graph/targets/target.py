"""The contract of int8 targets: how a graph is annotated for an engine's int8 kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from optkit.quantize.graph.annotate import Scheme


@dataclass(frozen=True)
class Int8Target:
    """The rules that make an int8 graph for an engine.

    Attributes:
        name: in recipes and saved variants; the name of its entry point.
        engine: the engine whose kernels the rules are for, which proves ``min_int8_share``.
        rewrite: gives the graph to annotate.
        quantizer: gives what annotates it: weights of 8 bits per output channel, activations per tensor, with the
            observers of the scheme.
        integer_bias: whether the engine rounds biases to 32 bits, in steps of the product of an activation's and a
            weight's scale.
        dynamic: whether the engine has kernels for linear layers whose activations are scaled at every call.
        revision: of these rules. A saved variant holds it, and is rebuilt by the rules of that revision; raise it
            whenever other nodes are quantized than before.
        earlier: the rules of earlier revisions that can still be rebuilt.
    """

    name: str
    engine: str
    rewrite: Callable[[ExportedProgram], GraphModule]
    quantizer: Callable[[Scheme], Quantizer]
    integer_bias: bool = False
    dynamic: bool = False
    revision: int = 1
    earlier: Mapping[int, Int8Target] = field(default_factory=dict)
