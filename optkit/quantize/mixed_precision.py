"""Mixed precision: as few layers in float as bring the quality back, chosen by what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.errors import StageError
from optkit.core.loaders import Pick, as_example
from optkit.quantize.batches import Batches, check_repeatable
from optkit.quantize.graph.layers import int8_layers, simulated
from optkit.quantize.options import StaticOptions
from optkit.quantize.static import Quantized, calibrate_static

Evaluate = Callable[[nn.Module], float]


def quantize_within(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Any],
    *,
    inputs: Pick | None = None,
    max_drop: float,
    evaluate: Evaluate,
    loss: Evaluate,
    higher_is_better: bool = True,
    target: str = "inductor",
    observer: str = "histogram",
    reduce_range: bool | None = None,
    protect: Iterable[str] = (),
    equalize: bool = False,
    smooth: float | None = None,
    rounding: str = "nearest",
    correct_bias: bool = False,
) -> Quantized:
    """Static int8 that loses at most so much quality: the layers whose rounding costs most stay in float.

    Layers are ranked by the loss of the int8 model with that layer alone in float, and the fewest of the first are
    sought by bisection. In both, a layer in float has the weights and biases from before `rounding` and `correct_bias`.
    What is returned was judged as the very graph that the engine will get, run in eager mode.

    Args:
        model, example_inputs, batches, inputs: as for `quantize_static`.
        max_drop: by how much a model may be worse than the float model, in the unit of `evaluate`.
        evaluate: the quality of a model, on examples that it may be chosen by: validation, never test.
        loss: of a model, on such examples; it tells layers apart that the quality does not.
        higher_is_better: which way the quality is better.
        target, observer, reduce_range, protect, equalize, smooth, rounding, correct_bias: see `StaticOptions`.

    Returns:
        The graph; `Quantized.protect` has the layers in float.

    Raises:
        UserError, StageError: as `quantize_static`; an iterator for `batches`; nothing short of the float model is good
            enough.
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
    check_repeatable(batches)
    sign = 1.0 if higher_is_better else -1.0
    least = sign * evaluate(model) - max_drop

    def good(module: nn.Module) -> bool:
        return sign * evaluate(module) >= least

    plain = calibrate_static(model, example_inputs, batches, replace(options, rounding="nearest", correct_bias=False))
    calibrated = plain.with_tools(batches, options)
    quantized = calibrated.convert(observer)
    if good(quantized.module):
        return quantized
    graph, original = calibrated.choose(observer).graph, plain.graph
    losses = losses_in_float(graph, loss, original)
    ranked = sorted(losses, key=losses.__getitem__)
    few = fewest(ranked, lambda paths: good(simulated(graph, paths, original)))
    for count in range(few, len(ranked)):
        kept = replace(options, protect=(*options.protect, *ranked[:count]))
        quantized = calibrate_static(model, example_inputs, batches, kept).convert(observer)
        if good(quantized.module):
            return quantized
    raise StageError(
        f"no int8 model is within {max_drop} of the float model's quality",
        key="max_drop",
        value=max_drop,
        fix="allow more, or train for int8: stage@stages.NAME=quantize/qat",
    )


def losses_in_float(graph: GraphModule, loss: Evaluate, original: GraphModule | None = None) -> dict[str, float]:
    """The loss of a calibrated graph in int8, for every layer of it that alone is in float, by its path.

    Args:
        graph, original: as for `simulated`.
        loss: of a model.
    """
    paths = dict.fromkeys(layer.path for layer in int8_layers(graph))
    with torch.no_grad():
        return {path: loss(simulated(graph, [path], original)) for path in paths}


def fewest(ranked: list[str], good: Callable[[list[str]], bool]) -> int:
    """How many of the first are needed at least, by bisection; one more than there are says that all are too few."""
    low, high = 1, len(ranked) + 1
    while low < high:
        middle = (low + high) // 2
        if middle > len(ranked) or good(ranked[:middle]):
            high = middle
        else:
            low = middle + 1
    return low
