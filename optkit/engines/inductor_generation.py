"""Inductor sessions of generating models: prompts and steps are compiled apart, steps on tensors of a fixed length."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.generation import CachedSession, Generative
from optkit.core.variant import Variant
from optkit.engines.saved import Saved, save_session

if TYPE_CHECKING:
    from optkit.engines.inductor import Inductor

log = logging.getLogger(__name__)
SHORTEST = 8  # tokens that a prompt is filled up to


@dataclass
class InductorGenerator(CachedSession):
    """A module compiled for each number of rows, and for lengths that are powers of two.

    A prompt of another length is filled up with padding on its left, which changes no answer; the example's length is
    compiled as it is. A step reads keys and values in tensors of a length that is a power of two. What a call needs
    and is not compiled yet is compiled at that call, and the log says so.
    """

    module: nn.Module
    variant: Variant
    engine: Inductor
    example: tuple[Tensor, ...]
    compiled: dict[tuple[Any, ...], Callable[..., Any]] = field(default_factory=dict)
    compile_s: float = 0.0

    def __post_init__(self) -> None:
        assert isinstance(self.module, Generative)
        self.model = self.module.cached()
        self.step_model = self.model.in_place()
        self.precision = self.engine.precision_of(self.module)
        self.nothing: tuple[Tensor, ...] = ()
        self.cache: tuple[Tensor, ...] = ()
        self.filled = 0  # padding in front of a prompt, so that fewer lengths are compiled

    def __call__(self, *inputs: Tensor) -> Any:
        (tokens,) = inputs
        return self._all_logits(tokens)

    def _forget(self, rows: int) -> None:
        self.nothing = self.model.nothing_read(rows)
        self.cache = ()
        self.filled = 0

    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        read = self._step if self.length else self._prompt
        return read(tokens, mask, positions, places)

    def _keep(self, length: int) -> None:
        """Nothing: what is behind it is written over."""

    def _prompt(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        rows, given = tokens.shape
        length = given if given == self.example[0].shape[1] else max(SHORTEST, power_of_two(given))
        self.filled = length - given
        padded = [F.pad(x, (self.filled, 0)) for x in (tokens, mask, positions)]
        one = len(places) == 1
        wanted = places + self.filled if one else torch.arange(length)
        what = f"a prompt of {length} tokens" if one else f"all logits of {length} tokens"
        logits, *self.cache = self._call(what, rows, self.model, (*padded, wanted, *self.nothing))
        return logits if one else logits[:, places + self.filled]

    def _step(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        slot = self.filled + self.length
        held = self.cache[0].shape[2]
        length = power_of_two(max(slot + 1, held))
        kind = self.nothing[0].dtype  # under autocast a prompt's are of less precision
        if length > held or self.cache[0].dtype is not kind:
            self.cache = tuple(_longer(x, length, kind) for x in self.cache)
        seen = F.pad(mask, (self.filled, length - slot - 1))
        arguments = (tokens, seen, positions, places, torch.tensor([slot]), *self.cache)
        return self._call(f"a step in a cache of {length} tokens", len(tokens), self.step_model, arguments)

    def _call(self, what: str, rows: int, model: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        """What a model gives, compiled for arguments of such shapes."""
        key = (what, rows)
        given = tuple(x.contiguous() for x in arguments)
        if key not in self.compiled:
            log.info("inductor compiles %s, %d rows", what, rows)
            started = time.perf_counter()
            self.compiled[key] = self.engine.compiled(model, given)[0]
            self.compile_s += time.perf_counter() - started
        with torch.no_grad(), self.engine.autocast():
            found = self.compiled[key](*given)
        return found if len(found) > 1 else found[0]

    @property
    def cache_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.cache)

    def facts(self) -> dict[str, Any]:
        return {"int8_share": 0.0, "precision": self.precision, "compile_s": round(self.compile_s, 3)}

    def save(self, directory: str | Path) -> None:
        saved = Saved.of(self.engine, self.example, self.facts())
        save_session(directory, self.variant, self.module, saved)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (least - 1).bit_length()


def _longer(x: Tensor, length: int, kind: torch.dtype) -> Tensor:
    """Keys or values ``(N, heads, tokens, width)`` in a tensor of another length and kind, zeros behind them."""
    found = torch.zeros(*x.shape[:2], length, x.shape[3], dtype=kind)
    found[:, :, : x.shape[2]] = x
    return found
