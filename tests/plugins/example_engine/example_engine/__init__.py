"""An engine for optkit: graphs of torch.export, their int8 linear layers computed in integers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.checks import check_choice
from optkit.core.macs import count_macs
from optkit.core.variant import Variant
from optkit.engines import Engine, Outputs, Saved, Served, check_agreement, export_program, save_session
from optkit.engines.int8_share import int8_share
from optkit.quantize import INT8_TARGETS

# graphs are annotated as for OpenVINO, whose linear layers read int8 and give floats
TARGET = replace(INT8_TARGETS["openvino"], name="example", engine="example")


@dataclass
class Example(Engine):
    """The exported graph on the CPU.

    Attributes:
        precision: ``fp32``, or ``bf16`` for the products of a float variant.
    """

    precision: str = "fp32"

    name: ClassVar[str] = "example"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    packages: ClassVar[tuple[str, ...]] = ("optkit-example-engine", "torch")
    int8_target: ClassVar[str | None] = "example"
    shares_torch_threads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, self.precisions)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> Served:
        started = time.perf_counter()
        program, structure = export_program(module, example)
        graph = program.module()
        layers = use_integers(graph) if "int8" in variant.traits else []
        facts = {"precision": self.precision, "compile_s": round(time.perf_counter() - started, 3)}
        session = ExampleSession(module, variant, self, graph, example, Outputs(structure), facts)
        session(*example)
        done = sum(layer.macs for layer in layers)
        facts["int8_share"] = int8_share(self.name, variant, done, count_macs(module, example), "its linear layers")
        facts |= check_agreement(self.name, session, module, example)
        return session


@dataclass
class ExampleSession(Served):
    """The exported graph; it takes any batch size that the model leaves free."""

    module: nn.Module
    variant: Variant
    engine: Example
    graph: nn.Module
    example: tuple[Tensor, ...]
    outputs: Outputs
    engine_facts: dict[str, Any]

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.engine.precision == "bf16"):
            found = self.graph(*inputs)
        return self.outputs.of_tensors(found if isinstance(found, (tuple, list)) else [found])

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        save_session(directory, self.variant, self.module, Saved.of(self.engine, self.example, self.facts()))


class IntegerLinear(nn.Module):
    """A linear layer of uint8 activations and int8 weights, summed up in 32 bits.

    Args:
        weight: int8, ``(out, in)``.
        scales: of its rows.
        scale, zero: of the activations.
    """

    def __init__(self, weight: Tensor, scales: Tensor, scale: float, zero: int):
        super().__init__()
        self.weight, self.steps, self.zero = weight.to(torch.int32).T, scale * scales, zero
        self.macs = 0  # of the last call

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        sums = (x.to(torch.int32) - self.zero) @ self.weight
        self.macs = sums.numel() * len(self.weight)
        found = (sums * self.steps).float()
        return found if bias is None else found + bias


def use_integers(graph: GraphModule) -> list[IntegerLinear]:
    """Replaces the int8 linear layers of a graph, in place; gives what took their place."""
    found = []
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.linear.default:
            continue
        x, weight, *bias = node.args
        if "dequantize_per_tensor" not in str(x.target) or "dequantize_per_channel" not in str(weight.target):
            continue
        stored, scales = (attrgetter(read.target)(graph) for read in weight.args[:2])
        layer = IntegerLinear(stored, scales, *x.args[1:3])
        graph.add_submodule(name := f"integer_linear_{len(found)}", layer)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (x.args[0], *bias)))
        found.append(layer)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return found
