"""What a run or a sweep would make: stages that are in the store, stages to make, and what these took before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import OptkitError, UserError
from optkit.core.ledger import LEDGER_NAME, Ledger
from optkit.measure.config import LATER
from optkit.sweep.costs import Costs
from optkit.sweep.state import APART, key_of

if TYPE_CHECKING:
    from optkit.core.store import StageStore
    from optkit.recipe.plan import Plan, PlannedStep
    from optkit.recipe.recipe import Recipe


@dataclass(frozen=True)
class PlannedJob:
    """One job that would be done.

    Attributes:
        overrides: all of its overrides.
        mistake: why it cannot be done; None if it can.
        run: the name of its run folder.
        present: names of the stages that are in the store.
        elsewhere: names of the stages that an earlier job makes.
        making: the stages that it makes, with the seconds that each took before; None for one without a record.
        to_measure: the names of the variants that it measures.
        timing_s: at most so many seconds of timing; None if it measures later.
    """

    overrides: list[str]
    mistake: OptkitError | None = None
    run: str = ""
    present: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    making: tuple[tuple[str, float | None], ...] = ()
    to_measure: tuple[str, ...] = ()
    timing_s: float | None = 0.0


class Preview:
    """The jobs that a command would do, planned one after the other; what they share is looked at once.

    Attributes:
        jobs: those planned so far.
        tasks: tasks by their config, see `optkit.recipe.compose.to_recipe`.
    """

    def __init__(self) -> None:
        self.jobs: list[PlannedJob] = []
        self.tasks: dict[str, Any] = {}
        self._shared: Any = None
        self._costs: dict[Path, Costs] = {}
        self._stored: dict[tuple[str, str], bool] = {}
        self._making: set[tuple[str, str]] = set()

    def add(self, overrides: Sequence[str], compose: Callable[[], Recipe]) -> None:
        """Plans a job; a mistake in it is kept.

        Args:
            overrides: of the job.
            compose: gives its recipe.
        """
        from optkit.recipe.plan import Shared, make_plan

        self._shared = self._shared or Shared()
        try:
            plan = make_plan(compose(), shared=self._shared)
            self.jobs.append(self._planned(list(overrides), plan))
        except OptkitError as error:
            self.jobs.append(PlannedJob(list(overrides), mistake=error))

    def raise_mistakes(self) -> None:
        """Raises UserError for the first job that cannot be done, or the mistake itself of a single run."""
        wrong = [(n, job.mistake) for n, job in enumerate(self.jobs) if job.mistake is not None]
        if wrong and len(self.jobs) == 1:
            raise wrong[0][1]
        if wrong:
            raise UserError(f"{len(wrong)} of {len(self.jobs)} jobs cannot be done; job {wrong[0][0]}: {wrong[0][1]}")

    def text(self) -> str:
        """All of it in words."""
        wrong = [job for job in self.jobs if job.mistake is not None]
        if len(self.jobs) == len(wrong) == 1:
            return ""  # the mistake is raised
        return "\n".join([line for n, job in enumerate(self.jobs) for line in self._lines(n, job)] + self._sum()) + "\n"

    def _planned(self, overrides: list[str], plan: Plan) -> PlannedJob:
        from optkit.core.store import open_store

        recipe = plan.recipe
        root = recipe.store or f"{recipe.out}/store"
        store = None if recipe.fresh else open_store(root)
        out = Path(recipe.out)
        if out not in self._costs:
            self._costs[out] = Costs(out)
        costs = self._costs[out]
        present, elsewhere, making = [], [], []
        for step in plan.steps:
            if step.stage is None:
                continue
            if store is not None and self._is_stored(store, root, step):
                present.append(step.name)
            elif store is not None and (root, step.id) in self._making:
                elsewhere.append(step.name)
            else:
                self._making.add((root, step.id))
                making.append((step.name, costs.of(step)))
        ledger = Ledger(Path(recipe.out) / plan.run / LEDGER_NAME)
        measured = set() if recipe.fresh else {record.variant for record in ledger.records()}
        to_measure = tuple(step.folder for step in plan.measured if step.id not in measured)
        return PlannedJob(
            overrides, None, plan.run, tuple(present), tuple(elsewhere), tuple(making), to_measure,
            _timing_s(recipe, len(to_measure)),
        )  # fmt: skip

    def _is_stored(self, store: StageStore, root: str, step: PlannedStep) -> bool:
        key = (root, step.id)
        if key not in self._stored:
            self._stored[key] = store.has(step.id)
        return self._stored[key]

    def _lines(self, number: int, job: PlannedJob) -> list[str]:
        head = f"job {number}: {self._own(job)}" if len(self.jobs) > 1 else f"run {job.run}"
        if job.mistake is not None:
            return [head, f"  cannot be done: {job.mistake}"]
        making = ", ".join(f"{name} ({_about(seconds)})" for name, seconds in job.making)
        measuring = "to measure later" if job.timing_s is None else "to measure"
        rows = [
            ("run", job.run if len(self.jobs) > 1 else ""),
            ("in the store", ", ".join(job.present)),
            ("an earlier job makes", ", ".join(job.elsewhere)),
            ("to make", making),
            (measuring, ", ".join(job.to_measure)),
        ]
        if not (job.making or job.elsewhere or job.to_measure):
            rows.append(("to do", "nothing: the run is complete"))
        return [head, *(f"  {name}: {text}" for name, text in rows if text)]

    def _own(self, job: PlannedJob) -> str:
        kept = [o for o in job.overrides if key_of(o) not in APART]
        return " ".join(o for o in kept if any(o not in other.overrides for other in self.jobs))

    def _sum(self) -> list[str]:
        making = [stage for job in self.jobs for stage in job.making]
        stored = len({key for key, there in self._stored.items() if there})
        jobs = f"{len(self.jobs)} jobs: " if len(self.jobs) > 1 else ""
        lines = ["", f"{jobs}{len(making)} stages to make, {stored} in the store"]
        known = [seconds for _, seconds in making if seconds is not None]
        if known:
            records = sum(costs.used for costs in self._costs.values())
            span = timedelta(seconds=round(sum(known)))
            lines.append(
                f"the stages take about {span}, one after the other, by {records} earlier records of such stages"
            )
        if unknown := list(dict.fromkeys(name for name, seconds in making if seconds is None)):
            lines.append(f"how long these take is not known, there is no record of them: {', '.join(unknown)}")
        timing = sum(job.timing_s or 0.0 for job in self.jobs)
        if timing:
            span = timedelta(seconds=round(timing))
            lines.append(f"timing takes up to {span} besides; compiling and evaluating come on top")
        return lines


def _timing_s(recipe: Recipe, variants: int) -> float | None:
    """At most so many seconds of timing, if nothing disturbs it; None where it is measured later."""
    from optkit.measure import settings_of

    if recipe.measure.when == LATER:
        return None
    return variants * recipe.measure.seconds * len(settings_of(recipe.task, recipe.measure)) if variants else 0.0


def _about(seconds: float | None) -> str:
    if seconds is None:
        return "no record"
    return f"about {seconds:.1f} s" if seconds < 60 else f"about {timedelta(seconds=round(seconds))}"
