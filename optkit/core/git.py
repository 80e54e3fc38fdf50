"""What git says of a checkout; None wherever there is no git, no repository, or none that it may read."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Checkout:
    """A checkout of a git repository.

    Attributes:
        root: its top folder.
        commit: 40 hex digits.
        dirty: whether tracked files differ from the commit.
    """

    root: Path
    commit: str
    dirty: bool


def git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints in a folder, stripped; None where it fails."""
    # a hook that started this process names its own repository in these variables
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True,
            stdin=subprocess.DEVNULL, timeout=TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def checkout_of(folder: Path) -> Checkout | None:
    """The checkout that a folder lies in, as it was when first asked for."""
    found = git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if found is None:
        return None
    root, _, commit = found.rpartition("\n")
    changed = git(folder, "status", "--porcelain", "--untracked-files=no")
    return Checkout(Path(root), commit, dirty=bool(changed) or changed is None)
