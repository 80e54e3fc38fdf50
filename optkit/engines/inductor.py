"""The inductor engine: torch.compile with frozen weights, for one batch size."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from optkit.core.checks import check_choice
from optkit.core.compat.torch_compiler import compiled_call, inductor_options
from optkit.core.compat.torch_graphs import graph_structure, is_exported, return_tensors
from optkit.core.engine import MADE_FOR, Engine, Served, Session, not_made_for, own_precision
from optkit.core.errors import StageError, first_line
from optkit.core.generation import Generative
from optkit.core.macs import count_macs
from optkit.core.packed_weights import SIMULATED_IN_TORCH
from optkit.core.structure import Structure, Value, flatten
from optkit.core.variant import Variant
from optkit.engines.agreement import check_agreement
from optkit.engines.batches import OtherBatches
from optkit.engines.compiler import missing_compiler
from optkit.engines.deployed import Outputs, same_shapes
from optkit.engines.inductor_generation import InductorGenerator
from optkit.engines.inductor_int8 import fit_int8, int8_pass
from optkit.engines.int8_share import int8_share
from optkit.engines.program import export_failures, export_fixed, tensors_alone
from optkit.engines.saved import Saved, save_session

LOOKED_AT = "oneDNN's int8 convolutions and linears in the graph that inductor lowers"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Inductor(Engine):
    """TorchInductor (torch.compile) with the weights frozen into the compiled code.

    Attributes:
        freezing: fold and prepack the weights; int8 kernels need it.
        cpp_wrapper: call the kernels from C++ instead of Python: a quarter less latency where a model's kernels are
            short, for a few seconds more of compiling.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for the products of a float variant.
    """

    freezing: bool = True
    cpp_wrapper: bool = True
    precision: str = "fp32"

    name: ClassVar[str] = "inductor"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", *HALVES)
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    int8_target: ClassVar[str | None] = "inductor"
    channels_last: ClassVar[bool] = True
    shares_torch_threads: ClassVar[bool] = True
    fills_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, self.precisions)

    def unavailable(self) -> str | None:
        return missing_compiler()

    def unsupported(self, traits: frozenset[str]) -> str | None:
        if "int8" in traits and not self.freezing:
            return "int8 kernels need engines.inductor.freezing=true"
        if "int8" in traits and self.precision != "fp32":
            return "its int8 kernels stand between fp32 operators: precision=fp32"
        if SIMULATED_IN_TORCH in traits:
            return "torch has no kernel for its weights: inductor would multiply by dequantized ones"
        annotated = any(trait.startswith(MADE_FOR) for trait in traits)
        return not_made_for(self.int8_target, traits) if annotated else None

    def precision_of(self, module: nn.Module) -> str:
        """What the products of a module are computed in."""
        return own_precision(module) if self.precision == "fp32" else self.precision

    def for_trials(self) -> Inductor:
        """The same kernels, called from Python: a small model compiles in a fifth of the time."""
        return replace(self, cpp_wrapper=False)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> Session:
        """Compiles for the example's shapes, now.

        Raises:
            StageError: inductor cannot compile the module; the message names the operator where it gives one. Or it
                does not compute what an int8 graph does, see `check_agreement`.
        """
        if isinstance(module, Generative):
            generator = InductorGenerator(module, variant, self, example)
            generator(*example)
            return generator
        int8_macs: list[int] = []
        started = time.perf_counter()
        compiled, structure = self.compiled(module, example, int8_macs)
        seconds = time.perf_counter() - started
        share = int8_share(self.name, variant, sum(int8_macs), count_macs(module, example), LOOKED_AT)
        facts = {"int8_share": share, "precision": self.precision_of(module), "compile_s": round(seconds, 3)}
        session = InductorSession(module, variant, self, compiled, example, Outputs(structure), facts)
        facts |= check_agreement(self.name, session, module, example)
        return session

    def compiled(
        self, module: nn.Module, example: tuple[Tensor, ...], int8_macs: list[int] | None = None
    ) -> tuple[Callable[..., tuple[Tensor, ...]], Structure]:
        """A function of the example's shapes that gives a module's tensors, and what they are the tensors of.

        Args:
            module: in eval mode.
            example: its inputs; an input that it writes to is written to.
            int8_macs: gets the MACs of each int8 kernel.

        Raises:
            StageError: inductor cannot compile the module.
        """
        options = {
            "freezing": self.freezing,
            "cpp_wrapper": self.cpp_wrapper,
            "post_grad_custom_post_pass": int8_pass([] if int8_macs is None else int8_macs),
        }
        with torch.no_grad(), inductor_options(options), _quiet():
            try:
                graph, structure = _graph_of_its_own(module, example)
                compiled = partial(compiled_call, torch.compile(graph, dynamic=False, fullgraph=True))
                with self.autocast():
                    compiled(*example)
            except export_failures() as error:
                reason = first_line(error)
                raise StageError(f"inductor cannot compile this model: {reason}") from error
        return compiled, structure

    def autocast(self) -> AbstractContextManager[Any]:
        """The products in half precision, norms and softmax as they are."""
        return torch.autocast("cpu", HALVES.get(self.precision), enabled=self.precision in HALVES)


def _graph_of_its_own(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[GraphModule, Structure]:
    """The module as a graph with its own code, and the same weights; it gives tensors alone, of the structure.

    Dynamo keys what it compiled by code object: instances of one class, and all shapes of one graph, would share an
    entry, test each other's guards at every call, and be refused after the eighth.
    """
    if isinstance(module, GraphModule):
        graph = GraphModule(module, copy.deepcopy(module.graph))
        if (structure := _flatten_outputs(graph, module, example)) is not None:
            fit_int8(graph)
            return graph, structure
    program, structure = export_fixed(module, example)
    graph = program.module()
    assert isinstance(graph, GraphModule)
    return_tensors(graph.graph)
    graph.recompile()
    if isinstance(module, GraphModule):
        fit_int8(graph)
    return graph, structure


def _flatten_outputs(graph: GraphModule, module: GraphModule, example: tuple[Tensor, ...]) -> Structure | None:
    """Lets a copy of a module's graph give its tensors as a tuple; None where that cannot be told of its nodes."""
    structure = graph_structure(graph.graph)
    if structure is None:
        if is_exported(graph.graph):
            return None
        # a graph traced with fx: what its last node holds is what it returns
        last = graph.graph.output_node()
        nodes: list[Node] = []
        map_arg(last.args[0], nodes.append)
        found, structure = flatten(module(*example))
        if len(nodes) != len(found) or (isinstance(last.args[0], Node) and not isinstance(structure, Value)):
            return None
        last.args = (tuple(nodes),)
    return_tensors(graph.graph)
    graph.recompile()
    return structure


@contextmanager
def _quiet() -> Iterator[None]:
    """Without inductor's warnings about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class InductorSession(Served):
    """A module compiled for one batch size; other sizes are filled up with repeats, or computed in parts."""

    module: nn.Module
    variant: Variant
    engine: Inductor
    compiled: Callable[..., tuple[Tensor, ...]]
    example: tuple[Tensor, ...]
    outputs: Outputs
    engine_facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.others = OtherBatches(tensors_alone(self.module), self.example, "int8" in self.variant.traits)

    def __call__(self, *inputs: Tensor) -> Any:
        if same_shapes(inputs, self.example):
            return self.outputs.of_tensors(self._run(*inputs))
        # inductor would quietly compile again, for as long as the first time
        return self.outputs.of_tensors(self.others(self._run, inputs))

    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.engine.autocast():
            return self.compiled(*inputs)

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        saved = Saved.of(self.engine, self.example, self.facts())
        save_session(directory, self.variant, self.module, saved)
