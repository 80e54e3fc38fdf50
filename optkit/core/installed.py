"""What is installed beside optkit: every distribution with its version."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata

from packaging.utils import canonicalize_name


@cache
def distributions() -> dict[str, str]:
    """The versions of all distributions installed when first asked, by canonical name; optkit's own left out.

    One that was installed from a repository is ``VERSION @ COMMIT``, and one that is installed as editable ``VERSION
    (editable)``: its version does not say which code runs.
    """
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name is not None:  # the first on the path is the one that is imported
            found.setdefault(canonicalize_name(name), distribution.version + _origin(distribution))
    found.pop("optkit", None)
    return dict(sorted(found.items()))


def _origin(distribution: metadata.Distribution) -> str:
    """Of a direct reference (PEP 610); its address is left out, for it may hold a password or a path."""
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return ""
    if commit := direct.get("vcs_info", {}).get("commit_id"):
        return f" @ {commit}"
    return " (editable)" if direct.get("dir_info", {}).get("editable") else ""
