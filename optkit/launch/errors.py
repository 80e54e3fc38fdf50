"""What Hydra and OmegaConf say of a mistake, as one line that names the key and the fix."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.extras import install
from optkit.engines.registry import ENGINES
from optkit.recipe.compose import ENGINE_GROUP, KEYS, shipped

# the extra of each launcher, by what Hydra does not find without it
LAUNCHERS = {
    "joblib": "parallel", "parallel": "parallel", "slurm": "slurm", "submitit_slurm": "slurm",
    "slurm_local": "slurm", "submitit_local": "slurm",
}  # fmt: skip


@contextmanager
def composition_errors(path: Path) -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one line each."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error, path) from error
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", key=str(path)) from error


def _quoted(override: str) -> str:
    """What to type for an override that Hydra cannot read: quoted for Hydra and for the shell, if that helps."""
    key, equals, value = override.partition("=")
    escaped = value.replace("'", "\\'")
    typed = f"{key}='{escaped}'"
    try:
        read = OverridesParser.create().parse_override(typed)
    except (OverrideParseException, HydraException):
        return "write key=value"
    if not equals or read.value() != value:
        return "write key=value"
    in_shell = shlex.quote(typed) if re.search(r'["$`\\!]', typed) else f'"{typed}"'
    return f"quote the value for Hydra, and all of it for the shell: {in_shell}"


def _one_line(error: Exception, path: Path) -> UserError:
    said = str(error) or first_line(error.__cause__ or error)
    text = " ".join(said.partition("See https")[0].split())
    if isinstance(error, OverrideParseException):
        return UserError(f"not an override: {text}", key=error.override, fix=_quoted(str(error.override)))
    if match := re.search(r"Could not override '([^']+)'", text):
        key = getattr(error.__cause__, "full_key", None) or match.group(1)  # the cause knows the key within a mapping
        if (path.parent / key).is_dir():
            message = f"Hydra takes the folder '{key}' beside the recipe for a config group"
            return UserError(message, key=key, fix="keep recipes apart from other folders, or rename this one")
        return UserError("unknown key", key=key, fix=_near(key, error, path))
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, name = match.group(1).rpartition("/")
        folder = shipped("conf") / group
        known = [p.stem for p in folder.glob("*.yaml")] if folder.is_dir() else []
        known += ENGINES.added() if group == ENGINE_GROUP else []
        kinds = [p.name for p in shipped("conf").iterdir() if p.is_dir()]
        fix = did_you_mean(name, known) if known else did_you_mean(group, kinds)
        if group == "hydra/launcher" and name in LAUNCHERS:
            fix = install(LAUNCHERS[name])
        return UserError(f"no config '{match.group(1)}'", key=group or name, value=name, fix=fix)
    return UserError(text.split(" full_key:")[0].removesuffix("."), key=str(path))


def _near(key: str, error: Exception, path: Path) -> str:
    """The sibling that a misspelt override key most likely meant."""
    node, _, leaf = key.rpartition(".")
    parent = getattr(error.__cause__, "parent_node", None)
    siblings = [str(k) for k in parent] if isinstance(parent, DictConfig) else sorted(KEYS) if not node else []
    near = did_you_mean(leaf, siblings)
    return (
        f"{near}{'' if near.endswith('?') else '.'} A new key is added with +{key}=..."
        if siblings
        else f"see optkit run {path.stem} --cfg job"
    )
