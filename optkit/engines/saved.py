"""A session on disk: the variant, and which engine to open it in."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from optkit.core.artifact import save_artifact
from optkit.core.variant import Variant

ENGINE = "engine.json"


def save_session(folder: Path, variant: Variant, module: nn.Module, example: tuple[Tensor, ...], engine: str) -> None:
    """Writes the variant and the engine's name; `optkit.load` compiles it again in the process that loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_artifact(folder, variant, module, example)
    (folder / ENGINE).write_text(json.dumps({"engine": engine, "batch_size": len(example[0])}) + "\n")
