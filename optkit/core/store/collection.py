"""What ``optkit store gc`` removes: entries that no run names, that were not used for long, or that are too many."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from optkit.core.ledger import LEDGER_NAME
from optkit.core.store.contents import IS_DAMAGED, UNFINISHED, VARIANT_FILE, WHOLE, Stored

NOT_RUNS = {"variants", "store"}
Names = Mapping[str, Sequence[str]]  # the runs that name an entry, by its id


def named_by_runs(folders: Iterable[Path], depth: int | None = None) -> dict[str, list[str]]:
    """The variants that run folders name, in their ledger or among their files, with the names of these runs.

    Args:
        folders: of runs, or folders that hold them.
        depth: how many folders deep to look; None for no limit.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for top in folders:
        for at, inner, files in os.walk(top):
            folder = Path(at)
            if LEDGER_NAME in files or "recipe.yaml" in files:
                for variant_id in _ids(folder):
                    found[variant_id].add(folder.name)
            deep = depth is not None and len(folder.relative_to(top).parts) >= depth
            inner[:] = [name for name in inner if not (deep or name in NOT_RUNS or name.startswith("."))]
    return {variant_id: sorted(runs) for variant_id, runs in found.items()}


def with_ancestors(names: Names, entries: Iterable[Stored]) -> dict[str, list[str]]:
    """The same for the variants that these were made from: a chain that begins alike needs them all."""
    found = {variant_id: set(runs) for variant_id, runs in names.items()}
    parents = {one.id: one.parent for one in entries if one.state == WHOLE}
    for variant_id, runs in names.items():
        parent, seen = parents.get(variant_id), {variant_id}
        while parent is not None and parent not in seen:
            found.setdefault(parent, set()).update(runs)
            seen.add(parent)
            parent = parents.get(parent)
    return {variant_id: sorted(runs) for variant_id, runs in found.items()}


def to_remove(
    entries: Sequence[Stored],
    names: Names,
    now: float,
    older_than: float | None = None,
    max_size: float | None = None,
) -> list[tuple[Stored, str]]:
    """The entries to remove, with the reason.

    Damaged entries go. One that a run names stays. Of the others all go without `older_than` and `max_size`. With these
    go those that are older, and then those that were not used for longest, until the store is small enough. Unfinished
    work goes if it is older than `older_than`.

    Args:
        entries: of a store.
        names: the runs that name an entry, by id.
        now: seconds since 1970.
        older_than: seconds since the last use.
        max_size: bytes of the whole store.
    """
    found: dict[str, tuple[Stored, str]] = {}
    for one in entries:
        if one.state == IS_DAMAGED:
            found[one.place] = one, "damaged"
        elif one.id in names:
            continue
        elif older_than is not None and now - one.used > older_than:
            found[one.place] = one, "unfinished, and old" if one.state == UNFINISHED else "not used for long"
        elif one.state == WHOLE and older_than is None and max_size is None:
            found[one.place] = one, "no run names it"
    if max_size is not None:
        left = sum(one.size for one in entries if one.place not in found)
        for one in sorted(entries, key=lambda one: one.used):
            if left <= max_size:
                break
            if one.state == WHOLE and one.place not in found and one.id not in names:
                found[one.place] = one, "the store is too large"
                left -= one.size
    return list(found.values())


def _ids(run: Path) -> set[str]:
    """The ids of variants that stand in a run's ledger or among its files."""
    texts = []
    if (run / LEDGER_NAME).is_file():
        texts += (run / LEDGER_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    texts += [path.read_text(encoding="utf-8", errors="replace") for path in run.glob(f"variants/*/{VARIANT_FILE}")]
    found: set[str] = set()
    for text in texts:
        try:
            data = json.loads(text)
        except ValueError:  # a line that a killed run did not finish
            continue
        if isinstance(data, dict):
            record = data["variant"] if isinstance(data.get("variant"), dict) else data
            found |= {str(record[key]) for key in ("id", "variant", "parent", "baseline") if record.get(key)}
    return found
