"""A saved variant, opened again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from optkit.core.artifact import TRUSTED, open_artifact
from optkit.core.engine import Session
from optkit.core.errors import UserError, did_you_mean
from optkit.engines import ENGINES
from optkit.engines.saved import ENGINE


def load(
    directory: str | Path, engine: str | None = None, batch_size: int | None = None, trust: Iterable[str] = ()
) -> nn.Module | Session:
    """Opens what a run saved: the module, or a session of an engine.

    Args:
        directory: a folder of ``variants/`` in a run, or one that ``Session.save`` wrote.
        engine: ``inductor``, ``eager``, ...: gives a session compiled for `batch_size`. None gives the plain module,
            unless the folder was written by ``Session.save``, which remembers its engine.
        batch_size: of the session; None is the batch size the folder remembers.
        trust: top-level packages besides optkit whose classes may be called to rebuild the model.

    Raises:
        UserError: no variant there, an unknown engine, or one that cannot run this variant.
    """
    folder = Path(directory)
    artifact = open_artifact(folder)
    module = artifact.module((*TRUSTED, *trust))
    if (folder / ENGINE).is_file():
        saved = json.loads((folder / ENGINE).read_text())
        engine, batch_size = engine or saved["engine"], batch_size or saved["batch_size"]
    if engine is None:
        return module
    if engine not in ENGINES:
        raise UserError(f"no engine '{engine}'", key="engine", value=engine, fix=did_you_mean(engine, ENGINES))
    chosen = ENGINES[engine]()
    if reason := chosen.unavailable() or chosen.unsupported(artifact.variant.traits):
        raise UserError(reason, key="engine", value=engine)
    shapes = [(batch_size or spec.shape[0], *spec.shape[1:]) for spec in artifact.inputs]
    example = tuple(torch.zeros(s, dtype=getattr(torch, i.dtype)) for s, i in zip(shapes, artifact.inputs, strict=True))
    return chosen.compile(module, artifact.variant, example)
