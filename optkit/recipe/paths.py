"""Which values of a recipe are paths, by declaration, and their absolute form.

A parameter of a class or function is a path if its annotation says so: ``pathlib.Path``, or for a text
`optkit.core.paths.FilePath`. ``PathOrId`` is a folder if there is one of that name, else an id. Every model may have a
``checkpoint`` or a ``variant``, and every stage a ``teacher``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optkit.core.instantiate import TARGET, locate, parameters, words_of

PATH, EITHER = "path", "path or id"
OF_MODELS = {"checkpoint": PATH, "variant": PATH}
# what these call their folders; a recipe is checked without torch, which the functions themselves import
OF_OWN_MODELS = {"pretrained": EITHER, "config": EITHER}
ANNOTATIONS = {"Path": PATH, "FilePath": PATH, "PathOrId": EITHER}
BASELINE = "baseline"
BaseOf = Callable[[str], Path]  # the folder that a relative path at a key is relative to
Change = Callable[[str, Any, str], Any]  # of the value at a key, which is `PATH` or `EITHER`


def place(node: dict[str, Any], base_of: BaseOf) -> dict[str, Any]:
    """A recipe's config with absolute paths; what is not resolved yet (``${...}``) stays.

    Raises:
        UserError: a class that is not there.
    """
    return change_paths(node, lambda key, value, kind: _absolute(value, kind, base_of(key)))


def change_paths(node: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A recipe's config with another value for each path.

    Args:
        node: the config.
        change: gets the full key, the value (a path, or a list of these) and `PATH` or `EITHER`; gives the new value.

    Raises:
        UserError: a class that is not there.
    """
    found = dict(node)
    for group in ("task", "stages", "engines"):
        if isinstance(found.get(group), Mapping):
            found[group] = _within(found[group], group, change)
    if isinstance(found.get("model"), Mapping):
        found["model"] = _model(found["model"], "model", change)
    return found


def _within(node: Mapping[str, Any], key: str, change: Change) -> dict[str, Any]:
    """A mapping, and the mappings in it."""
    # optkit's engines have no paths among their options, and importing them takes torch
    known = _is_known(target := node.get(TARGET)) and not str(target).startswith("optkit.engines.")
    declared = _annotated(str(target), f"{key}.{TARGET}") if known else {}
    found = {}
    for name, value in node.items():
        inner = f"{key}.{name}"
        if name == "teacher" and TARGET in node:
            found[name] = _teacher(value, inner, change)
        elif name in declared:
            found[name] = change(inner, value, declared[name])
        else:
            found[name] = _within(value, inner, change) if isinstance(value, Mapping) else value
    return found


def _model(node: Mapping[str, Any], key: str, change: Change) -> dict[str, Any]:
    target, declared = str(node.get(TARGET, "")), dict(OF_MODELS)
    if _is_known(node.get(TARGET)):
        own = target.startswith("optkit.models.")
        declared |= OF_OWN_MODELS if own else _annotated(target, f"{key}.{TARGET}")
        if not own and "variant" in parameters(locate(target, key)):
            declared = {name: kind for name, kind in declared.items() if name != "variant"}
    return {
        name: change(f"{key}.{name}", value, declared[name]) if name in declared else value
        for name, value in node.items()
    }


def _teacher(value: Any, key: str, change: Change) -> Any:
    if isinstance(value, list):
        return [_teacher(one, key, change) for one in value]
    if isinstance(value, Mapping):
        return _model(value, key, change)
    return value if value == BASELINE else change(key, value, PATH)


def _annotated(target: str, key: str) -> dict[str, str]:
    """The parameters of a class or function that are paths, by name."""
    found = {}
    for name, parameter in parameters(locate(target, key)).items():
        if kinds := words_of(parameter) & ANNOTATIONS.keys():
            found[name] = ANNOTATIONS[min(kinds)]
    return found


def _absolute(value: Any, kind: str, base: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(one, kind, base) for one in value]
    if not isinstance(value, str) or "${" in value or value == "???":
        return value
    full = Path(value).expanduser()
    full = full if full.is_absolute() else base / full
    return str(full) if kind == PATH or full.is_dir() else value


def _is_known(target: Any) -> bool:
    return isinstance(target, str) and "${" not in target and target != "???"
