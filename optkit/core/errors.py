"""The errors optkit raises: a user's mistake (exit code 2) or a failure while working (exit code 1)."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class OptkitError(Exception):
    """Base of everything optkit raises on purpose.

    Args:
        message: what is wrong, in one line.
        key: the config key or file the message is about.
        value: the value found there.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, key: str | None = None, value: object = None, fix: str | None = None):
        self.message, self.key, self.value, self.fix = message, key, value, fix
        super().__init__(message)

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        fix = f" ({self.fix})" if self.fix else ""
        return f"{where}{self.message}{fix}"


class UserError(OptkitError):
    """A mistake in a recipe, an argument or a file; found before any work is done."""

    exit_code = 2


class PlanError(UserError):
    """A chain that cannot work: a stage lacks a trait that the stages before it do not give."""


class StageError(OptkitError):
    """A stage failed while working; everything finished before it is kept."""


class DeadEndError(StageError):
    """A stage cannot work, and going on from what it saved would fail again."""


class SealedSplitError(StageError):
    """A stage asked for the test split, which only the pipeline's measurement may see."""


def cannot_write(folder: Path, error: OSError, key: str, fix: str | None = None) -> OptkitError:
    """The error for a failed write: a full disk is a failure while working, all else is the user's mistake."""
    message = f"cannot write to {folder}: {error.strerror}"
    if error.errno in FULL:
        return StageError(message, fix="free some space")
    return UserError(message, key=key, fix=fix)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that a disk is full; libraries in Rust and C++ say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def raise_if_full(error: Exception, place: Path | str) -> None:
    """Raises a StageError that says so if an error, which is not optkit's own, is that a disk is full."""
    if not isinstance(error, OptkitError) and is_disk_full(error):
        raise StageError(f"cannot write to {place}: {os.strerror(errno.ENOSPC)}", fix="free some space") from error


def first_line(error: BaseException) -> str:
    """The first line that is not blank of what an error says, or the name of its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last line of what an error says, where OpenVINO has the reason, or its type's name if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def own_code(what: str, key: str, fix: str | None = None) -> Iterator[None]:
    """Runs code of the user's: what it raises becomes a UserError of one line, ``WHAT: TYPE: REASON``.

    Errors of optkit's own pass as they are, as do a full disk and what is no ``Exception``.
    """
    try:
        yield
    except OptkitError:
        raise
    except Exception as error:
        raise_if_full(error, "the disk")
        kind = type(error).__name__
        reason = f"{kind}: {first_line(error)}" if str(error) else kind
        raise UserError(f"{what}: {reason}", key=key, fix=fix) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One clause naming the closest match of ``name`` in ``known``, or what is known (40 at most) if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    more = f" and {len(known) - 40} more" if len(known) > 40 else ""
    return f"known: {', '.join(known[:40])}{more}" if known else "none is known"
