"""Mixed precision: which layers stay in float, so that the quality or the latency of a model is kept.

Layers are chosen by what the rounding of each costs in loss, and by its time in int8 and in float where that counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.errors import StageError
from optkit.core.knapsack import choose_options
from optkit.core.loaders import Pick, as_example
from optkit.measure.alone import corrected
from optkit.quantize.batches import Batches, check_repeatable
from optkit.quantize.graph.layers import int8_layers, simulated
from optkit.quantize.options import StaticOptions
from optkit.quantize.static import Calibrated, Quantized, calibrate_static

Evaluate = Callable[[nn.Module], float]
STEPS = 32  # latencies between the least and the most that mixes of layers are chosen for
ROUNDS = 5  # models that are timed for a latency
CLOSE, TOLERANCE = 0.03, 0.1  # shares of the latency asked for: near enough, and the most that it may be exceeded by
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerTime:
    """ms of a call of one layer, less what calling costs.

    Attributes:
        int8: it reads and writes integers.
        float: it reads and writes float32.
    """

    int8: float
    float: float


TimeLayers = Callable[[Calibrated], Mapping[str, LayerTime]]


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
    times: TimeLayers | None = None,
) -> Quantized:
    """Static int8 that loses at most so much quality: the layers whose rounding costs most stay in float.

    Layers are ranked by the loss of the int8 model with that layer alone in float, and the fewest of the first are
    sought by bisection. In both, a layer in float has the weights and biases from before `rounding` and `correct_bias`.
    What is returned was judged as the very graph that the engine will get, run in eager mode.

    With `times`, the fastest such model is sought instead: for each of 32 latencies the layers in float are those that
    save most loss (`mixes`), and the least latency that keeps the quality is sought by bisection.

    Args:
        model, example_inputs, batches, inputs: as for `quantize_static`.
        max_drop: by how much a model may be worse than the float model, in the unit of `evaluate`.
        evaluate: the quality of a model, on examples that it may be chosen by: validation, never test.
        loss: of a model, on such examples; it tells layers apart that the quality does not.
        higher_is_better: which way the quality is better.
        target, observer, reduce_range, protect, equalize, smooth, rounding, correct_bias: see `StaticOptions`.
        times: gives the times of the layers of a calibrated graph, such as `optkit.quantize.layer_times.time_layers`.

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
    if times is None and good(quantized.module):
        return quantized
    chosen = calibrated.choose(observer)
    graph, original = chosen.graph, plain.graph
    if times is None:
        losses = losses_in_float(graph, loss, original)
        ranked = sorted(losses, key=losses.__getitem__)
        family = [ranked[:count] for count in range(1, len(ranked))]
    else:
        family = mixes(gains_in_float(graph, loss, original), times(chosen))
    first = fewest(family, lambda paths: good(simulated(graph, paths, original)))
    for paths in family[first:]:
        kept = replace(options, protect=(*options.protect, *paths))
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


def fewest(family: Sequence[list[str]], good: Callable[[list[str]], bool]) -> int:
    """The place of the first choice of layers that is good enough, by bisection; their number says that none is.

    Args:
        family: choices, from the cheapest to the best.
        good: whether a choice is good enough.
    """
    low, high = 0, len(family)
    while low < high:
        middle = (low + high) // 2
        if good(family[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def mixes(gains: Mapping[str, float], times: Mapping[str, LayerTime]) -> list[list[str]]:
    """Which layers are in float for each of some latencies, from the least latency to the least loss.

    Each is exact for sums (`choose_options`): no other choice of layers saves more loss within its time.

    Args:
        gains: by how much the loss falls if a layer is in float.
        times: of the layers.
    """
    least, most = latency_range(gains, times)
    found: list[list[str]] = []
    for step in range(STEPS + 1):
        paths = layers_in_float(gains, times, least + step / STEPS * (most - least))
        if paths not in found and len(paths) < len(gains):
            found.append(paths)
    return found


def layers_in_float(gains: Mapping[str, float], times: Mapping[str, LayerTime], budget_ms: float) -> list[str]:
    """The layers to leave in float so that the loss is least and all layers together take so many ms at most.

    Args:
        gains, times: as for `mixes`.
        budget_ms: of all layers together.

    Raises:
        OverBudgetError: even the faster of both for each layer takes longer.
    """
    sure = {path for path in gains if times[path].float < times[path].int8}
    # that a layer gains by its rounding is chance
    open_to_choice = [path for path, gain in gains.items() if gain > 0 and path not in sure]
    losses = [[gains[path], 0.0] for path in open_to_choice]
    costs = [[times[path].int8, times[path].float] for path in open_to_choice]
    rest = sum(min(times[path].int8, times[path].float) for path in gains if path not in open_to_choice)
    found = choose_options(losses, costs, budget_ms - rest) if open_to_choice else None
    chosen = {path for path, option in zip(open_to_choice, found.options if found else [], strict=True) if option == 1}
    return [path for path in gains if path in sure | chosen]


def latency_range(gains: Mapping[str, float], times: Mapping[str, LayerTime]) -> tuple[float, float]:
    """ms of the fastest mix, and of the fastest one that loses least."""
    least = sum(min(times[path].int8, times[path].float) for path in gains)
    slower = sum(max(times[path].float - times[path].int8, 0.0) for path, gain in gains.items() if gain > 0)
    return least, least + slower


def gains_in_float(graph: GraphModule, loss: Evaluate, original: GraphModule | None = None) -> dict[str, float]:
    """By how much the loss of a calibrated graph falls with each layer in float instead of int8, by its path.

    It is the mean of two differences: with all other layers in int8, and with all others in float. Either alone
    misses a layer whose error hides behind that of another.

    Args:
        graph, original: as for `simulated`.
        loss: of a model.
    """
    alone = losses_in_float(graph, loss, original)
    every = set(alone)
    with torch.no_grad():
        in_int8, in_float = loss(simulated(graph)), loss(simulated(graph, every, original))
        return {
            path: (in_int8 - alone[path] + loss(simulated(graph, every - {path}, original)) - in_float) / 2
            for path in alone
        }


@dataclass(frozen=True)
class _Timed:
    """A model that was made: its layers in float, and its share of the float latency by layers and measured."""

    paths: list[str]
    quantized: Quantized
    predicted: float
    ratio: float


def quantize_to_latency(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    batches: Iterable[Any],
    options: StaticOptions,
    *,
    max_latency: float,
    loss: Evaluate,
    times: TimeLayers,
    ratio: Callable[[GraphModule], float],
) -> tuple[Quantized, dict[str, Any]]:
    """Static int8 within a share of the float model's latency: the layers in float are those that save most loss.

    The choice is exact for the sums of losses and times (`layers_in_float`). The whole model is then timed; where that
    misses the limit, the choice is made again for a corrected sum, as for a latency budget of pruning.

    Args:
        model, example_inputs, batches, options: as for `calibrate_static`.
        max_latency: share of the float model's latency.
        loss: of a model, on examples that it may be chosen by: validation, never test.
        times: gives the times of the layers of a calibrated graph.
        ratio: latency of an int8 graph over that of the float model, measured.

    Returns:
        The graph that loses least of those that were timed and keep the limit, and what was predicted and measured.

    Raises:
        UserError, StageError: as `calibrate_static`; no such model is within 10% of the limit.
    """
    batches = Batches.of(batches, len(example_inputs))
    check_repeatable(batches)
    plain = calibrate_static(model, example_inputs, batches, replace(options, rounding="nearest", correct_bias=False))
    chosen = plain.with_tools(batches, options).choose(options.observer)
    gains = gains_in_float(chosen.graph, loss, plain.graph)
    found = times(chosen)
    in_float_ms, (least_ms, _) = sum(found[path].float for path in gains), latency_range(gains, found)
    tried: list[_Timed] = []

    def makes_one(budget_ms: float) -> bool:
        """Makes and times a model; not one that was made before, nor the float model."""
        paths = layers_in_float(gains, found, max(budget_ms, least_ms))
        if len(paths) == len(gains) or any(paths == one.paths for one in tried):
            return False
        kept = replace(options, protect=(*options.protect, *paths))
        quantized = calibrate_static(model, example_inputs, batches, kept).convert(options.observer)
        predicted = sum(found[path].float if path in paths else found[path].int8 for path in gains) / in_float_ms
        tried.append(_Timed(paths, quantized, predicted, ratio(quantized.module)))
        text = "%d layers in float: %.3f of the float latency, %.3f by layers"
        log.info(text, len(paths), tried[-1].ratio, predicted)
        return True

    share = max_latency
    for _ in range(ROUNDS):
        if not makes_one(share * in_float_ms) or abs(tried[-1].ratio / max_latency - 1) < CLOSE:
            break
        share = corrected(max_latency, [(one.predicted, one.ratio) for one in tried])
    within = [one for one in tried if one.ratio <= max_latency * (1 + CLOSE)]
    if not within:
        makes_one(least_ms)
    if not tried:
        raise StageError("no layer of this model is faster in int8", key="max_latency", value=max_latency)
    # within the limit, more time is less loss
    best = max(within, key=lambda one: one.predicted) if within else min(tried, key=lambda one: one.ratio)
    if best.ratio > max_latency * (1 + TOLERANCE):
        message = f"the least latency of int8 is {best.ratio:.3f} of the float model's"
        raise StageError(message, key="max_latency", value=max_latency, fix="allow more, or another target")
    facts = {
        "latency_ratio": round(best.ratio, 6),
        "latency_ratio_by_layers": round(best.predicted, 6),
        "predicted_loss": round(sum(max(gain, 0.0) for path, gain in gains.items() if path not in best.paths), 6),
        "layer_ms": {path: [round(one.int8, 6), round(one.float, 6)] for path, one in found.items()},
    }
    return best.quantized, facts
