"""The C++ compiler that torch.compile needs on a CPU."""

from __future__ import annotations

import shutil

COMPILERS = ("g++", "clang++", "c++")


def missing_compiler() -> str | None:
    """Why torch.compile does not work here; None where there is a C++ compiler."""
    return None if any(map(shutil.which, COMPILERS)) else "no C++ compiler found (install g++)"
