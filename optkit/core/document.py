"""Dataclasses that are plain JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from optkit.core.cache import write_text
from optkit.core.errors import UserError


@dataclass
class Document:
    """Base of dataclasses that are read and written as JSON.

    Attributes:
        what: what messages call it.
        format: stands in the JSON, and must when it is read.
    """

    what: ClassVar[str]
    format: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        return {"format": self.format, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: if the data is something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != cls.format:
            raise UserError(f"not a {cls.what}", fix=f"its format must be {cls.format}")
        values = {key: value for key, value in data.items() if key != "format"}
        known = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if not needed <= set(values) <= known:
            raise UserError(f"not a whole {cls.what}", fix=f"its keys must be {', '.join(f.name for f in fields(cls))}")
        return cls(**values)

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            UserError: if the text is something else.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"not a {cls.what}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            UserError: if there is no such file or it is something else.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read a {cls.what}: {error.strerror}", key=str(path)) from error
