"""Writes a run's manifest: what it follows from when it begins, and how each process that works on it ends."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from optkit.core.cache import write_text
from optkit.core.environment import environment, machine
from optkit.core.errors import OptkitError, first_line
from optkit.core.git import checkout_of
from optkit.core.imports import OWN, file_of, find_module
from optkit.core.installed import distributions
from optkit.core.instantiate import TARGET, named_paths
from optkit.core.manifest import FORMAT, MANIFEST, changes, read_manifest, surroundings
from optkit.core.secrets import arguments_without_secrets, without_secrets
from optkit.core.source_digest import code_of_module
from optkit.core.version import version
from optkit.recipe.inputs import fingerprints, split_inputs
from optkit.recipe.keys import parts, target_of
from optkit.recipe.plan import Plan
from optkit.recipe.recipe import Recipe

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
NO_CODE_OF_THE_USERS = (OWN, "torch", *sys.stdlib_module_names)


@contextmanager
def recorded(
    folder: Path, recipe: Recipe, threads: int, engine_packages: Iterable[str], begins: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Writes into a run's manifest that this process works on it, and in the end how that went.

    The first process writes what the run follows from. One that continues it elsewhere, or with other versions, says in
    what it differs. A process that is killed stays ``running``.

    Args:
        folder: of the run, locked.
        recipe: the run's.
        threads: of torch.
        engine_packages: the packages of the engines that are measured.
        begins: what else a new manifest says, from `beginning`; None writes none where there is none.
    """
    before = read_manifest(folder)
    if before is None and begins is None:
        yield
        return
    now = describe(recipe, threads, engine_packages)
    manifest = now | dict(begins or {}) | {"invocations": []} if before is None else before
    invocation: dict[str, Any] = {
        "argv": arguments_without_secrets([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
        "overrides": arguments_without_secrets(recipe.overrides),
        "machine": machine(),
        "started": _now(),
        "ended": None,
        "state": RUNNING,
    }
    if before is not None and (differs := changes(before, now)):
        invocation["differs"] = [asdict(one) for one in differs]
    manifest["invocations"].append(invocation)
    _write(folder, manifest)
    state, why = INTERRUPTED, None
    try:
        yield
        state = FINISHED
    except Exception as error:
        state, why = FAILED, error.message if isinstance(error, OptkitError) else first_line(error)
        raise
    finally:
        invocation |= {"ended": _now(), "state": state} | ({"why": without_secrets(why)} if why else {})
        _write(folder, manifest)


def beginning(plan: Plan) -> dict[str, Any]:
    """What the manifest of a run says besides `describe`: its name, and the seed of each stage."""
    stages = {step.folder: step.seed for step in plan.steps if step.stage is not None}
    return {"run": plan.run, "seeds": {"recipe": plan.recipe.seed} | stages}


def describe(recipe: Recipe, threads: int, engine_packages: Iterable[str]) -> dict[str, Any]:
    """What the results of a recipe follow from here and now; see `recorded` for the arguments."""
    config, paths = split_inputs(yaml.safe_load(recipe.text) or {})
    return {
        "format": FORMAT,
        "recipe": without_secrets(config),
        "inputs": without_secrets(fingerprints(paths, recipe.task)),
        "data": recipe.task.facts(),
        "optkit": {"version": version(), **_own_source()},
        "code": _named_code(recipe),
        "environment": surroundings(environment(threads, engine_packages)) | {"machine": machine()},
        "installed": distributions(),
    }


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _own_source() -> dict[str, Any]:
    """The commit of optkit, where it runs from a checkout of its own, and the SHA-256 of its source."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    found: dict[str, Any] = {"source": digest.hexdigest()}
    own = checkout_of(package) if (package.parent / ".git").exists() else None
    return found | ({"commit": own.commit, "dirty": own.dirty} if own else {})


def _named_code(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The modules besides optkit's and torch's that a recipe names code of, by name.

    Of an installed package the version; of source its commit, and a digest of all that it imports, too.
    """
    things = [recipe.task, *recipe.stages.values(), *recipe.engines.values()]
    named = [target_of(thing) for thing in things] + [target_of(metric) for metric in recipe.task.metrics]
    named += [path for stage in recipe.stages.values() for part in parts(stage) for path in named_paths(part)]
    named += [str(recipe.model[TARGET])] if TARGET in recipe.model else []
    modules = {path.rpartition(".")[0] for path in named}
    return {name: _about(name) for name in sorted(modules) if name.partition(".")[0] not in NO_CODE_OF_THE_USERS}


def _about(module: str) -> dict[str, Any]:
    code = code_of_module(module)
    if code is None:
        return {"source": None}
    version_of_package, digest = code
    if version_of_package is not None:
        return {"version": version_of_package}
    found: dict[str, Any] = {"source": digest}
    spec = find_module(module)
    file = file_of(spec) if spec else None
    if file is not None and (home := checkout_of(file.resolve().parent)) is not None:
        path = file.resolve().relative_to(home.root.resolve())
        found |= {"commit": home.commit, "dirty": home.dirty, "file": str(path)}
    return found
