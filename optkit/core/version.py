"""The version of optkit, which git's tags decide: the same for the package as built, as installed and as it runs.

pyproject.toml asks this file when a package is built. In a checkout it is asked again whenever it is needed, so an
editable install says the version of the code that runs, not of the code that was installed once.
"""

from __future__ import annotations

import re
from email.parser import Parser
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.core.git import git

if TYPE_CHECKING:
    __version__: str

BEFORE_TAGS = "0.1.0"  # the release that the commits before the first tag lead to
UNKNOWN = f"{BEFORE_TAGS}.dev0+unknown"  # of source without git and without a package's metadata
TAGS = "v[0-9]*"
NAME = 'name = "optkit"'
DESCRIBED = re.compile(r"(?:v(?P<release>[0-9.]+)-(?P<distance>\d+)-g)?(?P<commit>[0-9a-f]+)(?P<dirty>-dirty)?")


@cache
def version() -> str:
    """The version by PEP 440.

    - ``1.2.3``: the commit with the tag v1.2.3, unchanged.
    - ``1.2.3.post1.dev4+g0123abc``: 4 commits after it; ``.dirty`` at the end where tracked files are changed.
    - ``0.1.0.dev1143+g0123abc``: 1,143 commits, and no tag yet.
    - `UNKNOWN`: source without git, such as an archive of the repository.
    """
    if (found := version_of_source(Path(__file__).resolve().parents[2])) is not None:
        return found
    try:
        return metadata.version("optkit")
    except metadata.PackageNotFoundError:  # files copied without the metadata of their installation
        return UNKNOWN


def version_of_source(root: Path) -> str | None:
    """The version of a source tree, a checkout or an unpacked sdist; None where the folder is neither."""
    project = root / "pyproject.toml"
    if not project.is_file() or NAME not in project.read_text(encoding="utf-8"):
        return None
    if (info := root / "PKG-INFO").is_file():
        return Parser().parsestr(info.read_text(encoding="utf-8"))["Version"]
    if not (root / ".git").exists():  # a checkout around it is another project's
        return UNKNOWN
    said = git(root, "describe", "--tags", "--long", "--always", "--abbrev=7", "--dirty", "--match", TAGS)
    found = DESCRIBED.fullmatch(said) if said is not None else None
    if found is None:
        return UNKNOWN
    local = f"+g{found['commit']}{'.dirty' if found['dirty'] else ''}"
    if found["release"] is None:
        count = git(root, "rev-list", "--count", "HEAD") or "0"
        return f"{BEFORE_TAGS}.dev{count}{local}"
    if found["distance"] == "0" and not found["dirty"]:
        return found["release"]
    return f"{found['release']}.post1.dev{found['distance']}{local}"


def __getattr__(name: str) -> str:
    if name == "__version__":  # asks git, which an import must not
        return version()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
