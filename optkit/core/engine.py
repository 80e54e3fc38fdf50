"""The Engine protocol: where a variant runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from optkit.core.variant import Variant


class Session(Protocol):
    """A variant compiled for one engine and one batch size."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` for inputs of the batch size it was compiled for."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the engine really runs: ``int8_share`` (of MACs), precision, compile seconds."""
        ...

    def save(self, directory: Path) -> None:
        """Writes what `optkit.load` needs to open this session again in a fresh process."""
        ...


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
