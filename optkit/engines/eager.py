"""The eager engine: PyTorch as it is, in fp32; the reference of every speedup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.core.engine import Engine, Served, own_precision
from optkit.core.generation import CachedSession, Generative
from optkit.core.packed_weights import SIMULATED_IN_TORCH
from optkit.core.records import REFERENCE
from optkit.core.variant import Variant
from optkit.engines.saved import Saved, save_session


@dataclass
class Eager(Engine):
    """PyTorch eager mode, in the precision of the model: fp32 in recipes."""

    name: ClassVar[str] = REFERENCE
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    shares_torch_threads: ClassVar[bool] = True

    def unsupported(self, traits: frozenset[str]) -> str | None:
        if "int8" in traits:
            return "eager would compute the quantized graph in fp32: a simulation of int8"
        if SIMULATED_IN_TORCH in traits:
            return "torch has no kernel for its weights: eager would multiply by dequantized ones"
        return None

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> EagerSession:
        if isinstance(module, Generative):
            return EagerGenerator(module, variant, self, example)
        return EagerSession(module, variant, self, example)


@dataclass
class EagerSession(Served):
    """The module itself."""

    module: nn.Module
    variant: Variant
    engine: Eager
    example: tuple[Tensor, ...]

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.inference_mode():
            return self.module(*inputs)

    def facts(self) -> dict[str, Any]:
        return {"int8_share": 0.0, "precision": own_precision(self.module), "compile_s": 0.0}

    def save(self, directory: str | Path) -> None:
        saved = Saved.of(self.engine, self.example, self.facts())
        save_session(directory, self.variant, self.module, saved)


@dataclass
class EagerGenerator(EagerSession, CachedSession):
    """The module itself, and its form with a cache for generation."""

    def __post_init__(self) -> None:
        assert isinstance(self.module, Generative)
        self.cached = self.module.cached()
        self.past: tuple[Tensor, ...] = ()

    def _forget(self, rows: int) -> None:
        self.past = self.cached.nothing_read(rows)

    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        with torch.inference_mode():
            logits, *self.past = self.cached(tokens, mask, positions, places, *self.past)
        return logits

    def _keep(self, length: int) -> None:
        self.past = tuple(x[:, :, :length] for x in self.past)

    @property
    def cache_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.past)
