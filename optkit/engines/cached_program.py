"""The form with a cache of a generating module as a graph of torch.export, weights of few bits as its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from optkit.core.errors import StageError
from optkit.core.generation import CachedModel
from optkit.core.packed_weights import PackedWeights
from optkit.engines.program import export_failures, innermost_reason

INPUTS = ("input_ids", "attention_mask", "position_ids", "places")
ROWS, TOKENS, EARLIER = 2, 5, 3  # of the example; torch fixes sizes of 1, and might take equal ones for the same


@dataclass(frozen=True)
class CachedProgram:
    """An exported `CachedModel`.

    Its inputs are those of `INPUTS`, then the keys and values of earlier tokens, then one float weight ``(out, in)``
    for each layer of `packed`: an engine puts its own form of the integers in their place. Its outputs are the logits,
    and the keys and values.

    Attributes:
        program: of torch.export; free in the number of rows, of tokens, of earlier tokens and of places.
        past: keys and values of no tokens, ``(1, heads, 0, width)`` each.
        packed: the layers with weights of few bits.
    """

    program: ExportedProgram
    past: tuple[Tensor, ...]
    packed: tuple[PackedWeights, ...]


def export_cached(cached: CachedModel) -> CachedProgram:
    """Exports a model with its cache.

    Raises:
        StageError: torch cannot export it.
    """
    past = cached.nothing_read(1)
    with _weights_from_outside(cached) as held, torch.no_grad():
        packed = tuple(held.weights)
        weights = tuple(torch.empty(1).expand(layer.integers().shape) for layer in packed)
        example = (
            torch.zeros(ROWS, TOKENS, dtype=torch.long),
            torch.ones(ROWS, EARLIER + TOKENS, dtype=torch.long),
            torch.arange(EARLIER, EARLIER + TOKENS).repeat(ROWS, 1),
            torch.tensor([TOKENS - 1, 0, 2, 1]),
            tuple(x.new_zeros(ROWS, x.shape[1], EARLIER, x.shape[3]) for x in past),
            weights,
        )
        free = ({0: Dim.AUTO, 1: Dim.AUTO},) * 3 + ({0: Dim.AUTO},)
        free_past = tuple({0: Dim.AUTO, 2: Dim.AUTO} for _ in past)
        try:
            program = torch.export.export(
                _Flat(cached, held), example, dynamic_shapes=(*free, free_past, (None,) * len(weights)), strict=False
            )
        except export_failures() as error:
            raise StageError(f"torch cannot export this model with its cache: {innermost_reason(error)}") from error
    return CachedProgram(program, past, packed)


class _Held:
    """The weights that stand-ins read; no dict itself, for torch.export looks for tensors in those of a module."""

    def __init__(self, layers: Iterable[PackedWeights]):
        self.weights = dict.fromkeys(layers, torch.empty(0))


class _Flat(nn.Module):
    """A model with a cache that takes the weights of its packed layers as inputs."""

    def __init__(self, cached: CachedModel, held: _Held):
        super().__init__()
        self.cached, self.held = cached, held

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        places: Tensor,
        past: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        self.held.weights = dict(zip(self.held.weights, weights, strict=True))
        return self.cached(input_ids, attention_mask, position_ids, places, *past)


class _Outside(nn.Module):
    """Stands where a packed layer stood, and multiplies by, or looks up in, a weight that is given from outside."""

    def __init__(self, layer: PackedWeights, held: _Held):
        super().__init__()
        self.layer, self.held = (layer,), held  # in a tuple, the layer is no part of this module
        self.bias = getattr(layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.held.weights[self.layer[0]]
        return F.linear(x, weight, self.bias) if x.is_floating_point() else F.embedding(x, weight)


@contextmanager
def _weights_from_outside(module: nn.Module) -> Iterator[_Held]:
    """Puts stand-ins in the place of packed layers while the context lasts; gives the weights that they read."""
    found = {path: x for path, x in module.named_modules(remove_duplicate=False) if isinstance(x, PackedWeights)}
    held = _Held(found.values())
    try:
        for path, layer in found.items():
            module.set_submodule(path, _Outside(layer, held))
        yield held
    finally:
        for path, layer in found.items():
            assert isinstance(layer, nn.Module)
            module.set_submodule(path, layer)
