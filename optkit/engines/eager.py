"""The eager engine: PyTorch as it is, in fp32; the reference of every speedup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.core.engine import Engine, Served
from optkit.core.records import REFERENCE
from optkit.core.variant import Variant
from optkit.engines.saved import Saved, save_session


@dataclass
class Eager(Engine):
    """PyTorch eager mode in fp32."""

    name: ClassVar[str] = REFERENCE
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    shares_torch_threads: ClassVar[bool] = True

    def unsupported(self, traits: frozenset[str]) -> str | None:
        if "int8" in traits:
            return "eager would compute the quantized graph in fp32: a simulation of int8"
        return None

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> EagerSession:
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
        return {"int8_share": 0.0, "precision": "fp32", "compile_s": 0.0}

    def save(self, directory: str | Path) -> None:
        saved = Saved.of(self.engine, self.example, self.facts())
        save_session(directory, self.variant, self.module, saved)
