"""Static int8 on torchao's PT2E graph, annotated for the engine that is to run it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from optkit.core.checks import check_choice
from optkit.core.compat.torch_graphs import return_structure
from optkit.core.compat.torch_tracing import recurrence_by_shape
from optkit.core.compat.versions import version_of
from optkit.core.engine import MADE_FOR
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import Pick, as_example
from optkit.core.model_copy import duplicate
from optkit.core.probe import keep_probe
from optkit.core.processes import current
from optkit.engines.program import export_program, module_of, named_failures
from optkit.quantize.accuracy.bias_correction import correct_biases
from optkit.quantize.accuracy.equalization import equalize_layers, multiply, smooth_inputs
from optkit.quantize.accuracy.gptq import round_weights
from optkit.quantize.batches import Batches, check_repeatable
from optkit.quantize.graph.annotate import Scheme, keep_in_float
from optkit.quantize.graph.conversion import activation_nodes, convert, prepare, quiet
from optkit.quantize.graph.float_layers import left_in_float, name_some
from optkit.quantize.graph.layers import LayerError, layer_errors
from optkit.quantize.graph.simplify import simplify
from optkit.quantize.graph.targets import Int8Target, find_target
from optkit.quantize.graph.writes import functional
from optkit.quantize.options import OBSERVERS, REVISION, Int8Options, StaticOptions, definite_range

log = logging.getLogger(__name__)
Tool = Callable[[GraphModule, Iterable[tuple[Tensor, ...]]], int]


@dataclass(frozen=True)
class Quantized:
    """A converted graph, and what rebuilds it.

    Attributes:
        module: the graph.
        activations: scale, zero point and integer range of every activation in it, by node name.
        reduce_range: whether weights, and the factors of products of activations, take 7 bits.
        target: the engine it is annotated for.
        protect: paths of the layers that stay in float.
        smoothed: names of the nodes whose activations are multiplied in front of linear layers.
        tools: how many layers or activations each accuracy tool changed.
    """

    module: GraphModule
    activations: dict[str, list[float | int]]
    reduce_range: bool
    target: str = "inductor"
    protect: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()
    tools: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibrated:
    """A graph whose observers have seen the calibration data; every scheme can be read off it.

    Attributes:
        graph: with observers.
        reduce_range, target, protect, smoothed, tools: as in `Quantized`.
    """

    graph: GraphModule
    reduce_range: bool
    target: str
    protect: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()
    tools: dict[str, int] = field(default_factory=dict)

    def choose(self, observer: str) -> Calibrated:
        """A copy whose observers give the ranges of one scheme, a name of ``OBSERVERS``."""
        check_choice("observer", observer, OBSERVERS)
        graph = copy.deepcopy(self.graph)
        for module in observers(graph):
            module.scheme = observer
        return replace(self, graph=graph)

    def round_weights(self, batches: Iterable[tuple[Tensor, ...]], observer: str = "histogram") -> Calibrated:
        """A copy with GPTQ's weights, see `optkit.quantize.accuracy.gptq`; to be converted with this scheme."""
        return self._tool("gptq", round_weights, batches, observer)

    def correct_biases(self, batches: Iterable[tuple[Tensor, ...]], observer: str = "histogram") -> Calibrated:
        """A copy with corrected biases, to be converted with this scheme (`optkit.quantize.accuracy`)."""
        return self._tool("bias_correction", correct_biases, batches, observer)

    def layer_errors(self, batches: Iterable[tuple[Tensor, ...]], observer: str = "histogram") -> list[LayerError]:
        """The signal to quantization noise of every layer on its own, the noisiest first."""
        return layer_errors(self.choose(observer).graph, batches)

    def with_tools(self, batches: Iterable[tuple[Tensor, ...]], options: StaticOptions) -> Calibrated:
        """A copy with GPTQ's weights and corrected biases, as far as the options ask for them."""
        found = self.round_weights(batches, options.observer) if options.rounding == "gptq" else self
        return found.correct_biases(batches, options.observer) if options.correct_bias else found

    def _tool(self, name: str, tool: Tool, batches: Iterable[tuple[Tensor, ...]], observer: str) -> Calibrated:
        chosen = self.choose(observer)
        if not (changed := tool(chosen.graph, batches)):
            raise StageError(f"{name} has nothing to do: no layer of this model is of a kind that it knows")
        return replace(chosen, tools=chosen.tools | {name: changed})

    def convert(self, observer: str = "histogram") -> Quantized:
        """The int8 graph with the ranges of one scheme, a name of ``OBSERVERS``.

        Raises:
            StageError: no operator could be quantized.
        """
        converted = convert(self.choose(observer).graph, self.target)
        activations = {node.name: _grid(node) for node in activation_nodes(converted)}
        if not activations:
            reasons = name_some(left_in_float(converted, self.protect), 3)
            raise StageError("no operator of this model could be quantized" + (f": {reasons}" if reasons else ""))
        return Quantized(
            converted, activations, self.reduce_range, self.target, self.protect, self.smoothed, self.tools
        )


def _grid(node: Node) -> list[float | int]:
    """Scale, zero point, lowest and highest integer of an activation."""
    scale, *integers = (number for number in node.args[1:5] if isinstance(number, (int, float)))
    return [float(scale), *map(int, integers)]


def quantize_static(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Any],
    *,
    inputs: Pick | None = None,
    target: str = "inductor",
    observer: str = "histogram",
    reduce_range: bool | None = None,
    protect: Iterable[str] = (),
    equalize: bool = False,
    smooth: float | None = None,
    rounding: str = "nearest",
    correct_bias: bool = False,
) -> Quantized:
    """Post-training static quantization: int8 weights per channel, int8 activations per tensor.

    Args:
        model: a float model in eval mode; not touched.
        example_inputs: a tensor or a tuple of tensors to export with, of any batch size; it and the length of texts
            stay free.
        batches: what to calibrate with: any iterable, such as a ``DataLoader``; read one batch at a time. A batch is
            the model's input, a tensor, or a tuple or list of its inputs.
        inputs: picks the inputs where a batch holds more: ``inputs=lambda batch: batch[0]``.
        target, observer, reduce_range, protect, equalize, smooth, rounding, correct_bias: see `StaticOptions`.

    Returns:
        The graph with quantize and dequantize nodes, which the engine lowers to int8 kernels.

    Raises:
        UserError: an option out of its range; a pattern that matches no layer; an iterator that several passes would
            have to read.
        StageError: no operator could be quantized, or an accuracy tool found nothing to do.
    """
    options = StaticOptions(
        target=target,
        observer=observer,
        reduce_range=reduce_range,
        protect=tuple(protect),
        equalize=equalize,
        smooth=smooth,
        rounding=rounding,
        correct_bias=correct_bias,
    )
    example_inputs = as_example(example_inputs)
    batches = Batches.of(batches, len(example_inputs), inputs)
    return calibrate_static(model, example_inputs, batches, options).convert(observer)


def calibrate_static(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    batches: Iterable[Any],
    options: StaticOptions,
) -> Calibrated:
    """What `quantize_static` does before the conversion."""
    batches = Batches.of(batches, len(example_inputs))
    if options.rounding != "nearest" or options.correct_bias:
        check_repeatable(batches)
    calibrated = _calibrate(model, example_inputs, batches, options, schemes=(options.observer,))
    return calibrated.with_tools(batches, options)


def calibrate(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Any],
    *,
    inputs: Pick | None = None,
    target: str = "inductor",
    reduce_range: bool | None = None,
    schemes: Iterable[str] = OBSERVERS,
    protect: Iterable[str] = (),
    equalize: bool = False,
    smooth: float | None = None,
) -> Calibrated:
    """One pass over the calibration data, for as many schemes as are to be tried.

    Args:
        model, example_inputs, batches, inputs: as for `quantize_static`.
        target, reduce_range, protect, equalize, smooth: see `StaticOptions`.
        schemes: the observers that `Calibrated.convert` can then be asked for.
    """
    options = StaticOptions(
        target=target, reduce_range=reduce_range, protect=tuple(protect), equalize=equalize, smooth=smooth
    )
    example_inputs = as_example(example_inputs)
    return _calibrate(model, example_inputs, Batches.of(batches, len(example_inputs), inputs), options, schemes)


def _calibrate(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    batches: Batches,
    options: StaticOptions,
    schemes: Iterable[str],
) -> Calibrated:
    if options.equalize or options.smooth is not None:
        check_repeatable(batches)
    graph = export_graph(model, example_inputs, options.target)
    kept = keep_in_float(graph, options.protect)
    tools: dict[str, int] = {}
    smoothed: list[str] = []
    if options.equalize:
        tools["equalization"] = equalize_layers(graph, batches)
    if options.smooth is not None:
        tools["smoothing"], smoothed = smooth_inputs(graph, batches, options.smooth)
    if nothing := [name for name, changed in tools.items() if not changed]:
        raise StageError(f"{nothing[0]} has nothing to do: no activation of this model can take other scales")
    calibrated = calibrate_graph(graph, batches, options, schemes)
    return replace(calibrated, protect=kept, smoothed=tuple(smoothed), tools=tools)


def export_graph(
    model: nn.Module, example_inputs: tuple[Tensor, ...], target: str | Int8Target, revision: int = REVISION
) -> GraphModule:
    """A model's float graph as a target wants it: no norm folded, nothing observed; the model is not touched."""
    target = find_target(target)
    model = check_exportable(model)
    if made := getattr(model, "meta", {}).get(MADE_FOR):
        raise UserError(f"the model is int8 already, for {made}", key="model", fix="quantize the float model")
    with quiet(), recurrence_by_shape(), named_failures():
        program, structure = export_program(duplicate(model, {}).eval(), example_inputs)
        graph = target.rewrite(functional(program) if revision > 2 else program)
        return_structure(graph, structure)
    if revision > 1:
        simplify(graph)
    return graph


def check_exportable(model: Any) -> nn.Module:
    """The module of what is to be quantized; raises UserError for none, and for one that computes in float64."""
    module = module_of(model)
    if any(x.dtype == torch.float64 for x in module.parameters()):
        raise UserError("the model computes in float64", key="model", fix="model.float()")
    return module


def calibrate_graph(
    graph: GraphModule, batches: Iterable[tuple[Tensor, ...]], options: Int8Options, schemes: Iterable[str]
) -> Calibrated:
    """What `calibrate` does once the graph is there; batch norms are folded into the layers they follow, in place."""
    reduce_range = definite_range(options.reduce_range)
    prepared = _observed(graph, options.target, reduce_range, tuple(schemes))
    _observe(prepared, batches)
    return Calibrated(prepared, reduce_range, options.target)


@torch.no_grad()
def _observe(prepared: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Shows the observers all batches; several processes share them out, but for the first, with which each begins."""
    from optkit.quantize.graph.observers import begin_alike, put_together

    processes, seen = current(), [observer.statistics for observer in observers(prepared)]
    for number, inputs in enumerate(batches):
        if number and number % processes.size != processes.rank:
            continue
        for statistics in seen:
            statistics.batch = number
        if not number:
            keep_probe(prepared, inputs)
        prepared(*inputs)
        if not number:
            begin_alike(seen)
    put_together(seen)


def replay_static(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    activations: dict[str, list[float | int]],
    reduce_range: bool = False,
    target: str | Int8Target = "inductor",
    protect: Iterable[str] = (),
    smoothed: Sequence[str] = (),
    revision: int = REVISION,
) -> GraphModule:
    """The structure that `quantize_static` gave, rebuilt without calibration; the weights are loaded over it.

    Args:
        model: a fresh model of the structure that was quantized.
        example_inputs: as for `quantize_static`.
        activations, reduce_range, target, protect, smoothed: from `Quantized`.
        revision: of the rules that made the graph, ``REVISION`` then; 1 for what was saved without one.

    Raises:
        UserError: other versions of torch and torchao made the graph, and these quantize other activations.
    """
    target = find_target(target)
    graph = export_graph(model, example_inputs, target, revision)
    keep_in_float(graph, protect)
    multiply(graph, smoothed)
    prepared = _observed(graph, target, reduce_range, (), revision)
    with torch.no_grad():
        prepared(*example_inputs)
    converted = convert(prepared, target)
    nodes = list(activation_nodes(converted))
    if unknown := {node.name for node in nodes} ^ set(activations):
        here = " and ".join(f"{name} {version_of(name)}" for name in ("torch", "torchao"))
        message = f"{here} quantize other activations than those that made it: {sorted(unknown)[0]}"
        raise UserError(message, fix="run the recipe again, or install the versions that its record names")
    for node in nodes:
        scale, *integers = activations[node.name]
        if len(integers) == 3 and integers[1] < 0:
            # older variants for OpenVINO hold signed activations; as unsigned ones they have the same values
            integers = [integer - integers[1] for integer in integers]
        node.args = (node.args[0], scale, *integers, *node.args[2 + len(integers) : 5], torch.uint8)
    converted.recompile()
    return converted


def _observed(
    graph: GraphModule,
    target: str | Int8Target,
    reduce_range: bool,
    schemes: tuple[str, ...],
    revision: int = REVISION,
) -> GraphModule:
    from optkit.quantize.graph.observers import WITH_HISTOGRAM

    scheme = Scheme(reduce_range, bool(WITH_HISTOGRAM & set(schemes)), revision)
    return prepare(graph, find_target(target).quantizer(scheme))


def observers(graph: GraphModule) -> Iterator[Any]:
    """The observers of activations, each once."""
    from optkit.quantize.graph.observers import ActivationObserver

    return (module for module in graph.modules() if isinstance(module, ActivationObserver))


def describe(quantized: Quantized) -> dict[str, Any]:
    """How many weights and activations are quantized, to how many bits, and what is left in float.

    What stays in float without having been asked for is logged, too.
    """
    left = left_in_float(quantized.module, quantized.protect)
    if unasked := {path: why for path, why in left.items() if why != "protected"}:
        log.warning("stay in float: %s", name_some(unasked))
    weights = [n for n in quantized.module.graph.nodes if "dequantize_per_channel" in str(n.target)]
    return {
        "target": quantized.target,
        "quantized_weights": len(weights),
        "quantized_activations": len(quantized.activations),
        "weight_bits": 7 if quantized.reduce_range else 8,
        **quantized.tools,
        **({"in_float": list(quantized.protect)} if quantized.protect else {}),
        **({"left_in_float": left} if left else {}),
    }
