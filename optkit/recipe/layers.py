"""What a layer of a config replaces in the layers below it, instead of being merged into it.

Hydra merges mappings key by key. A model of another class would keep the fields of the default one, and an optimizer
those of another optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optkit.core.instantiate import TARGET

VARIANT = "variant"  # of a model or a teacher: the folder of a saved variant, in place of a class and its fields
MODELS = ("model", "teacher")
OPTIMIZER, OPTIONS = "optimizer", "optimizer_options"
Path = tuple[str, ...]


def replaced(old: Mapping[str, Any], new: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The places of a config whose content goes, because a layer over it starts them anew.

    - A mapping that gets another ``_target_``, or a model that gets a ``variant``.
    - The options of an optimizer, if the layer names another one.
    - A mapping in whose place the layer has a list, or the other way round.

    Args:
        old: the layers below, not resolved.
        new: the layer, not resolved.
        path: of both, from the root.
    """
    if path and _is_another(old, new, path[-1]):
        yield path
        return
    if OPTIMIZER in new and old.get(OPTIMIZER) not in (None, new[OPTIMIZER]) and old.get(OPTIONS):
        yield (*path, OPTIONS)
    for name, value in new.items():
        below = old.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            yield from replaced(below, value, (*path, name))
        elif name in old and _is_of_another_kind(below, value):
            yield (*path, name)


def _is_of_another_kind(old: Any, new: Any) -> bool:
    """Whether a list stands in the place of a mapping, a mapping in that of a list, or a class in that of a value."""
    if isinstance(new, Mapping):
        return isinstance(old, list) or not (isinstance(old, Mapping) or new.keys().isdisjoint({TARGET, VARIANT}))
    return isinstance(new, list) and isinstance(old, Mapping)


def _is_another(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    if TARGET in new:
        return VARIANT in old if TARGET not in old else old[TARGET] != new[TARGET]
    return name in MODELS and new.get(VARIANT) is not None and VARIANT not in old
