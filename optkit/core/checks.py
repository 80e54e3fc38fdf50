"""Checks of single arguments, with one wording for all of optkit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeGuard

from optkit.core.errors import UserError, did_you_mean


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a whole number or a fraction; True and False are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_share(key: str, value: object) -> None:
    """Raise a UserError unless ``value`` is a number between 0 and 1, both excluded."""
    if not is_number(value) or not 0 < value < 1:
        raise UserError(f"{value!r} is not a share between 0 and 1", key=key, value=value, fix="0.5 is half")


def check_positive(key: str, value: object) -> None:
    """Raise a UserError unless ``value`` is a finite number above 0."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise UserError(f"{value!r} is not a number above 0", key=key, value=value)


def check_choice(key: str, value: object, known: Iterable[object]) -> None:
    """Raise a UserError unless ``value`` is one of the known values."""
    known = tuple(known)
    if value not in known:
        raise UserError(
            f"no {key} '{value}'", key=key, value=value, fix=did_you_mean(str(value), list(map(str, known)))
        )


def check_count(key: str, value: object, least: int = 1) -> None:
    """Raise a UserError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{value!r} is not a whole number of at least {least}", key=key, value=value)


def check_distinct(key: str, names: Sequence[object], fix: str) -> None:
    """Raise a UserError for a name that is there twice."""
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise UserError(f"it has '{repeated[0]}' twice", key=key, value=repeated[0], fix=fix)


def check_pattern(key: str, pattern: str, paths: Iterable[str], what: str = "module") -> list[str]:
    """The paths that a pattern (as in :mod:`fnmatch`) matches, in their order; raise a UserError if it matches none."""
    paths = list(dict.fromkeys(paths))
    found = [path for path in paths if fnmatchcase(path, pattern)]
    if not found:
        raise UserError(f"no {what} matches '{pattern}'", key=key, value=pattern, fix=did_you_mean(pattern, paths))
    return found
