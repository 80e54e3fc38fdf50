"""Composed recipes read back as flat keys, as they are written on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from optkit.core.errors import UserError
from optkit.core.flat_keys import flat
from optkit.core.manifest import PLACES


def flat_recipe(folder: Path) -> dict[str, Any]:
    """The keys of a run folder's ``recipe.yaml``, such as ``stages.prune.amount``; empty where there is none.

    Raises:
        UserError: the file is not YAML.
    """
    file = (folder if folder.is_dir() else folder.parent) / "recipe.yaml"
    if not file.is_file():
        return {}
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", key=str(file)) from error
    return {key: value for key, value in flat(node) if key not in PLACES} if isinstance(node, Mapping) else {}
