"""What each engine's int8 kernels want of a graph, one file for each engine."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from optkit.quantize.graph.annotate import Scheme


class Target(Protocol):
    """A file of this folder."""

    def rewrite(self, program: ExportedProgram) -> GraphModule:
        """The graph to annotate."""
        ...

    def quantizer(self, scheme: Scheme) -> Quantizer:
        """What annotates it."""
        ...

    # whether the engine rounds biases to 32 bits, in steps of the product of an activation's and a weight's scale
    INTEGER_BIAS: bool


def target(name: str) -> Target:
    """The target of this name, ``inductor``, ``onnxruntime`` or ``openvino``."""
    return import_module(f"optkit.quantize.graph.targets.{name}")


__all__ = ["Target", "target"]
