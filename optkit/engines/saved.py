"""A session on disk: the variant, which engine to open it in, and how."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.artifact import VARIANT, WEIGHTS, save_artifact
from optkit.core.variant import Variant

ENGINE = "engine.json"


@dataclass(frozen=True)
class Saved:
    """What a session was.

    Attributes:
        engine: its name.
        options: the engine's fields.
        example: inputs of the shapes that it was compiled for.
        facts: the session's.
    """

    engine: str
    options: dict[str, Any]
    example: tuple[Tensor, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def save_session(folder: str | Path, variant: Variant, source: nn.Module | Path, saved: Saved) -> Path:
    """Writes a variant and what its session was; `optkit.load` opens it again.

    Args:
        folder: to write into.
        variant: of the session.
        source: its module, or the folder that the session was itself opened from.
        saved: the session.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(source, nn.Module):
        save_artifact(folder, variant, source, saved.example)
    else:
        for name in (VARIANT, WEIGHTS):
            shutil.copyfile(source / name, folder / name)
    inputs = [{"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for x in saved.example]
    text = {"engine": saved.engine, "options": saved.options, "inputs": inputs, "facts": saved.facts}
    (folder / ENGINE).write_text(json.dumps(text, indent=1) + "\n")
    return folder


def read_session(folder: Path) -> Saved | None:
    """What `save_session` wrote; None in a folder that holds a variant only."""
    if not (folder / ENGINE).is_file():
        return None
    found = json.loads((folder / ENGINE).read_text())
    example = tuple(torch.zeros(x["shape"], dtype=getattr(torch, x["dtype"])) for x in found["inputs"])
    return Saved(found["engine"], found["options"], example, found["facts"])
