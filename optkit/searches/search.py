"""`search`: the cheapest variants of a recipe within a loss, found on validation and confirmed once on test."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optkit.core.cache import write_json, write_text
from optkit.core.checks import check_choice, check_count, is_number
from optkit.core.errors import StageError, UserError, did_you_mean
from optkit.core.extras import need
from optkit.core.flat_keys import flat
from optkit.core.ledger import SEARCH_NAME
from optkit.core.locks import exclusive
from optkit.core.logs import log_file
from optkit.core.metric import SHARE
from optkit.core.processes import one_process_only
from optkit.core.secrets import without_secrets
from optkit.core.source_digest import unchanging_code
from optkit.launch import launch
from optkit.measure.config import NOW
from optkit.recipe.compose import check_name, to_cost, to_recipe
from optkit.report.search import LOG_NAME
from optkit.searches.front import goes_on
from optkit.searches.goal import BEST, COST, COSTS, Goal
from optkit.searches.study import RANDOM, SAMPLERS, TOO_LOSSY, TOO_SLOW, TPE, counted, open_study, take_part
from optkit.sweep.state import APART

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

    from optkit.costs.planned import PlannedCost
    from optkit.recipe.recipe import Recipe
    from optkit.searches.space import Space
    from optkit.searches.trial import Look, Workshop

log = logging.getLogger(__name__)
SEARCHES = "searches"  # the folder of searches, in that of runs
TRIALS = 30  # where neither trials nor hours are given
RUNGS = (1 / 9, 1 / 3)  # shares of the training after which a trial may stop
KEEP = 3  # of so many trials at a rung one goes on
MOST_IN_FRONT = 8  # variants that are measured in the end
DIGEST = 8  # hex digits of a search's definition, in its name


@dataclass(frozen=True)
class _Composer:
    """Composes the recipe of a search, with further overrides."""

    recipe: str
    overrides: Sequence[str]

    def __call__(self, *more: str) -> Recipe:
        found: list[Recipe] = []
        launch(self.recipe, [*self.overrides, *more], lambda cfg: found.append(to_recipe(cfg)))
        return found[0]

    def planned_cost(self) -> PlannedCost | None:
        """The cost of serving that the recipe asks for."""
        found: list[PlannedCost | None] = []
        launch(self.recipe, self.overrides, lambda cfg: found.append(to_cost(cfg)))
        return found[0]


@dataclass(frozen=True, repr=False)
class Search:
    """A finished search, read from its folder. It prints as its report.

    Attributes:
        folder: of the search; ``front`` in it holds a recipe for each variant of the front.
    """

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """What ``search.json`` holds."""
        found: dict[str, Any] = json.loads((self.folder / SEARCH_NAME).read_text(encoding="utf-8"))
        return found

    @property
    def verdict(self) -> str:
        """Which variant to serve, how fast it is and what it costs, in two sentences."""
        return str(self.result["verdict"])

    @property
    def recipes(self) -> list[Path]:
        """The recipe files of the front, cheapest first."""
        return [self.folder / member["recipe"] for member in self.result["front"]]

    def __repr__(self) -> str:
        from optkit.report.search import search_markdown

        return search_markdown(self.result)


def search(
    recipe: str | Path,
    *overrides: str,
    space: str | Path | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    minimize: Sequence[str] = ("latency",),
    trials: int | None = None,
    hours: float | None = None,
    sampler: str = TPE,
    engine: str = BEST,
    front: int = MOST_IN_FRONT,
    control: str | None = None,
    study: str | None = None,
    storage: str | None = None,
    traffic: str | None = None,
    prices: str | Path | None = None,
    p99: str | None = None,
) -> Search:
    """Searches the variants of a recipe for the cheapest within a loss; the same call continues a search.

    Trials are judged on the validation split, whatever the recipe measures on. The front's variants are measured once
    on the recipe's split, usually test, in the end. Several processes and machines that call it with the same
    ``storage`` share the trials.

    Args:
        recipe: the name of a bundled recipe, or a file.
        overrides: such as ``task.path=DIR``.
        space: the name of a bundled space, or a YAML file; None takes the one for the model's kind.
        max_drop: the largest loss of the first metric against the baseline: in points of shares (0.5 is half a
            point), in the metric's unit otherwise.
        min_speedup: over the baseline on the reference engine.
        minimize: ``latency``, ``size``, ``memory``, ``macs``, ``energy`` or ``cost``, one or more; the first decides
            the winner.
        trials: how many, of all processes together; 30 where ``hours`` is not given either.
        hours: in which this process begins trials.
        sampler: ``tpe``, ``nsga2`` or ``random``.
        engine: whose figures count, or ``best``: the fastest for each variant.
        front: how many variants are measured in the end, at most.
        control: ``random``: as many trials at random follow, to compare the search with.
        study: its name; None makes it of the recipe's name and a digest of what is searched.
        storage: SQLAlchemy's URL of a database; None is a SQLite file in the folder of the search.
        traffic, prices, p99: of ``cost``, dollars for a million requests, as for `optkit.cost`; None takes those of the
            recipe.

    Raises:
        UserError: a mistake found before any work, or a study of something else.
        StageError: no trial was finished, or none keeps the limits; the message names the best there is.
    """
    need("search", "search")
    one_process_only("a search")
    _check(max_drop, min_speedup, minimize, trials, hours, sampler, front, control)
    compose = _Composer(str(recipe), overrides)
    written = compose()
    _check_recipe(written, minimize, engine)
    serving = _serving(written, minimize, traffic, prices, p99, compose.planned_cost)
    from optkit.searches.result import conclude
    from optkit.searches.space import open_space, space_for
    from optkit.searches.trial import Workshop

    opened = open_space(str(space or space_for(written)), written, compose)
    goal = Goal(tuple(minimize), _in_unit(max_drop, written), min_speedup)
    definition = _definition(written, opened, goal, sampler, engine, serving)
    folder, studies = _open(written, study, storage, definition, [sampler, *([control] if control else [])])
    workshop = Workshop(compose, folder, engine, goal.minimize, serving)
    if trials is None and hours is None:
        trials = TRIALS
    seconds = None if hours is None else 3600 * hours
    with log_file(folder / LOG_NAME), unchanging_code():
        as_written = workshop.on_validation([])
        if as_written.caveat:
            as_written = workshop.on_validation([], again=True)
        for kind, one in zip((sampler, RANDOM), studies, strict=False):
            log.info("%s proposes the trials of study %s", kind, one.study_name)
            do = _Trials(one, opened, goal, workshop)
            first = [] if kind == RANDOM else opened.guesses(written)
            if one is not studies[0]:  # as many as the search had, also where hours limited it
                trials, seconds = len(counted(studies[0])), None
            take_part(one, do, trials=trials, seconds=seconds, sampler=kind, seed=written.seed, first=first)
        with exclusive(folder / ".lock", f"finishing {folder.name}"):
            result = {"format": 1, "recipe": written.name, "name": folder.name} | definition
            result |= conclude(studies, goal, workshop, as_written, front)
            write_json(folder / SEARCH_NAME, result, key="out")
    found = Search(folder)
    write_text(folder / "search.md", repr(found))
    if not found.result["front"]:
        raise StageError(found.verdict, fix=f"optkit report {folder} shows the trials")
    return found


class _Trials:
    """Does the trials of a study, one at a call."""

    def __init__(self, study: Study, space: Space, goal: Goal, workshop: Workshop):
        self.study, self.space, self.goal, self.workshop = study, space, goal, workshop

    def __call__(self, trial: Trial) -> list[float]:
        """One trial: its loss on validation, and its costs.

        Raises:
            TrialPruned: it is among the worst after a part of the training.
            Refused: it cannot be made.
            OptkitError: a stage failed, or the measuring.
        """
        from optkit.searches.trial import Stages

        overrides = self.space.propose(trial)
        trial.set_user_attr("overrides", overrides)
        log.info("trial %d: %s", trial.number, " ".join(overrides))
        self.workshop.stages = Stages()
        looks: list[Look] = []
        for share in RUNGS:
            if (look := self._look(trial, overrides, share, looks)) is not None:
                looks.append(look)
        is_judged = bool(looks) or self.goal.max_loss is None
        figures = self.workshop.on_validation(overrides, None if is_judged else partial(self._stop_if_lossy, trial))
        trial.set_user_attr("stages", asdict(self.workshop.stages))
        trial.set_user_attr("figures", asdict(figures))
        for name, miss in self.goal.misses(figures).items():
            trial.set_constraint(name, miss)
        return self.goal.point(figures)

    def _stop_if_lossy(self, trial: Trial, look: Look) -> None:
        """Ends a trial whose chain trains nothing, before it is timed."""
        from optuna.exceptions import TrialPruned

        if self.goal.max_loss is not None and self.goal.loses_too_much(look.loss, look.baseline):
            trial.set_user_attr(TOO_LOSSY, look.loss)
            trial.set_user_attr("stages", asdict(self.workshop.stages))
            trial.set_constraint("loss", look.loss - self.goal.max_loss)
            log.info("trial %d stops: it loses too much, whatever its speed", trial.number)
            raise TrialPruned

    def _look(self, trial: Trial, overrides: Sequence[str], share: float, before: Sequence[Look]) -> Look | None:
        """A look after a share of the training; None where there is no training to shorten.

        Raises:
            TrialPruned: it is too slow, or among the worst of those that came as far.
        """
        from optuna.exceptions import TrialPruned

        look = self.workshop.after_part(overrides, share, timed=self.goal.is_timed and not before)
        if look is None:
            return None
        timed = look.timed or (before[0].timed if before else None)
        if look.timed is not None and self.goal.is_too_slow(look.timed):
            speedup = look.timed.speedup
            trial.set_user_attr(TOO_SLOW, speedup)
            trial.set_constraint("speedup", self.goal.misses(look.timed)["speedup"])
            log.info("trial %d stops: it is %.2f times as fast, whatever its training", trial.number, speedup)
            raise TrialPruned
        key, point = f"look {len(before)}", self.goal.early_point(look, timed)
        others = [one.user_attrs[key] for one in counted(self.study) if key in one.user_attrs]
        trial.set_user_attr(key, point)
        trial.set_user_attr("stages", asdict(self.workshop.stages))
        if not goes_on(point, [other for other in others if len(other) == len(point)], KEEP):
            log.info("trial %d stops after %.0f%% of its training", trial.number, 100 * share)
            raise TrialPruned
        return look


def _check(
    max_drop: float | None,
    min_speedup: float | None,
    minimize: Sequence[str],
    trials: int | None,
    hours: float | None,
    sampler: str,
    front: int,
    control: str | None,
) -> None:
    """Raises UserError for what no search can take."""
    for key, value in (("--max-drop", max_drop), ("--min-speedup", min_speedup), ("--hours", hours)):
        if value is not None and not (is_number(value) and 0 <= value < math.inf):
            raise UserError(f"{value!r} is out of range", key=key, value=value, fix="a number of 0 or more")
    if not minimize or len(set(minimize)) < len(minimize):
        raise UserError("name one cost or more, each once", key="--minimize", fix=f"of {', '.join(COSTS)}")
    for cost in minimize:
        check_choice("--minimize", cost, COSTS)
    if trials is not None:
        check_count("--trials", trials)
    check_count("--front", front)
    check_choice("--sampler", sampler, SAMPLERS)
    if control is not None:
        check_choice("control", control, (RANDOM,))
        if sampler == RANDOM:
            raise UserError("the search is random itself", key="control", value=control, fix="leave it out")


def _check_recipe(recipe: Recipe, minimize: Sequence[str], engine: str) -> None:
    """Raises UserError where a recipe does not measure what the search needs."""
    if recipe.measure.when != NOW:
        raise UserError("a search measures what it makes", key="measure.when", fix="leave measure=later out")
    if engine != BEST and engine not in recipe.engines:
        fix = did_you_mean(engine, [BEST, *recipe.engines])
        raise UserError(f"no engine '{engine}' in this recipe", key="--engine", value=engine, fix=fix)
    if "memory" in minimize and not recipe.measure.memory:
        raise UserError(
            "the recipe does not measure memory", key="--minimize", value="memory", fix="measure.memory=true"
        )
    if "energy" in minimize and not _measures_energy():
        message = "this machine has no energy counters that may be read"
        raise UserError(message, key="--minimize", value="energy", fix="minimize latency")


def _serving(
    recipe: Recipe,
    minimize: Sequence[str],
    traffic: str | None,
    prices: str | Path | None,
    p99: str | None,
    of_recipe: Callable[[], PlannedCost | None],
) -> PlannedCost | None:
    """What dollars are for; None where they are not minimized.

    Raises:
        UserError: it is not known, or given and not minimized; and as `PlannedCost`.
    """
    given = {"--traffic": traffic, "--prices": prices, "--p99": p99}
    if COST not in minimize:
        if named := [key for key, value in given.items() if value is not None]:
            raise UserError("no dollars are minimized", key=named[0], value=given[named[0]], fix="--minimize cost")
        return None
    from optkit.costs.planned import PlannedCost

    planned = of_recipe()
    if planned is None and (absent := [key for key, value in given.items() if value is None]):
        fix = "all of --traffic, --prices and --p99, or cost: in the recipe"
        raise UserError("dollars need it", key=absent[0], fix=fix)
    own = {"traffic": traffic, "prices": None if prices is None else str(prices), "p99": p99}
    named_here = {key: value for key, value in own.items() if value is not None}
    found = replace(planned, **named_here) if planned is not None else PlannedCost(**named_here)
    found.check(recipe.measure)
    return found


def _measures_energy() -> bool:
    from optkit.measure.energy import energy_counters

    return bool(energy_counters())


def _in_unit(max_drop: float | None, recipe: Recipe) -> float | None:
    """A loss in the unit of the recipe's first metric."""
    is_share = recipe.task.metrics[0].kind == SHARE
    return max_drop / 100 if max_drop is not None and is_share else max_drop


def _definition(
    recipe: Recipe, space: Space, goal: Goal, sampler: str, engine: str, serving: PlannedCost | None
) -> dict[str, Any]:
    """What is searched, by key; JSON."""
    node = flat(yaml.safe_load(recipe.text))
    found = {
        "config": {key: value for key, value in node if key.partition(".")[0] not in APART},
        "space": space.to_json(),
        "goal": asdict(goal),
        "sampler": sampler,
        "engine": engine,
    } | ({} if serving is None else {"serving": asdict(serving)})
    cleaned: dict[str, Any] = json.loads(json.dumps(without_secrets(dict(flat(found))), default=str))
    return cleaned


def _open(
    recipe: Recipe, name: str | None, storage: str | None, definition: dict[str, Any], samplers: Sequence[str]
) -> tuple[Path, list[Study]]:
    """The folder of a search, and its studies: its own, and that of its control. A mistake leaves nothing behind."""
    from optkit.pipeline import make_folder

    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:DIGEST]
    check_name(name, "--study") if name is not None else None
    folder = Path(os.path.expanduser(recipe.out)) / SEARCHES / (name or f"{recipe.name}-{digest}")
    is_new = not folder.exists()
    make_folder(folder, fresh=False)
    url, objectives = storage or f"sqlite:///{folder.absolute()}/study.db", 1 + len(definition["goal.minimize"])
    names = [folder.name, *(f"{folder.name}-{sampler}" for sampler in samplers[1:])]
    try:
        return folder, [open_study(url, one, objectives, definition) for one in names]
    except UserError:
        if is_new:
            shutil.rmtree(folder)
        raise
