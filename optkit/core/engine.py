"""The Engine protocol: where a variant runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError
from optkit.core.variant import Variant

# in a quantized graph's ``meta``, the engine it is annotated for; with the same prefix, a trait of its variant
MADE_FOR = "int8:"


def made_for(target: str) -> frozenset[str]:
    """The traits of an int8 variant that is annotated for one engine."""
    return frozenset({"int8", f"{MADE_FOR}{target}"})


def not_made_for(engine: str, traits: frozenset[str]) -> str | None:
    """Why an engine has no int8 kernels for a variant; None when it runs as what it claims to be.

    An engine takes what is float, and int8 graphs that are annotated for what it fuses.
    """
    if "float" in traits or f"{MADE_FOR}{engine}" in traits:
        return None
    if annotated := sorted(trait.removeprefix(MADE_FOR) for trait in traits if trait.startswith(MADE_FOR)):
        return f"its int8 graph is annotated for {annotated[0]}; target={engine} makes one for this engine"
    return f"this engine has no kernels for a variant that is {', '.join(sorted(traits)) or 'not float'}"


class Session(Protocol):
    """A variant compiled for one engine and the shapes of its example inputs, which are its fast path."""

    def __call__(self, *inputs: Tensor) -> Any:
        """What the module returns, its tensors on the CPU and in the module's dtypes: a tensor, a tuple, a dict, ..."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the engine really runs: ``int8_share`` (of MACs), precision, compile seconds."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes what `optkit.load` needs to open this session again in a fresh process."""
        ...


class Served(Session, Protocol):
    """A session that stands where a module stood: code that prepares a module for inference does it no harm."""

    def eval(self) -> Self:
        """The session, which is for inference."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The session for ``train(False)``; raises UserError for ``train()``."""
        if mode:
            raise UserError("a session is compiled for inference", key="mode", value=mode, fix="train its module")
        return self

    def to(self, device: str | torch.device) -> Self:
        """The session for the CPU, where it takes and gives tensors; raises UserError for anything else."""
        if isinstance(device, (str, torch.device)) and torch.device(device).type == "cpu":
            return self
        fix = "another device is another engine, another precision an option of it"
        raise UserError("a session takes and gives tensors on the CPU", key="device", value=device, fix=fix)


@runtime_checkable
class Engine(Protocol):
    """A dataclass whose fields are its config."""

    name: ClassVar[str]

    def unavailable(self) -> str | None:
        """Why this engine does not work on this machine, with the fix; None when it works."""
        ...

    def unsupported(self, traits: frozenset[str]) -> str | None:
        """Why a variant with these traits cannot run here as what it claims to be; None when it can."""
        ...

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> Session: ...
