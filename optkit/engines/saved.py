"""A session on disk: the variant, which engine to open it in, and how."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from optkit.core.artifact import FILES, InputSpec, save_artifact
from optkit.core.cache import write_text
from optkit.core.checksums import ENTRY
from optkit.core.engine import Engine, Session
from optkit.core.errors import UserError
from optkit.core.structure import Structure, Value, from_json, to_json
from optkit.core.trust import output_class
from optkit.core.variant import Variant
from optkit.engines.registry import ENGINES, is_registered

log = logging.getLogger(__name__)
ENGINE = "engine.json"


@dataclass(frozen=True)
class Saved:
    """What a session was.

    Attributes:
        engine: its name.
        options: the engine's fields.
        example: inputs of the shapes that it was compiled for.
        facts: the session's.
        returns: the structure of what it returns; the first versions of optkit knew one tensor alone.
        package: that offers the engine; None where it is optkit's own, or no package offers it.
        target: the dotted path of the engine's class where no package offers it, else None.
        opens: whether the engine opens a file of its own; otherwise loading builds the model anew. Not on disk.
    """

    engine: str
    options: dict[str, Any]
    example: tuple[Tensor, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    returns: Structure = field(default_factory=lambda: Value(torch.float32))
    package: str | None = None
    target: str | None = None
    opens: bool = True

    @classmethod
    def of(
        cls, engine: Engine, example: tuple[Tensor, ...], facts: dict[str, Any], returns: Structure | None = None
    ) -> Saved:
        """Of an engine's session; an engine that compiles the module again need not say what it returns."""
        returns = Value(torch.float32) if returns is None else returns
        options = asdict(engine)  # type: ignore[call-overload]
        found = cls(engine.name, options, example, facts, returns, opens=isinstance(engine, Opens))
        if is_registered(engine):
            return replace(found, package=ENGINES.package(engine.name))
        kind = type(engine)
        return replace(found, target=f"{kind.__module__}.{kind.__qualname__}")


@runtime_checkable
class Opens(Protocol):
    """An engine whose sessions save a file of its own, which needs no module to be opened again."""

    def open(self, folder: Path, variant: Variant, saved: Saved) -> Session:
        """The session that was saved in a folder, for the example's shapes in ``saved``."""
        ...


def save_session(
    folder: str | Path,
    variant: Variant,
    source: nn.Module | Path,
    saved: Saved,
    write: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Writes a variant and what its session was; `optkit.load` opens it again.

    `ENGINE` comes last: without it, as after a kill, a folder holds a variant and no session.

    Args:
        folder: to write into.
        variant: of the session.
        source: its module, or the folder that the session was itself opened from.
        saved: the session.
        write: writes the engine's own file into a folder.

    Returns:
        The folder.

    Raises:
        UserError: the engine compiles the model again on loading, and how to build the model is not known; or the
            session was opened from this folder.
    """
    if not variant.model and not saved.opens:
        message = f"a session of {saved.engine} cannot be loaded again: how to build this model is not known"
        fix = "save the graph with optkit.engines.save_program, or compile for openvino or onnxruntime"
        raise UserError(message, key="engine", value=saved.engine, fix=fix)
    folder = Path(folder)
    if isinstance(source, Path) and folder.resolve() == source.resolve():
        fix = "another folder: it holds the session already"
        raise UserError("the session was opened from this folder", key="directory", value=str(folder), fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENGINE).unlink(missing_ok=True)
    if isinstance(source, nn.Module):
        save_artifact(folder, variant, source, saved.example)
    else:
        (folder / ENTRY).unlink(missing_ok=True)
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    inputs = [asdict(InputSpec.of(x)) for x in saved.example]
    text = {"engine": saved.engine, "options": saved.options, "inputs": inputs, "facts": saved.facts}
    text["returns"] = to_json(saved.returns)
    text |= {key: value for key, value in (("package", saved.package), ("target", saved.target)) if value is not None}
    write(folder)
    write_text(folder / ENGINE, json.dumps(text, indent=1) + "\n")
    return folder


def read_session(folder: Path, trusted: tuple[str, ...] = ()) -> Saved | None:
    """What `save_session` wrote; None in a folder that holds a variant only.

    Args:
        folder: it wrote into.
        trusted: names of what may be called, see `optkit.core.trust`: classes that the session returns.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / ENGINE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        example = tuple(InputSpec.from_json(spec).zeros() for spec in found["inputs"])
        returns = from_json(found["returns"], partial(_class, trusted)) if "returns" in found else Value(torch.float32)
        package, target = (None if found.get(key) is None else str(found[key]) for key in ("package", "target"))
        saved = Saved(found["engine"], found["options"], example, found["facts"], returns, package, target)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a session: {error}", key=str(path)) from error
    kinds = {"engine": str, "options": dict, "facts": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(getattr(saved, name), kind)]:
        raise UserError(f"not a session: {wrong[0]} is {found[wrong[0]]!r}", key=str(path))
    return saved


def _class(trusted: tuple[str, ...], name: str) -> type | None:
    """The class of what a session returns, if it is trusted and can be imported."""
    try:
        return output_class(name, trusted)
    except UserError as error:
        log.info("what it returns keeps its names, but is no %s: %s", name, error)
        return None
