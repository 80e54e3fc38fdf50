"""Progress of long work: bars on a terminal, a plain log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from optkit.core.logs import shows_bars

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
log = logging.getLogger(__name__)
LOG_EVERY_S = 15.0


@cache
def stderr_console() -> Console:
    """The one console for bars and log lines: two would write over each other."""
    from rich.console import Console

    return Console(stderr=True)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yields ``items``, showing how many of ``total`` are done."""
    if shows_bars():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LOG_EVERY_S:
            last = time.monotonic()
            log.info("%s: %d of %d", description, done, total)
        yield item
