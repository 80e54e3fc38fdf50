"""The rows of a long experiment, kept in a file as they come, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Results:
    """One JSON object a line, beneath the settings that all of them were made with.

    A last line that was cut short by a kill is dropped. The command ends with a message where the file holds rows of
    other settings.

    Args:
        path: of the file; None keeps nothing.
        settings: what decides a row besides what the row itself names.
        script: of this folder, whose ``table`` shows the rows (`scripts.result_tables`).
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], script: str | None = None):
        self.path, self.rows = path, list[dict[str, Any]]()
        settings = json.loads(json.dumps(settings, default=str))
        whole = self._whole_lines()
        if not whole:
            self._append({"settings": settings, "script": script})
        elif (theirs := whole[0].get("settings")) != settings:
            sys.exit(f"{path} holds rows of other settings, {theirs}, asked were {settings}: name another file")
        self.rows = whole[1:]

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row."""
        self.rows.append(row)
        self._append(row)

    def has(self, **names: Any) -> bool:
        """Whether a row with these entries is there."""
        return any(all(row[name] == value for name, value in names.items()) for row in self.rows)

    def _whole_lines(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            self.path.write_text("".join(lines[:-1]), encoding="utf-8")
            lines.pop()
        return [json.loads(line) for line in lines]

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def machine(environment: dict[str, Any]) -> str:
    """The processor, its instructions for int8 and bf16, and the versions, in a sentence."""
    cpu, packages = environment["cpu"], environment["packages"]
    isa = [
        name for name in cpu["isa"] if name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    ]
    named = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "torchao", "openvino", "onnxruntime") if name in packages
    )
    return f"{environment['threads']} threads on {cpu['name']} ({', '.join(isa)}); {named}."


def machines(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """The machine of all rows; a line for each, with what the rows have at a key, where there are several."""
    found: dict[str, list[str]] = {}
    for row in rows:
        named = found.setdefault(row["machine"], [])
        named += [] if row[key] in named else [row[key]]
    if len(found) == 1:
        return list(found)
    return [f"- {', '.join(map(str, named))}: {machine}" for machine, named in found.items()]
