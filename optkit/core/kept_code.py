"""What files of Python mean, kept in the cache: parsing all that a recipe's stages import takes half a second."""

from __future__ import annotations

import hashlib
import logging
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from optkit.core import syntax
from optkit.core.cache import cache_dir, read_json, write_json
from optkit.core.errors import OptkitError
from optkit.core.syntax import Code, read_code

log = logging.getLogger(__name__)


def kept_code(content: bytes, package: str, is_package: bool) -> Code:
    """What `read_code` gives, from the cache if any process has read the same content before.

    Raises:
        SyntaxError, ValueError, RecursionError: as `read_code`.
    """
    state = b"\0".join([_reader(), package.encode(), str(is_package).encode(), content])
    path = cache_dir() / "code" / f"{hashlib.sha256(state).hexdigest()[:32]}.json"
    if (found := _from_json(read_json(path))) is not None:
        return found
    code = read_code(content, package, is_package)
    try:
        write_json(path, asdict(code), "OPTKIT_CACHE")
    except OptkitError as error:  # a cache that cannot be written costs time alone
        log.debug("%s", error)
    return code


@cache
def _reader() -> bytes:
    """What else decides how a file is read: the code that reads it, and the version of Python's parser."""
    return f"{sys.version_info[:2]} {hashlib.sha256(Path(syntax.__file__).read_bytes()).hexdigest()}".encode()


def _from_json(data: Any) -> Code | None:
    try:
        imports = tuple((module, name) for module, name in data["imports"])
        face = None if data["face"] is None else {key: (module, name) for key, (module, name) in data["face"].items()}
        return Code(data["digest"], data["text"], data["reads_docs"], imports, face)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
