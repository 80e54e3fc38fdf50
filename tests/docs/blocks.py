"""The fenced blocks of README.md and docs/, and the reasons why some of them are not run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
INCLUDED = re.compile(r'^--8<-- "(?P<path>[^":]+)(?::(?P<section>\w+))?"$', re.MULTILINE)
MARKS = re.compile(r"^ *# --8<-- .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its path from the root of the repository.
        line: of the page, on which its text begins.
        language: after the fence.
        text: between the fences.
        reason: why it is not run; None where it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order, with the files, or the sections of files, that they include."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        content = INCLUDED.sub(_included, match["text"])
        yield Block(str(page.relative_to(ROOT)), line, match["language"], content, match["reason"])


def _included(found: re.Match[str]) -> str:
    """What stands for a line that includes a file, as pymdownx.snippets has it."""
    text = (ROOT / found["path"]).read_text(encoding="utf-8")
    if found["section"]:
        _, _, text = text.partition(f"# --8<-- [start:{found['section']}]\n")
        text = textwrap.dedent(text.partition(f"# --8<-- [end:{found['section']}]")[0].rstrip(" "))
        assert text, found[0]
    return MARKS.sub("", text)


def all_blocks() -> list[Block]:
    """Of every page."""
    return [block for page in PAGES for block in blocks(page)]
