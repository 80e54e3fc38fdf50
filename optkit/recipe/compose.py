"""Recipes: found, composed by Hydra, checked against what they build, and built. The only file that knows Hydra."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optkit.core.checks import check_count
from optkit.core.compat.hydra_loading import ConfigLoaderImpl
from optkit.core.compat.hydra_loading import main as hydra_main
from optkit.core.environment import check_single_process
from optkit.core.errors import OptkitError, UserError, did_you_mean, first_line
from optkit.core.extras import install
from optkit.core.instantiate import TARGET, build
from optkit.core.logs import Messages
from optkit.core.task import MODEL_DEFAULTS
from optkit.engines.registry import ENGINES
from optkit.recipe.layers import replaced
from optkit.recipe.paths import place

log = logging.getLogger(__name__)
ENGINE_GROUP = "engine"
KEYS = {
    "name", "seed", "threads", "out", "store", "fresh", "baseline", "chain", "controls",
    "model", "task", "stages", "engines", "measure", "debug", "tracker",
}  # fmt: skip
FLAGS_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
}  # fmt: skip
INFO_VALUES = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
NO_FILES = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")


def shipped(folder: str) -> Path:
    """``conf`` or ``recipes``: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def bundled_recipes() -> dict[str, str]:
    """Names of the recipes that come with optkit, and the first line of each."""
    return {path.stem: first_comment(path) for path in sorted(shipped("recipes").glob("*.yaml"))}


def first_comment(path: Path) -> str:
    """The text of a YAML file's opening comment line."""
    line = path.read_text().partition("\n")[0]
    return line.lstrip("#").strip() if line.startswith("#") else ""


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the bare name of a bundled one.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if path.suffix == ".yml":
        raise UserError("Hydra reads .yaml files only", key="recipe", value=name, fix="rename the file")
    if path.suffix == ".yaml":
        if not path.is_file():
            raise UserError(f"no recipe file {name}", key="recipe", value=name, fix="check the path")
        return path.resolve()
    bundled = bundled_recipes()
    if name not in bundled:
        if name.startswith("-"):
            raise UserError(f"no option '{name}'", key="recipe", value=name, fix="see optkit run --help")
        fix = f"{did_you_mean(name, bundled)}. A file is given with its ending: {name}.yaml"
        raise UserError(f"no recipe '{name}'", key="recipe", value=name, fix=fix)
    return (shipped("recipes") / f"{name}.yaml").resolve()


class BundledConfig(SearchPathPlugin):
    """Puts conf/ on Hydra's search path, so that a user's recipe needs no line about it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("optkit", f"file://{shipped('conf')}")


def _register_engines() -> None:
    """Makes the engines of other packages options of the config group ``engine``; imports none of them."""
    for name in ENGINES.added():
        ConfigStore.instance().store(
            name, {TARGET: ENGINES.path(name)}, group=ENGINE_GROUP, provider=ENGINES.package(name)
        )


def launch(
    recipe: str, arguments: Sequence[str], job: Callable[[DictConfig], None], messages: Messages | None = None
) -> int:
    """Composes a recipe as ``hydra.main`` does, all of Hydra's flags included, and runs the job for each composition.

    Args:
        recipe: a file or a bundled name.
        arguments: overrides and Hydra flags.
        job: called with the composed config; an `OptkitError` it raises is this run's failure, and in a multirun the
            others go on.
        messages: how the terminal shows messages; a launcher that works in other processes needs it there.

    Returns:
        The exit code: 0, or the first failure's.
    """
    check_single_process()
    path = find_recipe(recipe)
    _check_run_dir(path, arguments)
    Plugins.instance().register(BundledConfig)
    _register_engines()
    OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)
    failures: list[OptkitError] = []

    def guarded(cfg: DictConfig) -> None:
        here = "BasicLauncher" in str(HydraConfig.get().launcher.get(TARGET))
        if messages is not None and not here:
            replace(messages, of=f"[{HydraConfig.get().job.num}] ").begin()
        name = _job_of_sweep(arguments)
        if name:
            log.info("%s", name)
        try:
            job(cfg)
        except OptkitError as plain:
            message = f"{plain.message} ({name})" if name else plain.message
            error = type(plain)(message, key=plain.key, value=plain.value, fix=plain.fix)
            # other launchers run this elsewhere, and name the first of the failures, which must be raised
            if not here:
                log.error("%s", error)
                raise error from plain
            error.__cause__ = plain
            failures.append(error)

    with _arguments(arguments), _composition_errors(path), layers_start_over():
        hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.stem)(guarded)()
    for error in failures[1:]:
        log.error("%s", error)
    if failures:
        raise failures[0]
    return 0


def _job_of_sweep(arguments: Sequence[str]) -> str:
    """The job of a sweep that runs now, with the overrides that are its own; empty where there is no sweep."""
    now = HydraConfig.get()
    if now.mode != RunMode.MULTIRUN:
        return ""
    own = [override for override in now.overrides.task if override not in arguments and "=null" not in override]
    return f"job {now.job.num}: {' '.join(own)}"


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra's command line for the time of the block, with its own output files switched off."""
    own = [a for a in NO_FILES if not any(g.startswith(a.partition("=")[0]) for g in arguments)]
    multirun = any(a in ("-m", "--multirun") for a in arguments)
    if multirun and not any(a.startswith("hydra.sweep.dir") for a in arguments):
        # two sweeps may start within a second
        own.append(f'hydra.sweep.dir="${{expanduser:${{out}}}}/multirun/${{now:%Y-%m-%d_%H-%M-%S}}-{os.getpid()}"')
    overrides, flags = _parted(arguments)
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["optkit run", *overrides, *own, *flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


class _Loader(ConfigLoaderImpl):
    """Hydra's loader, but a layer may start a part of the config over (`optkit.recipe.layers`).

    What an override starts over takes any new key, without a ``+``.
    """

    typed: Sequence[str] = ()

    def load_configuration(self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any) -> Any:
        self.typed = overrides
        return super().load_configuration(config_name, overrides, *args, **kwargs)

    def _compose_config_from_defaults_list(self, defaults: list[Any], repo: Any) -> DictConfig:
        cfg = OmegaConf.create()
        for default in defaults:
            layer = super()._compose_config_from_defaults_list([default], repo)
            _start_over(cfg, OmegaConf.to_container(layer, resolve=False))
            cfg.merge_with(layer)
        _start_over(cfg, _as_layer(self.typed))
        return cfg


def _start_over(cfg: DictConfig, layer: Any) -> None:
    """Empties what a layer is to replace."""
    below = _mapping(OmegaConf.to_container(cfg, resolve=False)) | {"hydra": None}
    for path in replaced(below, layer):
        *around, name = path
        node = reduce(getitem, around, cfg)
        listed = isinstance(reduce(getitem, around, layer).get(name), list)
        node[name] = None if listed else {}
        if not listed:
            OmegaConf.set_struct(node[name], False)


def _as_layer(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides of values as a layer; each value of a sweep counts as another one."""
    layer: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_delete() or override.package is not None:
            continue
        node = layer
        *around, name = override.key_or_group.split(".")
        for part in around:
            node = found if isinstance(found := node.setdefault(part, {}), dict) else {}
        node[name] = "(a sweep)" if override.is_sweep_override() else override.value()
    return layer


@contextmanager
def layers_start_over() -> Iterator[None]:
    """Hydra composes by `_Loader` within."""
    hydra_main.ConfigLoaderImpl = _Loader
    try:
        yield
    finally:
        hydra_main.ConfigLoaderImpl = ConfigLoaderImpl


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags with their values: Hydra's parser takes overrides in one piece only."""
    overrides: list[str] = []
    flags: list[str] = []
    previous = ""
    for argument in arguments:
        is_value = previous in FLAGS_WITH_VALUE or (previous in ("--info", "-i") and argument in INFO_VALUES)
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
        previous = argument
    return overrides, flags


@contextmanager
def _composition_errors(path: Path) -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one line each."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error, path) from error
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", key=str(path)) from error


def _check_run_dir(path: Path, arguments: Sequence[str]) -> None:
    """Refuses a folder for Hydra's own files: optkit keeps none, and names its run folders itself."""
    try:
        of_file = OmegaConf.select(OmegaConf.load(path), "hydra.run") is not None
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        of_file = False  # composing it says what is wrong
    given = [a for a in arguments if re.match(r"[+~]*hydra\.run\b", a)]
    if given or of_file:
        fix = "out=DIR puts run folders into DIR, named by what they hold; hydra.sweep.dir=DIR is that of a sweep"
        raise UserError("optkit does not run in a folder of Hydra's", key="hydra.run.dir", fix=fix)


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
        if match.group(1) == "hydra/launcher/joblib":
            fix = install("parallel")
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


def to_recipe(cfg: DictConfig) -> Any:
    """Checks a composed config against what it builds, and builds it.

    Returns:
        An ``optkit.recipe.recipe.Recipe``.

    Raises:
        UserError: a key that nothing reads, a value out of range, a class that is not there; named by its full key.
    """
    node = _plain(cfg)
    _check_top(node)
    from optkit.core.engine import no_engine
    from optkit.engines.registry import reference_engine
    from optkit.models.spec import start_traits
    from optkit.recipe.chain import check_names
    from optkit.recipe.recipe import Recipe

    debug = node.get("debug") or {}
    stages = {name: build(stage, f"stages.{name}") for name, stage in node["stages"].items()}
    measure = build({TARGET: "optkit.measure.Measure"} | dict(node["measure"]), "measure")
    task = build(_limited(node["task"], debug), "task")
    traits = start_traits(node["model"])
    check_names(node["chain"], stages, node["controls"], node["baseline"], traits)
    # what may need torch comes last, so that a misspelt word above is answered at once
    engines = {name: build(engine, f"engines.{name}") for name, engine in node["engines"].items()}
    for name, engine in engines.items():
        if reason := no_engine(type(engine)):
            raise UserError(f"{type(engine).__name__} is no engine: {reason}", key=f"engines.{name}")
    _check_model(node["model"])
    recipe = Recipe(
        name=node["name"],
        model=node["model"],
        task=task,
        chain=node["chain"],
        stages=stages,
        engines=engines,
        reference=reference_engine(),
        measure=measure,
        baseline=node["baseline"],
        controls=node["controls"],
        seed=node["seed"],
        threads=node["threads"],
        out=node["out"],
        store=node["store"],
        max_steps=debug.get("max_steps"),
        fresh=node["fresh"],
        traits=traits,
        text=OmegaConf.to_yaml(OmegaConf.create(_rerun(node))),
    )
    return recipe


def to_tracker(cfg: DictConfig) -> Any:
    """The experiment tracker that a composed config asks for, built; None for none.

    Raises:
        UserError: one that is not installed, or a value it does not take.
    """
    node = _plain(cfg).get("tracker")
    return build(node, "tracker") if node else None


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved to plain dicts and lists, its paths made absolute.

    Paths that were typed are relative to the current folder, those of the recipe to the recipe's. What refers to a path
    (``${...}``) gets its absolute form.
    """
    base_of = _bases()
    try:
        raw = place(_mapping(OmegaConf.to_container(cfg, resolve=False)), base_of)
        resolved = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        message = first_line(error)
        raise UserError(message, key=key, fix=f"set {key}=..." if key else None) from error
    node = place(_mapping(resolved), base_of)
    for key in ("out", "store"):  # relative ones are of the folder that a run is started in, a repeated one too
        if isinstance(node.get(key), str):
            node[key] = os.path.expanduser(node[key])
    return node


def _mapping(node: Any) -> dict[str, Any]:
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def _bases() -> Callable[[str], Path]:
    """Gives the folder that a relative path is relative to, by its key."""
    here, folder, typed = Path.cwd(), Path.cwd(), []
    if HydraConfig.initialized():
        hydra_config = HydraConfig.get()
        sources = {source.provider: source.path for source in hydra_config.runtime.config_sources}
        folder = Path(sources["main"])
        typed = OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))

    def base_of(key: str) -> Path:
        for override in typed:
            holds = isinstance(override.value(), dict) and key.startswith(f"{override.key_or_group}.")
            if override.key_or_group == key or holds:
                return here
        return folder

    return base_of


def _rerun(node: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into a run's recipe.yaml: what decides the run, without passwords or that it was to start afresh."""
    from optkit.report.trackers import without_credentials

    tracker = node.get("tracker")
    if isinstance(tracker, Mapping):
        tracker = {k: without_credentials(v) if isinstance(v, str) else v for k, v in tracker.items()}
    return {k: tracker if k == "tracker" else v for k, v in node.items()} | {"fresh": False}


def _check_top(node: Mapping[str, Any]) -> None:
    for key in node:
        if key not in KEYS:
            raise UserError("unknown key", key=key, fix=did_you_mean(key, KEYS))
    for key in sorted(KEYS - {"store", "threads", "debug", "tracker"}):
        if node.get(key) is None:
            hint = f"set {key}" if key in ("name", "chain") else "put 'optkit' first in the recipe's defaults"
            raise UserError("missing", key=key, fix=hint)
    for key, kind, what in (
        ("name", str, "a text"),
        ("seed", int, "a whole number"),
        ("out", str, "a folder"),
        ("fresh", bool, "true or false"),
        ("baseline", str, "a stage's name"),
        ("chain", list, "a list of stage names"),
        ("controls", list, "a list of controls"),
        ("model", dict, "a mapping"),
        ("task", dict, "a mapping"),
        ("stages", dict, "a mapping"),
        ("engines", dict, "a mapping"),
        ("measure", dict, "a mapping"),
    ):
        if not isinstance(node[key], kind) or (kind is int and isinstance(node[key], bool)):
            raise UserError(f"{node[key]!r} is not {what}", key=key, value=node[key])
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", node["name"]):
        raise UserError(f"{node['name']!r} cannot name a folder", key="name", fix="letters, digits, - and _")
    if node["seed"] < 0:
        raise UserError(f"{node['seed']} is below 0", key="seed", value=node["seed"])
    threads = node["threads"]
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UserError(
            f"{threads!r} is not a number of threads", key="threads", value=threads, fix="1 or more, or null"
        )
    if not node["engines"]:
        raise UserError("no engine", key="engines", fix="add one: +engine@engines.inductor=inductor")
    for name, stage in node["stages"].items():
        if not isinstance(stage, dict):
            raise UserError(f"{stage!r} is not a stage", key=f"stages.{name}")
    debug = node.get("debug") or {}
    for key, value in debug.items():
        if key not in ("max_steps", "limit"):
            raise UserError("unknown key", key=f"debug.{key}", fix=did_you_mean(key, ("max_steps", "limit")))
        if value is not None:
            check_count(f"debug.{key}", value)


def _check_model(node: Mapping[str, Any]) -> None:
    """The model's keys, as far as they can be checked without the task."""
    from optkit.models import ModelSpec

    ModelSpec.from_config(node, dict.fromkeys(MODEL_DEFAULTS, 1))


def _limited(task: Mapping[str, Any], debug: Mapping[str, Any]) -> Mapping[str, Any]:
    return task if debug.get("limit") is None else {**task, "limit": debug["limit"]}


def stage_catalogue() -> dict[str, dict[str, Any]]:
    """Every stage of conf/stage: its name there, its target and its parameters with their defaults."""
    root = shipped("conf") / "stage"
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        node = _with_defaults(path)
        target = node.pop(TARGET)
        name = str(path.relative_to(root).with_suffix(""))
        found[name] = {"target": target, "summary": first_comment(path), "parameters": node}
    return found


def _with_defaults(path: Path) -> dict[str, Any]:
    """A stage's config over the one it extends (``/path@_here_``); the groups of its parts are named, not read."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    base: dict[str, Any] = {}
    for default in node.pop("defaults", []):
        if isinstance(default, dict):
            for group, name in default.items():
                folder, _, part = group.partition("@")
                base[part] = f"conf{folder}/{name}"
        elif default != "_self_":
            base |= _with_defaults(shipped("conf") / f"{default.removesuffix('@_here_').lstrip('/')}.yaml")
    return base | {str(k): v for k, v in node.items()}
