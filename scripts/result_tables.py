"""Writes the result tables of README.md and docs/ from the ledgers in docs/results/ledgers.

    python -m scripts.result_tables                              write every table and docs/results
    python -m scripts.result_tables add RUN [--command COMMAND]  keep a run's ledger first, then write
    python -m scripts.result_tables --check                      write nothing; exit with 1 if something would change

A ledger is a run's (``RUN/ledger.jsonl``), or the rows of an experiment (`scripts.results.Results`), whose script makes
the table. Its name is the file's. ``NAME.txt`` beside it holds the command that made it. A document includes a table
between two comments::

    <!-- results: quickstart -->
    <!-- end -->

``quickstart`` has four columns. ``quickstart wide`` has every column.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from optkit.core import ledger
from optkit.core.setting import Setting
from optkit.report.caveats import MARK, footnote
from optkit.report.plot import save_tradeoff
from optkit.report.rows import TIMED, Row, rows
from optkit.report.tables import BRIEF, QUALITY, markdown
from optkit.report.written import first
from scripts.results import machine

ROOT = Path(__file__).parent.parent
RESULTS = Path("docs/results")
LEDGERS = RESULTS / "ledgers"
MARKED = re.compile(r"(<!-- results: (?P<name>[\w-]+)(?P<wide> wide)? -->\n).*?(<!-- end -->)", re.DOTALL)
EXPERIMENTS = (
    "cost_results", "distill_accuracy", "generation_bench", "language_results", "processes_bench", "processes_speed",
    "prune_accuracy", "prune_latency_budget", "search_bench", "serving_bench", "sweep_timings", "training_bench",
)  # fmt: skip
COLUMNS = (QUALITY, "speedup", "size MB")
OWN_PATH = re.compile(r'"/[^"]*"')


def brief_table(found: Sequence[Row]) -> str:
    """Four columns at the largest batch: the baseline on the reference, and every variant on its fastest engine."""
    largest = max(map(Setting.of, found))
    here = [row for row in found if Setting.of(row) == largest and row["control"] is None]
    by_step: dict[int, list[Row]] = {}
    for row in here:
        by_step.setdefault(row["step"], []).append(row)
    reference = next(row for row in by_step[0] if row["engine"] == row["reference"])
    best = [max(same, key=lambda row: row["speedup"] or 0.0) for same in by_step.values()]
    shown = [reference, *(row for row in best if row is not reference)]
    cells = {header: cell for header, cell, _ in BRIEF}
    lines = [f"| variant | {first(found).title} | times as fast | size MB |", "|---|---:|---:|---:|"]
    for row in shown:
        shows = {"speedup": MARK} if row["caveat"] else {}
        said = [shows.get(header) or cells[header](row) for header in COLUMNS]
        lines.append(f"| {row['step']} {row['stage']}, {row['engine']} | {' | '.join(said)} |")
    means = f"Batches of {largest.batch_size}. Times as fast as step 0 on PyTorch eager in fp32, with 95% intervals."
    return "\n".join([*lines, "", f"{means} {_machine(found)}", *_doubt(found)])


def wide_table(found: Sequence[Row]) -> str:
    """Every column of every row, but no figure of time that cannot be trusted; below it what the columns mean."""
    trusted = [row | (dict.fromkeys(TIMED) if row["caveat"] else {}) for row in found]
    return "\n".join([markdown(trusted).rstrip(), "", _machine(found)])


def _doubt(found: Sequence[Row]) -> list[str]:
    """Says that figures of time are left out; the wide table gives the reasons."""
    said = f"{MARK} Left out: other work kept the machine busy, so this timing cannot be trusted."
    return ["", said] if footnote(found) else []


def _machine(found: Sequence[Row]) -> str:
    return str(found[0]["machine"])


def load(path: Path) -> list[Row]:
    """The rows of a run's ledger, each with its ``machine``."""
    records = ledger.read(path)
    return [row | {"machine": machine(records[0].environment)} for row in rows(records)]


def experiment(path: Path) -> str | None:
    """The table of an experiment's rows, as its script makes it; None for a run's ledger."""
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    head = json.loads(first)
    if "settings" not in head:
        return None
    if head.get("script") not in EXPERIMENTS:
        sys.exit(f"{path} is of no script that makes a table: {head.get('script')}")
    return str(importlib.import_module(f"scripts.{head['script']}").table([json.loads(line) for line in rest]))


def table(path: Path, wide: bool) -> str:
    """The table of a ledger, in Markdown."""
    of_experiment = experiment(path)
    if of_experiment is not None:
        return of_experiment
    return wide_table(load(path)) if wide else brief_table(load(path))


def filled(text: str, ledgers: Path) -> str:
    """A document with every marked table written anew."""

    def replaced(match: re.Match[str]) -> str:
        path = ledgers / f"{match['name']}.jsonl"
        if not path.is_file():
            sys.exit(f"there is no ledger {path}")
        return f"{match[1]}{table(path, bool(match['wide']))}\n{match[4]}"

    return MARKED.sub(replaced, text)


def index(ledgers: Path) -> str:
    """docs/results/index.md: every ledger with its command, its picture and its table."""
    parts = [
        "# Results",
        "`python -m scripts.result_tables` writes the tables and pictures of this page.\n"
        "It reads the ledgers in `docs/results/ledgers`. No figure is typed.",
        "A row with the mark † was timed while other work kept the machine busy. Its figures of time are left out.",
    ]
    for path in sorted(ledgers.glob("*.jsonl")):
        command = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        parts += [f"## {path.stem}", f"```sh\n{command}\n```", f"Ledger: [{path.name}](ledgers/{path.name})"]
        of_experiment = experiment(path)
        if of_experiment is None:
            parts.append(f"![Accuracy against latency of every variant of {path.stem}]({path.stem}.svg)")
        parts.append(of_experiment or wide_table(load(path)))
    return "\n\n".join(parts) + "\n"


def documents(root: Path) -> Iterator[tuple[Path, str]]:
    """Every document that has tables from ledgers, with the text that it should have."""
    ledgers = root / LEDGERS
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            yield path, filled(text, ledgers)
    yield root / RESULTS / "index.md", index(ledgers)


def add(run: Path, command: str | None, root: Path) -> str:
    """Keeps a copy of a run's ledger, or of an experiment's rows, without the kernel's name and without paths.

    Returns:
        Its name.
    """
    path = run / ledger.LEDGER_NAME if run.is_dir() else run
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    name = str(lines[0].get("recipe") or path.stem)
    for line in lines:
        if "environment" in line:
            line["environment"]["platform"] = line["environment"]["platform"].partition("-")[0]
        said = json.dumps({key: value for key, value in line.items() if key != "measurements"})
        if found := OWN_PATH.search(said):
            sys.exit(f"{path} names a path of this machine: {found[0]}")
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    kept = root / LEDGERS / f"{name}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")
    kept.with_suffix(".txt").write_text(f"{command or f'optkit run {name}'}\n", encoding="utf-8")
    return name


def draw(root: Path) -> None:
    """Draws accuracy against latency of every run's ledger."""
    for path in sorted((root / LEDGERS).glob("*.jsonl")):
        if experiment(path) is None:
            save_tradeoff(load(path), root / RESULTS / f"{path.stem}.svg")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Writes, or checks, what the ledgers say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    commands = parser.add_subparsers(dest="action")
    adding = commands.add_parser("add")
    adding.add_argument("run", type=Path, metavar="RUN")
    adding.add_argument("--command", help="that made it; optkit run RECIPE unless told")
    args = parser.parse_args(arguments)
    if args.action == "add":
        add(args.run, args.command, root)
    changed = [
        (path, text) for path, text in documents(root) if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if args.check:
        for path, _ in changed:
            print(f"{path.relative_to(root)} is not what its ledgers say: run python -m scripts.result_tables")
        return bool(changed)
    for path, text in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(root)}")
    draw(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
