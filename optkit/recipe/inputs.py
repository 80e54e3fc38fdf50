"""What a composed recipe reads from this machine: its paths, apart from the rest, each with a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optkit.core.artifact import VARIANT, open_artifact
from optkit.core.errors import UserError
from optkit.core.manifest import PLACES
from optkit.core.task import Task
from optkit.recipe.paths import EITHER, change_paths

INPUT = "$input"  # what stands in the recipe for a path: {"$input": KEY}
LARGE = 1 << 28  # bytes of a data file above which the task's own fingerprint must do


def split_inputs(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A composed config without machine paths, and these paths by config key.

    A value is such a path if it is declared as one (`optkit.recipe.paths`), or is an absolute path that is there.

    Args:
        node: the config, composed, its paths absolute.
    """
    found: dict[str, Any] = {}

    def take(key: str, value: Any, kind: str = EITHER) -> Any:
        paths = [one for one in _listed(value) if isinstance(one, str)]
        if not paths or (kind == EITHER and not any(Path(one).is_absolute() and Path(one).exists() for one in paths)):
            return value
        found[key] = value
        return {INPUT: key}

    rest = {key: value for key, value in node.items() if key not in PLACES}
    return _undeclared(change_paths(rest, take), take, ""), found


def fingerprints(paths: Mapping[str, Any], task: Task) -> dict[str, dict[str, Any]]:
    """The inputs of a recipe, by config key: where each was found, and what it is.

    The data have the task's own fingerprint, under ``task``. A file has its SHA-256, a saved variant its id
    and that of its weights, and a folder of a model that of all its files. A folder of data has none of its own.

    Args:
        paths: by config key, from `split_inputs`.
        task: the recipe's.
    """
    data: dict[str, Any] = {"fingerprint": task.fingerprint}
    if task.pool_fingerprint is not None:
        data["unlabelled"] = task.pool_fingerprint
    found = {"task": data}
    for key, value in paths.items():
        of_task = key.startswith("task.")
        what = [_digest(Path(one).expanduser(), of_task) for one in _listed(value) if isinstance(one, str)]
        sha = what if len(what) > 1 else what[0]
        found[key] = {"path": value} | ({"sha256": sha} if any(what) else {})
    return found


def _undeclared(node: Mapping[str, Any], take: Any, prefix: str) -> dict[str, Any]:
    """A config whose remaining texts, where they are absolute paths of this machine, are taken, too."""
    found = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            found[name] = value if INPUT in value else _undeclared(value, take, f"{prefix}{name}.")
        else:
            found[name] = take(f"{prefix}{name}", value)
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _digest(path: Path, of_task: bool) -> str | None:
    if path.is_file():
        return None if of_task and path.stat().st_size > LARGE else _of_files([path])
    if of_task or not path.is_dir():
        return None
    if (path / VARIANT).is_file():
        try:
            artifact = open_artifact(path)
        except UserError:  # planning says what is wrong with it
            return None
        return f"{artifact.variant.id} {artifact.weights_digest()}"
    return _of_files(sorted(_files(path)), path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _of_files(files: list[Path], root: Path | None = None) -> str:
    """SHA-256, hex: of a file's bytes, or of the names and digests of a folder's files."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if root is None:
        return digests[0]
    listed = "\n".join(f"{path.relative_to(root)} {digest}" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()
