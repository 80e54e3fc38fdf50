"""Targets: classes and functions named by dotted path, looked up and called. For recipes, which name code to run.

What saved variants name goes through `optkit.core.trust`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from optkit.core.errors import UserError, did_you_mean

TARGET = "_target_"


def locate(target: str, key: str) -> Any:
    """The object at a dotted path.

    Args:
        target: ``package.module.name``.
        key: where it was named, for the error.

    Raises:
        UserError: there is no such object.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except SyntaxError as error:
        message = f"cannot import '{target}': {error.filename}, line {error.lineno}: {error.msg}"
        raise UserError(message, key=key, value=target, fix="correct the file") from error
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import '{target}': {error}", key=key, value=target) from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise UserError(f"'{module_name}' has no '{name}'", key=key, value=target, fix=did_you_mean(name, public))
    return getattr(module, name)


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


def build(node: Mapping[str, Any], key: str) -> Any:
    """Calls a node's ``_target_`` with its other keys, nodes within it built first.

    A parameter that is annotated as a ``dict`` takes its node as data (the spec of a teacher, say).

    Raises:
        UserError: an unknown, missing or refused parameter, named by its full key.
    """
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
        return target(**given)
    except UserError as error:
        inner = f"{key}.{error.key}" if error.key else key
        raise type(error)(error.message, key=inner, value=error.value, fix=error.fix) from error
