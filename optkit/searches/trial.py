"""What a trial measures: a recipe with other values, made in part first, judged on validation and timed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core import ledger
from optkit.core.artifact import Artifact, open_artifact
from optkit.core.errors import StageError, UserError
from optkit.core.ledger import LEDGER_NAME, Ledger
from optkit.core.records import Record
from optkit.core.setting import Setting
from optkit.core.statistics import CONFIDENCE
from optkit.measure.config import LATER
from optkit.measure.static import measure_macs, measure_static
from optkit.measure.validation import Validation
from optkit.pipeline import run
from optkit.recipe.keys import within
from optkit.recipe.plan import Plan, PlannedStep, Shared, baseline_place, make_plan
from optkit.recipe.recipe import MODEL, Recipe
from optkit.remeasure import Key, configured, measure_again
from optkit.report.rows import Row, rows, with_confidence
from optkit.report.written import Written
from optkit.searches.goal import BEST, COST, COSTS
from optkit.searches.study import Refused
from optkit.training import Trainer

if TYPE_CHECKING:
    from torch import nn

    from optkit.costs.planned import PlannedCost

log = logging.getLogger(__name__)
LOOK_S = 1.0  # of timing
MOST_RECIPES = 8  # composed ones that are kept: a trial needs five
TRIALS, LOOKS, FRONT = "trials", "looks", "front"  # folders of runs, in that of a search


@dataclass(frozen=True)
class Figures:
    """One variant against its baseline, on the engine that counts, in the largest setting that is measured.

    Attributes:
        run: the name of its run folder.
        chain: the stages that made it from the baseline.
        engine, setting: where it was measured.
        split: what its quality was measured on.
        quality, quality_ci: the task's first metric.
        loss: by how much that is worse than the baseline's on the reference engine, in the metric's unit; below 0 where
            it is better.
        loss_ci: its interval; None where there is none.
        speedup: how many times as fast as the baseline on the reference engine.
        speedup_ci: its interval; None where there is none.
        costs: each as a factor of the baseline's on the reference engine.
        metric: the metric's name, unit, kind and direction.
        caveat: why the timing cannot be trusted; None where it can.
    """

    run: str
    chain: list[str]
    engine: str
    setting: str
    split: str
    quality: float
    quality_ci: list[float] | None
    loss: float
    loss_ci: list[float] | None
    speedup: float
    speedup_ci: list[float] | None
    costs: dict[str, float]
    metric: dict[str, Any]
    caveat: str | None


@dataclass(frozen=True)
class Look:
    """A variant after a part of its training, or before it is timed; its loss, MACs and size are to be small.

    Attributes:
        loss: of the first metric on validation, against the baseline, both run by PyTorch as they are.
        macs, size: as factors of the baseline's.
        baseline: the baseline's first metric.
        timed: its figures on the engines, timed for a second at most; None where it was not timed.
    """

    loss: float
    macs: float
    size: float
    baseline: float = math.nan
    timed: Figures | None = None


@dataclass
class Stages:
    """The stages of a trial.

    Attributes:
        needed: variant ids, as often as one was needed.
        made: how many were not in the store.
    """

    needed: list[str] = field(default_factory=list)
    made: int = 0


class Workshop:
    """Makes and measures the variants of a search.

    Args:
        compose: gives the recipe with further overrides.
        folder: of the search.
        engine: whose figures count, or ``best``.
        costs: names of `COSTS` that are to be measured.
        serving: what dollars are for, if they are among these.
    """

    def __init__(
        self,
        compose: Callable[..., Recipe],
        folder: Path,
        engine: str,
        costs: Sequence[str],
        serving: PlannedCost | None = None,
    ):
        self.compose, self.folder, self.engine, self.costs, self.serving = compose, folder, engine, costs, serving
        written = compose()
        first = baseline_place(written)
        # the trainings that open a chain may not become part of its baseline
        baseline = written.chain[first - 1] if first else MODEL
        self.fixed = [f"baseline={baseline}", "controls=[]", "fresh=false"]
        self.name = written.name
        self.store = written.store or f"{written.out}/store"
        self.stages = Stages()  # of the trial that is on
        self.shared = Shared()
        self._baselines: dict[str, tuple[float, float, float]] = {}
        self._known: list[Record] = []  # of baselines
        self._recipes: dict[tuple[str, ...], Recipe] = {}

    def on_validation(
        self, overrides: Sequence[str], before: Callable[[Look], None] | None = None, again: bool = False
    ) -> Figures:
        """A variant in full: made, and judged and timed beside its baseline. What is there already is not done again.

        Args:
            overrides: of its trial.
            before: called with what is known of it before it is timed, and may raise.
            again: time it once more, unless that was done before.

        Raises:
            Refused: it cannot be made; found before any work.
            OptkitError: a stage failed, or the measuring.
        """
        recipe, plan = self._planned([*overrides, "measure.split=validation"], TRIALS)
        folder = self._made(plan)
        last = plan.last
        times = [
            record.measured_again for record in Ledger(folder / LEDGER_NAME).records() if record.variant == last.id
        ]
        if not times and before is not None:
            before(self._look(folder, plan, recipe))
        if not times or (again and not max(times)):
            self._measure(folder, recipe, {(last.number, last.id): None}, once=not times)
        self._remember_baseline(folder)
        return judged(folder, self.engine, self.costs, serving=self.serving)

    def on_test(self, overrides: Sequence[str], number: int, confidence: float) -> tuple[Recipe, Figures]:
        """The recipe of a variant, and its figures on the split that the recipe measures on.

        All of its steps are measured, and the run's folder gets a report.

        Args:
            overrides: of its trial.
            number: of its trial, which the recipe's name gets.
            confidence: of the intervals.
        """
        from optkit.report import write_report

        recipe, plan = self._planned([*overrides, f"name={self.name}-trial-{number}"], FRONT)
        done = run(plan)
        write_report(done.folder)
        return recipe, judged(done.folder, self.engine, self.costs, confidence, self.serving)

    def after_part(self, overrides: Sequence[str], share: float, timed: bool = False) -> Look | None:
        """A variant after a share of the epochs of each training behind the baseline; None if that is all of them.

        Args:
            overrides: of its trial.
            share: of the epochs.
            timed: time it beside the baseline, too.
        """
        shorter = _shorter(self._composed(overrides), share)
        if not shorter:
            return None
        recipe, plan = self._planned([*overrides, *shorter, "measure.split=validation"], LOOKS)
        folder = self._made(plan)
        look = self._look(folder, plan, recipe)
        return replace(look, timed=self._timed(folder, recipe, plan.last)) if timed else look

    def _look(self, folder: Path, plan: Plan, recipe: Recipe) -> Look:
        """What there is to know of a variant without an engine."""
        if plan.baseline.id not in self._baselines:
            self._baselines[plan.baseline.id] = _measured(folder, plan, plan.baseline, recipe)
        quality, macs, size = _measured(folder, plan, plan.last, recipe)
        base_quality, base_macs, base_size = self._baselines[plan.baseline.id]
        sign = 1 if recipe.task.metrics[0].higher_is_better else -1
        return Look(sign * (base_quality - quality), macs / base_macs, size / base_size, base_quality)

    def _timed(self, folder: Path, recipe: Recipe, step: PlannedStep) -> Figures:
        """A variant in the setting that counts, timed for a second at most."""
        measure = replace(recipe.measure, seconds=min(recipe.measure.seconds, LOOK_S), memory=False)
        short = replace(recipe, measure=measure)
        self._measure(folder, short, {(step.number, step.id): [max(configured(short))]})
        return judged(folder, self.engine, ["latency"])

    def _measure(
        self, folder: Path, recipe: Recipe, wanted: dict[Key, list[Setting] | None], once: bool = True
    ) -> None:
        """Measures a variant beside the baseline on the reference engine; the baseline itself in the first run only."""
        measure_again(folder, recipe, wanted, once=once, known=self._known, same_engine=False)

    def _remember_baseline(self, folder: Path) -> None:
        """Keeps the record of a run's baseline for the runs that follow."""
        self._known += [
            record
            for record in Ledger(folder / LEDGER_NAME).records()
            if record.variant == record.baseline not in {other.variant for other in self._known}
        ]

    def _composed(self, overrides: Sequence[str]) -> Recipe:
        key = tuple(overrides)
        if key not in self._recipes:
            try:
                composed = self.compose(*self.fixed, *overrides)
            except UserError as error:
                raise Refused(str(error)) from error
            if len(self._recipes) == MOST_RECIPES:
                self._recipes.clear()
            self._recipes[key] = composed
        return self._recipes[key]

    def _planned(self, overrides: Sequence[str], place: str) -> tuple[Recipe, Plan]:
        recipe = self._composed(overrides)
        try:
            plan = make_plan(recipe, shared=self.shared)
        except UserError as error:
            raise Refused(str(error)) from error
        return recipe, plan.placed(name=recipe.name, out=str(self.folder / place), store=self.store)

    def _made(self, plan: Plan) -> Path:
        """The folder of a run whose variants are made and not measured."""
        later = replace(plan.recipe, measure=replace(plan.recipe.measure, when=LATER))
        done = run(replace(plan, recipe=later))
        self.stages.needed += [step.id for step in plan.steps if step.stage is not None]
        self.stages.made += done.made
        return done.folder


def judged(
    folder: Path,
    engine: str,
    costs: Sequence[str],
    confidence: float = CONFIDENCE,
    serving: PlannedCost | None = None,
) -> Figures:
    """The last variant of a run.

    Args:
        folder: of the run.
        engine: whose figures count; ``best``: the fastest, of those whose timing can be trusted if there are any; where
            dollars come first among the costs, the cheapest.
        costs: names of `COSTS`.
        confidence: of the intervals.
        serving: what dollars are for, if they are among these.

    Raises:
        StageError: it was not timed on that engine, or a cost was not measured, or no way to serve it meets the target.
    """
    records = ledger.read(folder)
    found = [row for row in rows(records) if row["control"] is None]
    step, setting = max(row["step"] for row in found), max(map(Setting.of, found))
    here = [row for row in found if Setting.of(row) == setting]
    timed = [r for r in here if r["step"] == step and r["speedup"] is not None and engine in (BEST, r["engine"])]
    if not timed:
        raise StageError(f"the last variant was not timed{'' if engine == BEST else f' on {engine}'}", key=folder.name)
    dollars = _dollars(folder, serving) if serving is not None and COST in costs else {}
    if dollars and not (timed := [r for r in timed if (step, r["engine"]) in dollars]):
        raise StageError(
            f"it meets {serving and serving.p99} on none of its engines", key="--p99", fix="a higher target"
        )

    def worth(row: Row) -> tuple[bool, float]:
        return row["caveat"] is None, -dollars[step, row["engine"]] if costs[0] == COST else row["speedup"]

    row = with_confidence(max(timed, key=worth), records, confidence)
    base = next(r for r in here if r["step"] == 0 and r["engine"] == r["reference"])
    written = Written.of(row)
    delta = row["quality_delta_ci"]
    return Figures(
        folder.name, row["chain"], row["engine"], str(setting), row["split"], row["quality"], row["quality_ci"],
        -written.gain(row["quality_delta"]),
        None if delta is None else sorted(-written.gain(limit) for limit in delta),
        row["speedup"], row["speedup_ci"],
        {cost: _times_dollars(row, base, dollars) if cost == COST else _factor(row, base, cost) for cost in costs},
        {key: row[key] for key in ("metric", "unit", "metric_kind", "higher_is_better")},
        row["caveat"],
    )  # fmt: skip


def _dollars(folder: Path, serving: PlannedCost) -> dict[tuple[int, str], float]:
    """Dollars for a million requests by step and engine, under the cheapest policy; none where no target is met."""
    from optkit.costs.estimate import cost

    found: dict[tuple[int, str], float] = {}
    try:
        deployments = cost(folder, serving.traffic, serving.prices, serving.p99, serving.policy).deployments
    except UserError as error:
        raise StageError(f"no cost of serving: {error.message}", key=error.key, fix=error.fix) from error
    for one in deployments:
        if one.control is None:
            key = one.step, one.engine
            found[key] = min(one.dollars_a_million, found.get(key, math.inf))
    return found


def _times_dollars(row: Row, base: Row, dollars: dict[tuple[int, str], float]) -> float:
    """Dollars as a factor of the baseline's: on the reference engine, or on its cheapest where that is too slow."""
    own = {engine: amount for (step, engine), amount in dollars.items() if step == 0}
    if not own:
        message = "the baseline meets the target on no engine, so that nothing can be compared with it"
        raise StageError(message, key="--p99", fix="a higher target")
    return dollars[row["step"], row["engine"]] / own.get(base["engine"], min(own.values()))


def _factor(row: Row, base: Row, cost: str) -> float:
    if cost == "latency":
        return float(1 / row["speedup"])
    ours, theirs = row[COSTS[cost]], base[COSTS[cost]]
    if ours is None or not theirs:
        raise StageError(f"{cost} was not measured", key="--minimize", value=cost, fix="minimize something else")
    return float(ours / theirs)


def _measured(folder: Path, plan: Plan, step: PlannedStep, recipe: Recipe) -> tuple[float, float, float]:
    """The first metric on validation of a variant as PyTorch runs it, its MACs and its size in MB."""
    artifact: Artifact = open_artifact(folder / "variants" / step.folder)
    module: nn.Module = artifact.module(plan.trusted)
    task = recipe.task
    quality = Validation(task, task.size("validation"), "metric")(module)
    static = {m.name: m.value for m in measure_static(artifact, module)}
    macs = measure_macs(module, task.example(2), task.conditions()).value
    assert macs is not None
    return quality, float(macs), float(static["size"] or math.nan)


def _shorter(recipe: Recipe, share: float) -> list[str]:
    """Overrides that leave a share of the epochs of each training behind the baseline; none where that is all."""
    found = []
    for name in recipe.chain[baseline_place(recipe) :]:
        for key, trainer in _trainers(recipe.stages[name], f"stages.{name}"):
            epochs = math.ceil(share * trainer.epochs)
            if epochs < trainer.epochs:
                found.append(f"{key}.epochs={epochs}")
    return found


def _trainers(thing: Any, key: str) -> Iterator[tuple[str, Trainer]]:
    """The trainers within a stage, by their keys in the recipe."""
    if isinstance(thing, Trainer):
        yield key, thing
    for name, inner in within(thing).items():
        yield from _trainers(inner, f"{key}.{name}")
