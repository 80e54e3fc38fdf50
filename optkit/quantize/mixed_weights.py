"""Weights of mixed bits: the layers that have more are few enough for a quality, or fit an average number of bits."""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import StageError, UserError
from optkit.core.knapsack import choose_options
from optkit.quantize.mixed_precision import Evaluate, fewest
from optkit.quantize.weight_only import WeightOnly, chosen, quantize_weight_only
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.scheme import AUTO, Scheme
from optkit.quantize.weights.selection import outputs_first, weight_of

WIDER = 8  # bits of the layers that are to have more; those of a model of 8 bits stay in float
OF_SELECTION = ("group_size", "symmetric", "embeddings", "head", "vocabulary_bits")  # options that `chosen` takes
log = logging.getLogger(__name__)


def quantize_weights_within(
    model: nn.Module,
    *,
    max_drop: float,
    evaluate: Evaluate,
    losses: Callable[[nn.Module], Iterable[Tensor]],
    higher_is_better: bool = True,
    bits: int = 8,
    bits_of: Mapping[str, int] | None = None,
    protect: tuple[str, ...] = (),
    workdir: str | Path | None = None,
    **options: Any,
) -> WeightOnly:
    """Weights of few bits that lose at most so much quality: the layers that cost most have 8, or stay in float.

    Layers are ranked by `predicted_costs`, and the fewest of the first are sought by bisection. Each model that is
    judged is quantized in full, as the one that is returned.

    Args:
        model: in float, in evaluation mode; not touched.
        max_drop: by how much a model may be worse than the float model, in the unit of `evaluate`.
        evaluate: the quality of a model, on examples that it may be chosen by: validation, never test.
        losses: of a model on some such batches, one after another; each is differentiated.
        higher_is_better: which way the quality is better.
        bits, bits_of, protect, options: of `quantize_weight_only`.
        workdir: as there; each model that is judged has a folder in it.

    Returns:
        The result for the layers that need more, see `WeightOnly.others` and `WeightOnly.left`.

    Raises:
        UserError, StageError: as `quantize_weight_only`; no such model is good enough.
    """
    sign = 1.0 if higher_is_better else -1.0
    least = sign * evaluate(model) - max_drop
    made: dict[int, WeightOnly] = {}

    def with_more(paths: list[str]) -> WeightOnly:
        wider = dict(bits_of or {}) | (dict.fromkeys(paths, WIDER) if bits < WIDER else {})
        kept = (*protect, *(paths if bits >= WIDER else ()))
        own = Path(workdir) / f"{len(paths)}-wider" if workdir is not None and "batches" in options else None
        return quantize_weight_only(model, bits=bits, bits_of=wider, protect=kept, workdir=own, **options)

    def good(paths: list[str]) -> bool:
        made.clear()  # one model at a time
        made[len(paths)] = with_more(paths)
        return sign * evaluate(made[len(paths)].module) >= least

    if good([]):
        return made[0]
    plain = made[0]
    wide = Scheme.of(WIDER, AUTO, None) if bits < WIDER else None
    schemes = {path: plain.scheme_of(path) for path in (*plain.layers, *plain.embeddings) if path not in plain.tied}
    del plain  # and its model
    narrow = {path: own for path, own in schemes.items() if own != wide}
    costs = predicted_costs(model, narrow, wide, losses)
    ranked = sorted(costs, key=costs.__getitem__, reverse=True)
    if wide is None:  # one layer at least is quantized
        ranked = ranked[:-1]
    counts = range(1, len(ranked) + 1)
    family = [ranked[:count] for count in counts]
    few = fewest(family, good) + 1
    if few in counts and (few in made or good(ranked[:few])):
        return made[few]
    raise StageError(
        f"no such model is within {max_drop} of the float model's quality",
        key="max_drop",
        value=max_drop,
        fix="allow more, more bits, or rounding=gptq+awq",
    )


def allocate_weights(
    model: nn.Module,
    *,
    average_bits: float,
    losses: Callable[[nn.Module], Iterable[Tensor]],
    bits: int = 8,
    bits_of: Mapping[str, int] | None = None,
    protect: tuple[str, ...] = (),
    **options: Any,
) -> WeightOnly:
    """Weights of so many bits on average: each layer has `bits`, 8, or stays in float, with the least predicted loss.

    The choice is exact for the sum of `predicted_losses` (`choose_options`). Layers that `bits_of` names, and
    embeddings and heads with `vocabulary_bits`, keep the bits that they have there. The average is over the weights of
    all layers that would be quantized otherwise; scales and zero points do not count, and a float weight has the bits
    of its dtype.

    Args:
        model: in float, in evaluation mode; not touched unless `in_place`.
        average_bits: at most so many.
        losses: of a model on some validation batches, one after another; each is differentiated.
        bits: the fewest, of all layers to begin with.
        bits_of, protect, options: of `quantize_weight_only`.

    Raises:
        UserError: fewer bits on average than the fewest that the other options allow; and as `quantize_weight_only`.
        StageError: as `quantize_weight_only`.
    """
    which = {"group_size": AUTO, "symmetric": None} | {key: options[key] for key in OF_SELECTION if key in options}
    plain = chosen(model, bits, **which, bits_of=bits_of, protect=protect)
    paths = [path for path in (*plain.layers, *plain.embeddings) if path not in plain.tied]
    given = {path for pattern in bits_of or {} for path in fnmatch.filter(paths, pattern)} | set(plain.others)
    free = [path for path in paths if path not in given]
    wide = Scheme.of(WIDER, AUTO, None)
    all_wide = chosen(model, bits, **which, bits_of=dict(bits_of or {}) | dict.fromkeys(free, WIDER), protect=protect)
    fit = {*all_wide.layers, *all_wide.embeddings} if bits < WIDER else set()
    schemes: dict[str, list[Scheme | None]] = {path: [plain.scheme_of(path)] for path in paths}
    for path in free:
        schemes[path] += [*([wide] if path in fit else []), None]
    weights = {path: weight for path in paths if isinstance(weight := model.get_submodule(path).weight, Tensor)}
    sizes = [
        [weights[path].numel() * (one.bits if one else 8 * weights[path].element_size()) for one in schemes[path]]
        for path in paths
    ]
    total = sum(weight.numel() for weight in weights.values())
    if (least := sum(map(min, sizes)) / max(total, 1)) > average_bits:
        fix = f"ask for {math.ceil(1000 * least) / 1000:g} or more, or fewer bits in bits, bits_of or vocabulary_bits"
        message = f"the fewest that these options allow are {least:.3f}"
        raise UserError(message, key="average_bits", value=average_bits, fix=fix)
    predicted = predicted_losses(model, schemes, losses)
    found = choose_options([predicted[path] for path in paths], sizes, average_bits * total)
    taken = {path: schemes[path][option] for path, option in zip(paths, found.options, strict=True)}
    own = dict(bits_of or {}) | {path: WIDER for path in free if taken[path] == wide}
    log.info("%.3f bits on average: %d layers of 8 bits by choice", found.cost / total, len(own) - len(bits_of or {}))
    left = tuple(path for path, scheme in taken.items() if scheme is None)
    return quantize_weight_only(model, bits=bits, bits_of=own, protect=(*protect, *left), **options)


def predicted_costs(
    model: nn.Module,
    schemes: Mapping[str, Scheme],
    wide: Scheme | None,
    losses: Callable[[nn.Module], Iterable[Tensor]],
) -> dict[str, float]:
    """What each layer's rounding is predicted to add to the loss, for each weight, beyond that of a wider scheme.

    Args:
        model, losses: as for `predicted_losses`.
        schemes: of layers and embeddings, by path.
        wide: what they are compared with; None: float.
    """
    found = predicted_losses(model, {path: [scheme, wide] for path, scheme in schemes.items()}, losses)
    count = {path: weight_of(model.get_submodule(path)).numel() for path in schemes}
    return {path: (narrow - wider) / count[path] for path, (narrow, wider) in found.items()}


def predicted_losses(
    model: nn.Module,
    schemes: Mapping[str, Sequence[Scheme | None]],
    losses: Callable[[nn.Module], Iterable[Tensor]],
) -> dict[str, list[float]]:
    """What the rounding of each layer is predicted to add to the sum of some losses, under each of its schemes.

    It is half the sum of the squared rounding errors, each times the squared gradient of its weight: the second
    order of the loss, its Hessian by the empirical Fisher information (LeCun et al., 1989; Kim et al., SqueezeLLM,
    2024). One backward pass for each loss; gradients are freed layer by layer.

    Args:
        model: in float, in evaluation mode.
        schemes: of layers and embeddings, by path; None is float, which adds nothing.
        losses: of a model on some batches, one after another.
    """
    found = {path: [0.0] * len(own) for path, own in schemes.items()}

    def note(path: str, weight: nn.Parameter) -> None:
        layer = model.get_submodule(path)
        assert weight.grad is not None
        gradient, weight.grad = outputs_first(layer, weight.grad).float(), None
        squared = gradient.square_()
        for place, scheme in enumerate(schemes[path]):
            if scheme is not None:
                found[path][place] += 0.5 * float((squared * _rounding_error(layer, scheme)).sum())

    with _differentiated(model, schemes, note), torch.enable_grad():
        for loss in losses(model):
            loss.backward()
    return found


def _rounding_error(layer: nn.Module, scheme: Scheme) -> Tensor:
    """Squared, of each weight ``(out, in)``."""
    weight = weight_of(layer)
    return (Grid.minmax(weight, scheme).nearest(weight) - weight).square()


@contextmanager
def _differentiated(
    model: nn.Module, paths: Iterable[str], note: Callable[[str, nn.Parameter], None]
) -> Iterator[None]:
    """Weights of some layers alone have gradients, which go to a function as soon as they are there."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hooks = []
    model.requires_grad_(False)
    try:
        for path in paths:
            weight = model.get_submodule(path).weight
            assert isinstance(weight, nn.Parameter)
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(partial(note, path)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
