"""`run`: a recipe from Python, as ``optkit run`` runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.ledger import LEDGER_NAME
from optkit.core.logs import RUN_LOG, log_file
from optkit.core.processes import current, joined

if TYPE_CHECKING:
    import pandas

    from optkit.costs.result import Costs
    from optkit.report.rows import Row

log = logging.getLogger("optkit")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run, read from its ledger. It prints as the table and the verdict that ``optkit run`` shows.

    Attributes:
        folder: of the run; the variants are in ``variants/``, and `optkit.load` opens them.
        worked: whether anything was left to do.
        failed: why a chain besides the recipe's own ended early, by its stages.
    """

    folder: Path
    worked: bool = True
    failed: dict[tuple[str, ...], str] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the report: one for each variant, engine and batch size."""
        from optkit.report import read_rows

        return read_rows([self.folder])

    @cached_property
    def verdict(self) -> str:
        """Which variant to serve, how fast it is, and what it costs."""
        from optkit.report.page.verdict import verdict

        return "\n".join(verdict(self.rows, self.folder).lines)

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a data frame; an interval is two columns, ``NAME_low`` and ``NAME_high``."""
        from optkit.report import frame

        return frame([self.folder])

    def __repr__(self) -> str:
        from optkit.report import summarize

        return summarize(self.folder)


def run(recipe: str | Path, *overrides: str) -> Run:
    """Runs a recipe, or continues it: the same recipe finds its run folder, and does only what is left.

    In a script that ``torchrun`` starts, all processes call it.

    Args:
        recipe: the name of a bundled recipe, or a file.
        overrides: such as ``stages.prune.amount=0.7``.

    Raises:
        UserError: a mistake found before any work.
        StageError: a stage failed; everything finished before it is kept.
    """
    for one in overrides:
        if not isinstance(one, str) or one.startswith("-"):
            fix = "overrides are texts such as 'seed=1'; several runs are a loop, and flags are of the command line"
            raise UserError(f"{one!r} is no override", key="overrides", value=one, fix=fix)
    from optkit.launch import launch

    found: list[Run] = []
    with joined():
        launch(str(recipe), overrides, lambda cfg: found.append(run_composed(cfg)))
    return found[0]


def run_composed(cfg: Any, show: Callable[[Run | Costs], None] = lambda result: None) -> Run:
    """Runs a composed recipe, writes its report, and sends it to the recipe's tracker; of several processes the first
    does all but the run.

    Args:
        cfg: from `optkit.launch.launch`.
        show: called when the report is written, and when the costs are known that the recipe asks for.
    """
    from optkit.recipe.compose import to_cost, to_recipe, to_tracker

    recipe, tracker, planned = to_recipe(cfg), to_tracker(cfg), to_cost(cfg)
    if planned is not None:
        planned.check(recipe.measure)
    from optkit.pipeline import run as run_plan
    from optkit.recipe.plan import make_plan

    finished = run_plan(make_plan(recipe))
    done = Run(finished.folder, finished.worked, finished.failed)
    current().first(lambda: _report(done, tracker, planned, show))
    return done


def _report(done: Run, tracker: Any, planned: Any, show: Callable[[Run | Costs], None]) -> None:
    from optkit.report import write_report

    if not done.worked:
        log.info("%s is complete: nothing was run (fresh=true starts over)", done.folder)
        log.info("optkit reproduce %s runs it anew and compares the results", done.folder)
    with log_file(done.folder / RUN_LOG):
        write_report(done.folder)
    show(done)
    if planned is not None and (costs := planned.of(done.folder)) is not None:
        show(costs)
    if tracker is not None and (done.folder / LEDGER_NAME).is_file():
        from optkit.report.trackers import send

        send(done.folder, tracker)
