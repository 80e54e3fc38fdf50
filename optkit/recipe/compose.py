"""Recipes: found, and once composed (`optkit.launch`) checked against what they build, and built."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optkit.core.checks import check_count
from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.instantiate import TARGET, build
from optkit.core.secrets import without_credentials
from optkit.core.task import MODEL_DEFAULTS
from optkit.recipe.paths import place

ENGINE_GROUP = "engine"
KEYS = {
    "name", "seed", "threads", "out", "store", "fresh", "baseline", "chain", "controls",
    "model", "task", "stages", "engines", "measure", "debug", "tracker", "sweep", "fail_fast", "cost",
}  # fmt: skip
ALONE = {"sweep": None, "fail_fast": False}  # of a run that is no job of a sweep
OPTIONAL = {"store", "threads", "debug", "tracker", "sweep", "fail_fast", "cost"}


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


def to_recipe(cfg: DictConfig, tasks: dict[str, Any] | None = None) -> Any:
    """Checks a composed config against what it builds, and builds it.

    Args:
        cfg: the composed config.
        tasks: tasks by their config: one that is there is taken, with the data that it holds, and others are added. The
            recipe is then one to be planned only, and has no text.

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
    limited, known = _limited(node["task"], debug), {} if tasks is None else tasks
    same = json.dumps(limited, sort_keys=True, default=str)
    task = known[same] = known.get(same) or build(limited, "task")
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
        text=OmegaConf.to_yaml(OmegaConf.create(_rerun(node))) if tasks is None else "",
        overrides=list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
    )
    return recipe


def to_tracker(cfg: DictConfig) -> Any:
    """The experiment tracker that a composed config asks for, built; None for none.

    Raises:
        UserError: one that is not installed, or a value it does not take.
    """
    node = _plain(cfg).get("tracker")
    return build(node, "tracker") if node else None


def to_cost(cfg: DictConfig) -> Any:
    """The cost of serving that a composed config asks for, an ``optkit.costs.planned.PlannedCost``; None for none.

    Raises:
        UserError: an unknown key, a value out of range, or a price list or traffic that cannot be read.
    """
    node = _plain(cfg).get("cost")
    return build({TARGET: "optkit.costs.planned.PlannedCost"} | dict(node), "cost") if node else None


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved to plain dicts and lists, its paths made absolute.

    Paths that were typed are relative to the current folder, those of the recipe to the recipe's. What refers to a path
    (``${...}``) gets its absolute form.
    """
    base_of = _bases()
    try:
        raw = place(mapping(OmegaConf.to_container(cfg, resolve=False)), base_of)
        resolved = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        message = first_line(error)
        raise UserError(message, key=key, fix=f"set {key}=..." if key else None) from error
    node = place(mapping(resolved), base_of)
    for key in ("out", "store"):  # relative ones are of the folder that a run is started in, a repeated one too
        if isinstance(node.get(key), str):
            node[key] = os.path.expanduser(node[key])
    if isinstance(node.get("cost"), dict):
        node["cost"] = _placed_cost(node["cost"], base_of)
    return node


def _placed_cost(node: Mapping[str, Any], base_of: Callable[[str], Path]) -> dict[str, Any]:
    """The files of prices and traffic as absolute paths; behind a colon are options of the traffic."""
    found = dict(node)
    for key in ("prices", "traffic"):
        name, colon, options = str(found.get(key)).partition(":")
        if (file := base_of(f"cost.{key}") / Path(name).expanduser()).is_file():
            found[key] = f"{file}{colon}{options}"
    return found


def mapping(node: Any) -> dict[str, Any]:
    """A container of OmegaConf's that is a mapping, as a plain one."""
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
    """What goes into a run's recipe.yaml: what decides the run, without passwords."""
    kept: dict[str, Any] = {**node, "fresh": False}
    if isinstance(tracker := node.get("tracker"), Mapping):
        kept["tracker"] = {k: without_credentials(v) if isinstance(v, str) else v for k, v in tracker.items()}
    if isinstance(store := node.get("store"), str):
        kept["store"] = without_credentials(store)
    return kept | {key: value for key, value in ALONE.items() if key in node}


def _check_top(node: Mapping[str, Any]) -> None:
    for key in node:
        if key not in KEYS:
            raise UserError("unknown key", key=key, fix=did_you_mean(key, KEYS))
    for key in sorted(KEYS - OPTIONAL):
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
    check_name(node["name"], "name")
    if node["seed"] < 0:
        raise UserError(f"{node['seed']} is below 0", key="seed", value=node["seed"])
    threads = node["threads"]
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise UserError(
            f"{threads!r} is not a number of threads", key="threads", value=threads, fix="1 or more, or null"
        )
    if not isinstance(node.get("store"), str | None):
        raise UserError(f"{node['store']!r} is no folder and no URL", key="store", value=node["store"])
    if not node["engines"]:
        raise UserError("no engine", key="engines", fix="add one: +engine@engines.inductor=inductor")
    if not isinstance(node.get("cost"), dict | None):
        raise UserError(
            f"{node['cost']!r} is not a mapping", key="cost", fix="its keys are traffic, prices, p99, policy"
        )
    for name, stage in node["stages"].items():
        if not isinstance(stage, dict):
            raise UserError(f"{stage!r} is not a stage", key=f"stages.{name}")
    for key in ("chain", "controls"):
        for name in node[key]:
            if not isinstance(name, str):
                raise UserError(f"{name!r} is not a name", key=key, value=name, fix="such as [train, prune]")
    debug = node.get("debug") or {}
    if not isinstance(debug, Mapping):
        raise UserError(f"{debug!r} is not a mapping", key="debug", value=debug, fix="debug=smoke, or debug.limit=8")
    for key, value in debug.items():
        if key not in ("max_steps", "limit"):
            raise UserError("unknown key", key=f"debug.{key}", fix=did_you_mean(key, ("max_steps", "limit")))
        if value is not None:
            check_count(f"debug.{key}", value)


def check_name(name: Any, key: str) -> None:
    """Raises UserError for what cannot name a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"{name!r} cannot name a folder", key=key, value=name, fix="letters, digits, - and _")


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
