"""`run`: a recipe from Python, as ``optkit run`` runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.logs import RUN_LOG, log_file

if TYPE_CHECKING:
    import pandas

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
    from optkit.recipe.compose import launch

    found: list[Run] = []
    launch(str(recipe), overrides, lambda cfg: found.append(run_composed(cfg)))
    return found[0]


def run_composed(cfg: Any, show: Callable[[Run], None] = lambda run: None) -> Run:
    """Runs a composed recipe, writes its report, and sends it to the recipe's tracker.

    Args:
        cfg: from `optkit.recipe.compose.launch`.
        show: called when the report is written.
    """
    from optkit.recipe.compose import to_recipe, to_tracker

    recipe, tracker = to_recipe(cfg), to_tracker(cfg)
    from optkit.pipeline import run as run_plan
    from optkit.recipe.plan import make_plan

    finished = run_plan(make_plan(recipe))
    from optkit.report import write_report

    if not finished.worked:
        log.info("%s is complete: nothing was run (fresh=true starts over)", finished.folder)
    with log_file(finished.folder / RUN_LOG):
        write_report(finished.folder)
    done = Run(finished.folder, finished.worked, finished.failed)
    show(done)
    if tracker is not None:
        from optkit.report.trackers import send

        send(finished.folder, tracker)
    return done
