"""A saved variant, opened again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from optkit.core.artifact import open_artifact
from optkit.core.engine import Engine, Session
from optkit.core.errors import StageError, UserError, first_line
from optkit.core.instantiate import check_parameters
from optkit.core.trust import check_trust, engine_class
from optkit.engines.registry import ENGINES
from optkit.engines.saved import ENGINE, Opens, Saved, read_session


def load(
    directory: str | Path, engine: str | None = None, batch_size: int | None = None, trust: Iterable[str] = ()
) -> nn.Module | Session:
    """Opens what a run saved: the module, or a session of an engine.

    Args:
        directory: a folder of ``variants/`` in a run, or one that ``Session.save`` wrote.
        engine: ``inductor``, ``openvino``, ...: gives a session compiled for `batch_size`. None gives the plain module,
            unless the folder was written by ``Session.save``, which remembers its engine and that engine's options.
        batch_size: of the session; None is the batch size the folder remembers.
        trust: what may be called to rebuild the model besides optkit's models and stages: packages or modules, for
            their own classes of models, stages, outputs and engines, or the full name of one class or function. An
            engine or int8 target that an installed package declares as an entry point needs no trust.

    A session of a file (ONNX Runtime, OpenVINO) returns what its model returned. Tuples, dicts and the outputs of
    transformers stay what they were. A dataclass, a named tuple or another class of your own is built if `trust` names
    it. Else a ``SimpleNamespace`` or a plain named tuple with the same members takes its place, and the log says so.

    Raises:
        UserError: no variant there, a damaged one, one that names code that is not trusted, an unknown engine, or one
            that cannot run this variant.
    """
    folder = Path(directory)
    artifact = open_artifact(folder)
    trusted = check_trust(trust)
    saved = read_session(folder, trusted)
    name = engine or (saved.engine if saved else None)
    if name is None:
        return artifact.module(trust)
    same = saved is not None and saved.engine == name
    chosen = _as_saved(saved, folder, trusted) if saved is not None and same else ENGINES.find(name, "engine")()
    if reason := chosen.unavailable() or chosen.unsupported(artifact.variant.traits):
        raise UserError(reason, key="engine", value=name)
    example = saved.example if saved is not None else tuple(spec.zeros() for spec in artifact.inputs)
    if batch_size is not None:
        example = tuple(torch.zeros((batch_size, *x.shape[1:]), dtype=x.dtype) for x in example)
    if saved is not None and same and isinstance(chosen, Opens):
        try:
            return chosen.open(folder, artifact.variant, replace(saved, example=example))
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, StageError) as error:
            message = f"the session is damaged: {first_line(error)}"
            raise UserError(message, key="directory", value=str(folder), fix="save it again") from error
    return chosen.compile(artifact.module(trust), artifact.variant, example)


def _as_saved(saved: Saved, folder: Path, trusted: tuple[str, ...]) -> Engine:
    """The engine with the options of a session: by its name, or by its class where no package offers it."""
    key = str(folder / ENGINE)
    if saved.target is None:
        kind = ENGINES.find(saved.engine, "engine", saved.package)
    else:
        kind = engine_class(saved.target, trusted)
    check_parameters(kind, saved.options, key)
    try:
        return kind(**saved.options)
    except UserError as error:
        raise UserError(error.message, key=f"{key}.{error.key}", value=error.value, fix=error.fix) from error
