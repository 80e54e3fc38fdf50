"""Hugging Face configs: all fields of one, and the entries that say how many blocks a model has."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from torch import nn

from optkit.core.compat.transformers import copy_attention
from optkit.core.errors import first_line

log = logging.getLogger(__name__)
REFUSALS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ZeroDivisionError,
)


def whole_config(model: Any) -> dict[str, Any]:
    """Every field of a model's config, from which the same structure is built without the hub; JSON."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return config


def depth_entries(model: nn.Module, path: str, size: int, kept: Sequence[int]) -> dict[str, Any]:
    """What a config must say for a model whose container at ``path`` holds these of its ``size`` blocks only.

    No names are known here: an entry counts if a module that is built from the config with that entry changed has
    in this container exactly the blocks that are left.

    Returns:
        The entries by name; none if there is no config, or if none of its entries alone decides.
    """
    for owner, config in _configs(model, path):
        module = model.get_submodule(owner)
        inner = path.removeprefix(owner).removeprefix(".")
        wanted = {
            f"{inner}.{name}" for name in _names(model.get_submodule(path)) if int(name.partition(".")[0]) < len(kept)
        }
        for entries in _candidates(config.to_dict(), size, kept):
            built = _built(type(module), config, entries)
            if built is not None and {n for n in _names(built) if n.startswith(f"{inner}.")} == wanted:
                return entries
    return {}


def set_entries(model: nn.Module, path: str, entries: dict[str, Any]) -> None:
    """Writes entries into the config of every module around ``path`` that has them."""
    for config in {id(c): c for _, c in _configs(model, path)}.values():
        for name, value in entries.items():
            if hasattr(config, name):
                setattr(config, name, copy.copy(value))


def _configs(model: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """The modules around a path that have a config, innermost first."""
    parts = path.split(".")
    for length in range(len(parts) - 1, -1, -1):
        owner = ".".join(parts[:length])
        config = getattr(model.get_submodule(owner), "config", None)
        if hasattr(config, "to_dict") and hasattr(type(config), "from_dict"):
            yield owner, config


def _candidates(fields: dict[str, Any], size: int, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Ways to say it: one number, or one number of a list; where lists hold an item a block, these lists too."""
    whole = {n: v for n, v in fields.items() if type(v) is int and v == size}
    lists = {n: list(v) for n, v in fields.items() if isinstance(v, (list, tuple))}
    for name in sorted(whole, key=lambda n: "layer" not in n):
        yield {name: len(kept)}
    for name, values in lists.items():
        for place, value in enumerate(values):
            if type(value) is int and value == size:
                yield {name: [*values[:place], len(kept), *values[place + 1 :]]}
    by_block = {n: [v[i] for i in kept] for n, v in lists.items() if len(v) == size}
    for name in whole:
        for count in range(1, len(by_block) + 1):
            for chosen in combinations(by_block, count):
                yield {name: len(kept)} | {n: by_block[n] for n in chosen}


def _built(kind: type[nn.Module], config: Any, entries: dict[str, Any]) -> nn.Module | None:
    """A module of this class from the changed config, without memory for its weights; None if it cannot be built."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    try:
        changed = type(config).from_dict(copy.deepcopy(config.to_dict()) | entries)
        copy_attention(config, changed)
        with init_empty_weights():
            return kind(changed)
    except (*REFUSALS, StrictDataclassError) as error:
        log.debug("%s is not built with %s: %s", kind.__name__, entries, first_line(error))
        return None


def _names(module: nn.Module) -> set[str]:
    return set(module.state_dict())
