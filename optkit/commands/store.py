"""``optkit store``: what is in a store, what keeps it there, and what may go."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optkit.commands import options
from optkit.core.errors import UserError

if TYPE_CHECKING:
    from optkit.core.store.contents import Contents, Stored

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DEFAULT = "runs/store"
NEAR = 4  # folders deep, where runs lie around a store: the trials of a search are searches/NAME/trials/RUN
WIDE = 400  # columns where there is no terminal

place = click.argument("place", metavar="[STORE]", default=DEFAULT)
runs = click.option(
    "--runs",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where runs are that name entries; may be repeated. Default: beside a STORE that is a folder; none for a URL.",
)
of_cache = click.option("--cache", is_flag=True, help="This machine's cache in front of STORE instead.")


@click.group(short_help="Show and clean a store of finished stages.")
def store() -> None:
    """Show and clean a store of finished stages. A store may always be deleted: what is missing is made anew.

    \b
    STORE is a folder or a URL, as for store=. Default: runs/store.
    """


@store.command()
@place
@runs
@of_cache
@options.table_or_json
@options.tracebacks
def ls(place: str, folders: tuple[Path, ...], cache: bool, format_: str) -> None:
    """List the entries of STORE, and which runs name each."""
    found, names = _entries(_open(place, cache)), _names(place, folders)
    from optkit.core.store.collection import with_ancestors

    names = with_ancestors(names, found)
    if format_ == "json":
        click.echo(json.dumps([asdict(one) | {"kept_by": names.get(one.id, [])} for one in found], indent=1))
        return
    rows = [[*_cells(one), ", ".join(names.get(one.id, [])) or "-"] for one in found]
    _print_table(("id", "stage", "recipe", "size", "last used", "state", "kept by"), rows)
    click.echo(_total(found))


@store.command()
@place
@of_cache
@options.table_or_json
@options.tracebacks
def du(place: str, cache: bool, format_: str) -> None:
    """Show what STORE takes, by technique."""
    found = _entries(_open(place, cache))
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        total = totals[(one.technique or "unknown") if one.state == "whole" else one.state]
        total[0] += 1
        total[1] += one.size
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    if format_ == "json":
        click.echo(json.dumps({name: {"entries": count, "bytes": size} for name, (count, size) in ordered}, indent=1))
        return
    _print_table(("technique", "entries", "size"), [[name, str(count), _size(size)] for name, (count, size) in ordered])
    click.echo(_total(found))


@store.command()
@place
@runs
@click.option("--older-than", metavar="AGE", help="Remove what was not used for so long: 30d, 12h. Keep the rest.")
@click.option("--max-size", metavar="SIZE", help="Remove what was not used for longest until STORE is so small: 50GB.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@of_cache
@options.tracebacks
def gc(
    place: str, folders: tuple[Path, ...], older_than: str | None, max_size: str | None, dry_run: bool, cache: bool
) -> None:
    """Remove entries of STORE that no run names.

    \b
    With --older-than or --max-size: only what is old, or too much.
    What a run in --runs names stays, and so does what a process makes
    or reads now. Damaged entries go.
    """
    from optkit.core.store.collection import to_remove, with_ancestors

    seconds = None if older_than is None else _parse("--older-than", older_than, SECONDS, "such as 30d or 12h")
    limit = None if max_size is None else _parse("--max-size", max_size, UNITS, "such as 50GB or 800MiB")
    contents, names = _open(place, cache), _names(place, folders)
    if not names and seconds is None and limit is None:
        message = "no run is known, so everything would be removed"
        raise UserError(message, key="--runs", fix="give --runs DIR, --older-than or --max-size; or delete the store")
    found = _entries(contents)
    names, now = with_ancestors(names, found), time.time()
    chosen = to_remove(found, names, now, seconds, limit)
    rows, removed = [], []
    for one, why in chosen:
        stays = None if dry_run else contents.remove(one)
        rows.append([*_cells(one), f"stays: {stays}" if stays else why])
        removed += [] if stays else [one]
    if rows:
        _print_table(("id", "stage", "recipe", "size", "last used", "state", "why"), rows)
    click.echo(f"{'would remove' if dry_run else 'removed'} {_total(removed)}; {_total(found, len(removed))} left")
    left = sum(one.size for one in found) - sum(one.size for one in removed)
    if limit is not None and left > limit:
        click.echo(f"still above {max_size}: the rest is named by runs, unfinished, or in use")


@store.command()
@place
@of_cache
@options.tracebacks
def verify(place: str, cache: bool) -> None:
    """Read every entry of STORE, check its checksums, and exit with 1 if one is damaged."""
    contents = _open(place, cache)
    whole = [one for one in _entries(contents) if one.state == "whole"]
    wrong = [(one, reason) for one in whole if (reason := contents.damage(one)) is not None]
    for one, reason in wrong:
        click.echo(f"{one.id} ({one.stage or 'unknown'}): {reason}")
    without = sum(not one.checked for one in whole)
    older = (
        f"; {without} of an earlier version have no checksums, and only their lengths were checked" if without else ""
    )
    click.echo(f"{len(whole) - len(wrong)} of {_total(whole)} are whole{older}")
    if wrong:
        click.echo("a run that needs a damaged entry makes it anew; optkit store gc removes those that were set aside")
        sys.exit(1)


def _open(place: str, cache: bool) -> Contents:
    from optkit.core.store.opening import open_contents

    return open_contents(place, cache)


def _entries(contents: Contents) -> list[Stored]:
    return sorted(contents.entries(), key=lambda one: -one.used)


def _names(place: str, folders: Sequence[Path]) -> dict[str, list[str]]:
    """The runs that name entries: those in the folders, or beside a store that is a folder."""
    from optkit.core.store.collection import named_by_runs
    from optkit.core.store.opening import is_url

    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError(f"no folder {missing[0]}", key="--runs", value=str(missing[0]), fix="check the path")
    if folders or is_url(place):
        return named_by_runs(folders)
    return named_by_runs([Path(place).absolute().parent], depth=NEAR)


def _cells(one: Stored) -> list[str]:
    age = time.time() - one.used
    unit = next((unit for unit in "wdhm" if age >= SECONDS[unit]), "s")
    made = f"{one.stage} ({one.technique})" if one.stage != one.technique and one.technique else one.stage or "-"
    return [one.id, made, one.recipe or "-", _size(one.size), f"{age // SECONDS[unit]:.0f} {unit} ago", one.state]


def _total(entries: Sequence[Stored], but: int = 0) -> str:
    count = len(entries) - but
    size = f", {_size(sum(one.size for one in entries))}" if not but else ""
    return f"{count} {'entry' if count == 1 else 'entries'}{size}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _parse(option: str, text: str, units: dict[str, int], fix: str) -> float:
    """A number with a unit; raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found[2] if found else ""
    of_size = units is UNITS
    key = unit.upper().removesuffix("B") if of_size else unit.lower()
    if found is None or key not in units or (of_size and not unit):
        raise UserError(f"'{text}' is no {'size' if of_size else 'age'}", key=option, value=text, fix=fix)
    return float(found[1]) * units[key]


def _print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        last = header == headers[-1]
        table.add_column(header, justify="right" if header in ("size", "entries") else "left", no_wrap=not last)
    for row in rows:
        table.add_row(*row)
    console.print(table)
