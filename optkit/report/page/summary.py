"""The parts above and below the charts: title, verdict, runs side by side, warnings, environment."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.report.caveats import MARK, doubtful, remedy
from optkit.report.comparable import differences, gpu, processor, surroundings
from optkit.report.controls import against_controls
from optkit.report.page.content import Table
from optkit.report.page.formatting import DASH, TIMES, against, change, headline_ratio, name, ratio, seconds, signed
from optkit.report.page.runs import ShownRun
from optkit.report.rows import Row, describe_setting
from optkit.report.unmeasured import not_measured
from optkit.report.written import Written, common, first


def title(runs: Sequence[ShownRun]) -> str:
    """The recipe's name, or the names of several; the runs of a study are called after its recipe."""
    found = ((run.ablation or {}).get("recipe", run.first.recipe) for run in runs)
    names = list(dict.fromkeys(found))
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return shown if len(runs) == 1 else f"{shown}: {len(runs)} runs"


def about(runs: Sequence[ShownRun]) -> str:
    """What was measured where and when, in a line."""
    days = sorted({record.time[:10] for run in runs for record in run.records})
    machines = list(dict.fromkeys(_machine(run) for run in runs))
    variants = sum(len(run.records) for run in runs)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    where = machines[0] if len(machines) == 1 else f"{len(machines)} machines"
    return f"{variants} variant{'s' if variants != 1 else ''} measured on {where}, {when}"


def shown(run: ShownRun) -> dict[str, Any]:
    """A run as the template takes it."""
    folder = run.folder if run.folder.is_dir() else run.folder.parent
    return {
        "name": run.name,
        "verdict": run.verdict,
        "remarks": [text for text in (not_measured(folder), run.verdict.chain, *run.verdict.remarks) if text],
        "tiles": _tiles(run),
        "choices": _choices(run),
        "controls": against_controls(run.rows, signed),
        "facts": _facts(run),
        "versions": _versions(run),
        "command": f"optkit reproduce {shlex.quote(str(folder))}",
        "recipe_text": run.recipe_text,
    }


def _tiles(run: ShownRun) -> list[dict[str, str]]:
    """The few figures that the verdict rests on."""
    row = run.verdict.row
    if row is None:
        return []
    key = headline_ratio(row)
    low, high = row[f"{key}_ci"]
    delta_low, delta_high = row["quality_delta_ci"]
    written = Written.of(row)
    of = "" if key == "speedup" else f", against {against(row)}"
    tiles = [
        _tile("speedup", f"{row[key]:.2f}{TIMES}", f"{low:.2f} to {high:.2f}, {describe_setting(row)}{of}"),
        _tile(
            written.change_title,
            signed(written, row["quality_delta"]),
            f"{signed(written, delta_low)} to {signed(written, delta_high)}",
        ),
        _tile(written.name, written.value(row["quality"]), f"of {row['examples']:,} test examples"),
    ]
    base = next((r for r in run.rows if r["step"] == 0 and Setting.of(r) == Setting.of(row)), None)
    if base is not None and base["size_mb"] and row["size_mb"]:
        tiles.append(
            _tile("size", f"{row['size_mb']:.3g} MB", f"{row['size_mb'] / base['size_mb']:.0%} of the baseline's")
        )
    if base is not None and base["macs"] and row["macs"]:
        tiles.append(
            _tile("MACs", f"{row['macs'] / 1e6:,.3g} M", f"{row['macs'] / base['macs']:.0%} of the baseline's")
        )
    return tiles


def _tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _choices(run: ShownRun) -> Table | None:
    """The fastest for each loss that can be borne."""
    if all(choice.row is None for choice in run.verdict.choices):
        return None
    written, body = first(run.rows), []
    for choice in run.verdict.choices:
        loss = (
            "none that this test can tell"
            if choice.tolerance is None
            else f"under {written.tolerated(choice.tolerance)}, surely"
        )
        row = choice.row
        body.append([loss, DASH, DASH, DASH, DASH, DASH] if row is None else [loss, *_served(row)])
    return Table(
        ["loss that can be borne", "serve", "on", "speedup", written.change_title, "size MB"],
        body,
        frozenset({0, 1, 2}),
    )


def _served(row: Row) -> list[str]:
    size = DASH if row["size_mb"] is None else f"{row['size_mb']:.2f}"
    return [
        name(row),
        describe_setting(row),
        ratio(row, headline_ratio(row)) + ("" if headline_ratio(row) == "speedup" else f" of {against(row)}"),
        change(row),
        size,
    ]


def side_by_side(runs: Sequence[ShownRun]) -> Table | None:
    """A row for each of several runs: what to serve, and what it took to make."""
    if len(runs) < 2:
        return None
    written = common([row for run in runs for row in run.rows])
    change_title = written.change_title if written else "change"
    headers = ["run", "chain", "serve", "on", "speedup", change_title, "size MB", "all stages took"]
    body = []
    for run in runs:
        chain = " \N{RIGHTWARDS ARROW} ".join(record.stage for record in run.records)
        took = seconds(sum(record.cost.wall_s for record in run.records))
        row = run.verdict.row
        body.append([run.name, chain, *([DASH] * 5 if row is None else _served(row)), took])
    return Table(headers, body, frozenset({0, 1, 2, 3}))


def warnings(runs: Sequence[ShownRun]) -> list[str]:
    """Differences between the runs that a reader must know before comparing them."""
    found = []
    for run in runs:
        found += [f"{run.name}: {text}" if len(runs) > 1 else text for text in _within(run)]
    for what, values in differences([_conditions(run) for run in runs]).items():
        shown = "; ".join(values[:4]) + ("; …" if len(values) > 4 else "")
        found.append(f"The runs differ in {what}: {shown}. They stand in pictures of their own.")
    return found


def _conditions(run: ShownRun) -> dict[str, str]:
    """What runs must share to stand in one picture."""
    data = str(run.first.data.get("fingerprint", "not recorded"))[:12]
    return surroundings(run.first) | {"data": data, "threads": ", ".join(sorted({str(r["threads"]) for r in run.rows}))}


def _within(run: ShownRun) -> list[str]:
    found = []
    for what, values in differences([surroundings(record) for record in run.records]).items():
        found.append(f"Its variants differ in the {what} that they were measured with: {'; '.join(values)}.")
    if any(row["split"] != "test" for row in run.rows):
        found.append("Quality was measured on validation data, on which stages may have been chosen.")
    examples = min((row["examples"] or 0 for row in run.rows), default=0)
    # a block of text is many answers
    if examples < 200 and not any(row["workload"] for row in run.rows):
        found.append(f"Only {examples} examples were judged: {first(run.rows).name} is rough.")
    found += [
        f"“{record.stage}” on {m.conditions['engine']}: {m.conditions['reason']}."
        for record in run.records
        for m in record.measurements
        if m.name == "generation"
    ]
    untimed = sum(row["speedup"] is None for row in run.rows)
    if untimed:
        found.append(f"{untimed} of {len(run.rows)} rows have no latency beside the baseline and stand in tables only.")
    if in_doubt := doubtful(run.rows):
        again = remedy(run.folder if run.folder.is_dir() else run.folder.parent)
        text = f"{MARK} These timings cannot be trusted, and nothing is concluded from them: {in_doubt}."
        found.append(f"{text} To time them again: {again}")
    later = [row for row in run.rows if row["step"] > 0]
    if later and not any(row["engine"] == row["reference"] for row in later):
        reference = later[0]["reference"]
        found.append(f"The variants were not run on {reference}; speedups are still against the baseline there.")
    return found


def _facts(run: ShownRun) -> list[tuple[str, str]]:
    environment = run.first.environment
    data = run.first.data
    splits = data.get("examples") or data.get("splits") or {}
    sizes = ", ".join(f"{name} {size:,}" for name, size in splits.items()) if isinstance(splits, dict) else str(splits)
    facts = [
        ("recipe", run.first.recipe),
        ("processor", _machine(run)),
        ("GPU", gpu(environment) or ""),
        ("vector instructions", " ".join(environment.get("cpu", {}).get("isa", []))),
        ("threads", str(environment.get("threads", ""))),
        ("python", str(environment.get("python", ""))),
        ("platform", str(environment.get("platform", ""))),
        ("data", sizes),
        ("measured", f"{run.records[0].time} to {run.records[-1].time}"),
    ]
    return [(name, value) for name, value in facts if value]


def _versions(run: ShownRun) -> Table:
    packages = _packages(run)
    return Table(
        ["package", "version"], [[str(n), str(v or "not installed")] for n, v in packages.items()], frozenset({0, 1})
    )


def _packages(run: ShownRun) -> dict[str, Any]:
    return dict(run.first.environment.get("packages", {}))


def _machine(run: ShownRun) -> str:
    return processor(run.first.environment) or "an unknown processor"
