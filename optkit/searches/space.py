"""The space of a search: which values the keys of a recipe may take, read from YAML and checked against the recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optkit.core.errors import PlanError, UserError, did_you_mean
from optkit.core.instantiate import locate
from optkit.launch.values import Choice, Span, Values, read_values, stage_of
from optkit.recipe.compose import shipped, stage_catalogue
from optkit.recipe.plan import baseline_place, check_chain
from optkit.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

log = logging.getLogger(__name__)
CHAIN, SUBSETS = "chain", "subsets"
QUARTERS = (0.125, 0.375, 0.625, 0.875)
MOST_TECHNIQUES = 6  # stages of which all subsets are tried
FIXED = ("model", "task", "seed", "baseline", "name", "out", "store", "fresh", "controls", "threads", "debug")
MEASURED = ("measure.split", "measure.when")  # which the search sets itself


@dataclass(frozen=True)
class Space:
    """Values by key. Those of a stage count where it is in the chain.

    Attributes:
        name: of a bundled space, or its file.
        values: by key; ``chain`` comes first.
        chain: of the recipe.
    """

    name: str
    values: Mapping[str, Values]
    chain: Sequence[str]

    def propose(self, trial: Trial) -> list[str]:
        """The overrides of a trial, as its sampler suggests them."""
        chain, overrides = self.chain, []
        for key, values in self.values.items():
            stage = stage_of(key)
            if stage is not None and stage not in chain:
                continue
            text = _suggested(trial, key, values)
            overrides.append(f"{key}={text}")
            if key == CHAIN:
                chain = yaml.safe_load(text)
        return overrides

    def written(self, recipe: Recipe) -> dict[str, Any]:
        """The values of a recipe as it is written, by key, of those that are in the space; none without its chain."""
        node = yaml.safe_load(recipe.text)
        if CHAIN in self.values and self.values[CHAIN].like(recipe.chain) is None:
            return {}
        used = {key: values for key, values in self.values.items() if stage_of(key) in (None, *recipe.chain)}
        found = {key: values.like(_value_at(node, key)) for key, values in used.items()}
        return {key: value for key, value in found.items() if value is not None}

    def guesses(self, recipe: Recipe) -> list[dict[str, Any]]:
        """What a search begins with: the recipe as it is written, then with less and with more removed.

        Those have all amounts in the middle of the same quarter of their spans, and else what is written.
        """
        written = self.written(recipe)
        spans = [(key, span) for key, span in self.values.items() if key in written and isinstance(span, Span)]
        amounts = [(key, span) for key, span in spans if key.endswith(".amount")]
        others = [written | {key: span.at(share) for key, span in amounts} for share in QUARTERS] if amounts else []
        return [written, *others] if written else []

    def to_json(self) -> dict[str, Any]:
        """What it is, for a comparison with another one."""
        return {key: asdict(values) for key, values in self.values.items()}


def open_space(name: str, recipe: Recipe, compose: Callable[[str], Recipe]) -> Space:
    """Reads a space, and checks it against a recipe. A bundled one is cut down to what the recipe allows.

    A key may name a kind of stage instead of one stage: ``prune/structured.amount`` is that of each stage of the chain
    that prunes channels. Chains that the traits of their stages forbid are left out, with the reason in the log.

    Args:
        name: of a bundled space, or a YAML file: a mapping of keys to Hydra's sweep syntax. ``chain: subsets`` stands
            for all chains with one or more of the recipe's stages after its baseline, in their order.
        recipe: the recipe as it is written.
        compose: gives the recipe with another override.

    Raises:
        UserError: no such space, an empty one, a key or a value that the recipe does not take, or no chain that works.
    """
    file = _find(name)
    texts = _by_stage(_read(file), recipe)
    values: dict[str, Values] = {}
    if CHAIN in texts:
        values[CHAIN] = _chains(texts.pop(CHAIN), recipe)
    used = {stage for chain in _chains_in(values, recipe) for stage in chain}
    for key, text in texts.items():
        try:
            values[key] = _checked(key, text, recipe, used, compose)
        except UserError as error:
            if not _is_bundled(file):
                raise
            log.info("the space leaves out %s: %s", key, error)
    if not values:
        raise UserError("no key of this recipe varies in it", key="space", value=name, fix="write a space of your own")
    return Space(name, values, list(recipe.chain))


def bundled_spaces() -> dict[str, Path]:
    """The spaces that come with optkit, by name."""
    return {path.stem: path for path in sorted((shipped("conf") / "search").glob("*.yaml"))}


def space_for(recipe: Recipe) -> str:
    """The name of the bundled space for a recipe's kind of model."""
    from optkit.core.task import HasPrompts
    from optkit.models import ModelSpec

    if isinstance(recipe.task, HasPrompts):
        return "language"
    model = ModelSpec.from_config(recipe.model, recipe.task.model_defaults()).build(recipe.seed)
    attends = any("attention" in type(module).__name__.lower() for module in model.modules())
    return "transformer" if attends else "convolutional"


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = bundled_spaces()
    if name not in known:
        fix = f"{did_you_mean(name, known)} A file is given with its ending: {name}.yaml"
        raise UserError(f"no space '{name}'", key="space", value=name, fix=fix)
    return known[name]


def _is_bundled(file: Path) -> bool:
    return file in bundled_spaces().values()


def _read(file: Path) -> dict[str, str]:
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", key="space", fix="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", key=str(file)) from error
    fix = "map keys of the recipe to values, such as stages.prune.amount: interval(0.1, 0.7)"
    if not isinstance(node, Mapping) or not node:
        raise UserError("the space is empty" if not node else "no mapping of keys", key=str(file), fix=fix)
    if wrong := [key for key, text in node.items() if not isinstance(key, str) or not isinstance(text, str)]:
        raise UserError(f"{node[wrong[0]]!r} is not a text", key=str(wrong[0]), value=node[wrong[0]], fix=fix)
    return dict(node)


def _by_stage(texts: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """The same with keys of stages in place of those of kinds of stages; one of a stage itself goes before."""
    kinds = {name: entry["target"] for name, entry in stage_catalogue().items()}
    found = {}
    for key, text in texts.items():
        kind, _, parameter = key.partition(".")
        if "/" not in kind or "@" in kind:
            found[key] = text
            continue
        if kind not in kinds:
            raise UserError(f"no kind of stage '{kind}'", key=key, value=kind, fix=did_you_mean(kind, kinds))
        of_kind = locate(kinds[kind], key)
        for name in recipe.chain[baseline_place(recipe) :]:
            if type(recipe.stages[name]) is of_kind:
                found.setdefault(f"stages.{name}.{parameter}", text)
    return found


def _chains(text: str, recipe: Recipe) -> Choice:
    """The chains that can work, as a choice."""
    if text == SUBSETS:
        texts = _subsets(recipe)
    else:
        values = read_values(CHAIN, text)
        texts = values.texts if isinstance(values, Choice) else ()
    opening = list(recipe.chain[: baseline_place(recipe)])
    possible, reasons = [], []
    for one in texts:
        chain = yaml.safe_load(one)
        try:
            if not isinstance(chain, list) or chain[: len(opening)] != opening or chain == opening:
                fix = "each trial is compared with one baseline"
                raise PlanError(f"{one} is no chain after {', '.join(opening) or 'the model'}", key=CHAIN, fix=fix)
            check_chain(replace(recipe, chain=chain, controls=[]))
            possible.append(one)
        except UserError as error:
            reasons.append(str(error))
            log.info("not tried: %s: %s", one, error)
    if not possible:
        why = reasons[0] if reasons else f"'{text}' is no choice of chains"
        raise UserError(f"no chain of the space can work: {why}", key=CHAIN, value=text)
    return Choice(tuple(possible))


def _subsets(recipe: Recipe) -> tuple[str, ...]:
    first = baseline_place(recipe)
    opening, techniques = recipe.chain[:first], recipe.chain[first:]
    if len(techniques) > MOST_TECHNIQUES:
        message = f"{len(techniques)} stages after the baseline have too many subsets"
        raise UserError(message, key=CHAIN, value=SUBSETS, fix="name the chains: choice([train, prune], [train, ...])")
    chosen = [c for n in range(1, len(techniques) + 1) for c in combinations(techniques, n)]
    return tuple(f"[{','.join([*opening, *one])}]" for one in chosen)


def _chains_in(values: Mapping[str, Values], recipe: Recipe) -> list[list[str]]:
    chains = values.get(CHAIN)
    return [yaml.safe_load(text) for text in chains.texts] if isinstance(chains, Choice) else [list(recipe.chain)]


def _checked(key: str, text: str, recipe: Recipe, used: set[str], compose: Callable[[str], Recipe]) -> Values:
    """The values of a key, each of which the recipe takes."""
    values = read_values(key, text)
    if key.lstrip("+").split(".")[0].split("@")[0] in FIXED or key in MEASURED:
        raise UserError("all trials of a search have the same", key=key, value=text, fix="leave it out of the space")
    stage = stage_of(key)
    if stage in recipe.chain[: baseline_place(recipe)]:
        message = f"'{stage}' makes the baseline, which all trials are compared with"
        raise UserError(message, key=key, value=text, fix="leave it out, or set baseline=model")
    if stage in recipe.stages and stage not in used:
        raise UserError(f"no chain of the space has the stage '{stage}'", key=key, fix="add it to the chain")
    for end in values.ends:
        compose(f"{key}={end}")
    return values


def _value_at(node: Any, key: str) -> Any:
    """What stands at a key of nested mappings; an object that equals nothing where nothing does."""
    for part in key.lstrip("+").split("."):
        if not isinstance(node, Mapping) or part not in node:
            return object()
        node = node[part]
    return node


def _suggested(trial: Trial, key: str, values: Values) -> str:
    if isinstance(values, Choice):
        return trial.suggest_categorical(key, values.texts)
    if values.whole:
        step = 1 if values.step is None else int(values.step)
        return values.text(trial.suggest_int(key, int(values.low), int(values.high), step=step, log=values.log))
    return values.text(trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log))
