"""Targets: classes and functions named by dotted path, looked up and called. For recipes, which name code to run.

What saved variants name goes through `optkit.core.trust`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from optkit.core.errors import OptkitError, UserError, did_you_mean, first_line

TARGET = "_target_"
NAMED = {"optkit": "named"}  # metadata of a dataclass's field whose value, or items, name built-ins or dotted paths
UNKEYED = {"optkit": "unkeyed"}  # of a field that decides how work is done, and not what comes of it
FROZEN = "<frozen importlib"


def locate(target: str, key: str) -> Any:
    """The object at a dotted path.

    Args:
        target: ``package.module.name``.
        key: where it was named, for the error.

    Raises:
        UserError: there is no such object, or its module fails when it is imported.
    """
    module_name, _, name = str(target).rpartition(".")
    if not module_name:
        raise UserError(f"'{target}' is no dotted path", key=key, value=target, fix="such as mypackage.name")
    try:
        module = importlib.import_module(module_name)
    except OptkitError:
        raise
    except Exception as error:
        raise _cannot_import(target, module_name, key, error) from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise UserError(f"'{module_name}' has no '{name}'", key=key, value=target, fix=did_you_mean(name, public))
    return getattr(module, name)


def is_dotted(name: object) -> bool:
    """Whether it is a dotted path; the names of built-ins hold no dots."""
    return isinstance(name, str) and "." in name


def check_part(name: object, known: Iterable[str], key: str, kind: str | None = None) -> None:
    """Raises UserError for what is neither the name of a built-in nor a dotted path; see `own_part`."""
    known = list(known)
    if is_dotted(name) or name in known:
        return
    near = did_you_mean(str(name), known)
    fix = near if near.endswith("?") else f"{near}; or the dotted path of your own, mypackage.name"
    raise UserError(f"no {kind or key.rpartition('.')[2]} '{name}'", key=key, value=name, fix=fix)


def own_part(name: object, known: Iterable[str], key: str, kind: str | None = None) -> Callable[..., Any] | None:
    """The function or class that a dotted path names; None for the name of a built-in.

    Every option that takes a name of a built-in takes the dotted path of one's own in its place, by this function. Its
    field is marked as `NAMED`, so that keys of cached results know the code (`named_paths`).

    Args:
        name: what the user gave.
        known: names of the built-ins.
        key: where it was given, for the error.
        kind: what it is called in errors; None takes the last word of the key.

    Raises:
        UserError: neither a built-in nor something at a dotted path that can be called.
    """
    check_part(name, known, key, kind)
    if not is_dotted(name):
        return None
    found = locate(str(name), key)
    if not callable(found):
        message = f"'{name}' is of type {type(found).__name__}, which cannot be called"
        raise UserError(message, key=key, value=name, fix="name a function")
    return found


def named_paths(thing: Any) -> list[str]:
    """The dotted paths that the `NAMED` fields of a dataclass hold: as a text, in a list, or as keys of a mapping.

    None of anything else.
    """
    marked = [f.name for f in (fields(thing) if is_dataclass(thing) else ()) if f.metadata == NAMED]
    values = [getattr(thing, name) for name in marked]
    items = [item for value in values for item in ([value] if isinstance(value, str) else value or ())]
    return [item for item in items if is_dotted(item)]


def _cannot_import(target: str, module: str, key: str, error: Exception) -> UserError:
    """Says which module is not there, or where and why one fails."""
    absent = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{module}.".startswith(f"{absent}."):
        parent, _, name = absent.rpartition(".")
        within = getattr(sys.modules.get(parent), "__path__", None) if parent else [os.getcwd()]
        near = difflib.get_close_matches(name, [found.name for found in pkgutil.iter_modules(within)], n=1)
        meant = ".".join([*([parent] if parent else []), *near])
        fix = f"did you mean '{meant}'?" if near else f"start optkit in the folder that holds '{name}', or install it"
        return UserError(f"no module '{absent}'", key=key, value=target, fix=fix)
    if isinstance(error, SyntaxError):
        where, reason = f"{error.filename}, line {error.lineno}: ", first_line(error)
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(FROZEN)]
        # the first two are here and in importlib
        where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if len(frames) > 2 else ""
        reason = f"{type(error).__name__}: {first_line(error)}"
    message = f"cannot import '{target}': {where}{reason}"
    return UserError(message, key=key, value=target, fix="correct the file" if where else None)


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a class or function."""
    named = inspect.signature(target).parameters.values()
    return {p.name: p for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def check_parameters(target: Any, given: Mapping[str, Any], key: str) -> None:
    """Raises UserError for a parameter the target does not take, or a required one not given."""
    known = parameters(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    for name in given:
        if name not in known and not takes_any:
            fix = did_you_mean(str(name), known)
            raise UserError(f"unknown key; {target.__name__} takes no '{name}'", key=f"{key}.{name}", fix=fix)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(f"missing; {target.__name__} needs it", key=f"{key}.{name}", fix=f"set {key}.{name}=...")


def call(target: Any, given: Mapping[str, Any]) -> Any:
    """Calls a class or function; a text for a parameter that is annotated as a ``Path`` becomes one."""
    known = parameters(target)
    return target(**{name: _as_path(value, known.get(name)) for name, value in given.items()})


def words_of(parameter: inspect.Parameter) -> set[str]:
    """The names in a parameter's annotation, such as ``Path`` and ``None``."""
    return set(re.findall(r"\w+", str(parameter.annotation)))


def _as_path(value: Any, parameter: inspect.Parameter | None) -> Any:
    if parameter is None or "Path" not in (words := words_of(parameter)) or "str" in words:
        return value
    if isinstance(value, list):
        return [_as_path(one, parameter) for one in value]
    return Path(value) if isinstance(value, str) else value


def build(node: Mapping[str, Any], key: str) -> Any:
    """Calls a node's ``_target_`` with its other keys, nodes within it built first.

    A parameter that is annotated as a ``dict`` takes its node as data (the spec of a teacher, say).

    Raises:
        UserError: an unknown, missing or refused parameter, named by its full key; or own code that fails.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{node!r} is not a mapping", key=key, value=node, fix=f"~{key} leaves it out")
    if TARGET not in node:
        raise UserError("no _target_", key=key, fix="pick one from a config group, or give _target_: package.Class")
    target = locate(node[TARGET], f"{key}.{TARGET}")
    given = {k: v for k, v in node.items() if k != TARGET}
    check_parameters(target, given, key)
    known = parameters(target)
    for name, value in given.items():
        takes_data = name in known and str(known[name].annotation).startswith("dict")
        if isinstance(value, Mapping) and TARGET in value and not takes_data:
            given[name] = build(value, f"{key}.{name}")
    try:
        return call(target, given)
    except UserError as error:
        inner = f"{key}.{error.key}" if error.key else key
        raise type(error)(error.message, key=inner, value=error.value, fix=error.fix) from error
    except Exception as error:
        if isinstance(error, OptkitError) or str(getattr(target, "__module__", "")).startswith("optkit."):
            raise
        message = f"{node[TARGET]} fails: {type(error).__name__}: {first_line(error)}"
        raise UserError(message, key=key, fix="--debug shows where") from error
