"""Weights of mixed bits: as few layers with more bits as bring the quality back, chosen by what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import StageError
from optkit.quantize.mixed_precision import Evaluate, fewest
from optkit.quantize.weight_only import WeightOnly, quantize_weight_only
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.scheme import AUTO, Scheme
from optkit.quantize.weights.selection import outputs_first, weight_of

WIDER = 8  # bits of the layers that are to have more; those of a model of 8 bits stay in float


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
    few = fewest(ranked, good)
    if few <= len(ranked) and (few in made or good(ranked[:few])):
        return made[few]
    raise StageError(
        f"no such model is within {max_drop} of the float model's quality",
        key="max_drop",
        value=max_drop,
        fix="allow more, more bits, or rounding=gptq+awq",
    )


def predicted_costs(
    model: nn.Module,
    schemes: Mapping[str, Scheme],
    wide: Scheme | None,
    losses: Callable[[nn.Module], Iterable[Tensor]],
) -> dict[str, float]:
    """What each layer's rounding is predicted to add to the loss, for each weight, beyond that of a wider scheme.

    It is half the sum of the squared rounding errors, each times the mean squared gradient of its weight: the second
    order of the loss, its Hessian by the empirical Fisher information (LeCun et al., 1989; Kim et al., SqueezeLLM,
    2024). One backward pass for each loss; gradients are freed layer by layer.

    Args:
        model: in float, in evaluation mode.
        schemes: of layers and embeddings, by path.
        wide: what they are compared with; None: float.
        losses: of a model on some batches, one after another.
    """
    costs = dict.fromkeys(schemes, 0.0)

    def note(path: str, weight: nn.Parameter) -> None:
        layer = model.get_submodule(path)
        assert weight.grad is not None
        gradient, weight.grad = outputs_first(layer, weight.grad).float(), None
        costs[path] += 0.5 * float((gradient.square() * _rounding_error(layer, schemes[path], wide)).mean())

    with _differentiated(model, schemes, note), torch.enable_grad():
        for loss in losses(model):
            loss.backward()
    return costs


def _rounding_error(layer: nn.Module, scheme: Scheme, wide: Scheme | None) -> Tensor:
    """Squared, of each weight ``(out, in)``, less that of a wider scheme."""
    weight = weight_of(layer)
    error = (Grid.minmax(weight, scheme).nearest(weight) - weight).square()
    return error if wide is None else error - (Grid.minmax(weight, wide).nearest(weight) - weight).square()


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
