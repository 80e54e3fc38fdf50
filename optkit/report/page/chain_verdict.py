"""What a whole chain did: its end against the baseline, and the steps in it that did not make it faster."""

from __future__ import annotations

from collections.abc import Sequence

from optkit.core.setting import Setting
from optkit.core.statistics import Estimate
from optkit.report.page.formatting import against, called, difference, headline_ratio, interval, times
from optkit.report.page.steps import changes, main_line
from optkit.report.rows import Row, describe_setting, is_trusted, relative_speedup
from optkit.report.written import Written

LEARNING = ("model", "engine", "train", "distill")  # what is not meant to make a model faster
MOST_PLACES = 3


def judge_chain(rows: Sequence[Row], best: Row | None) -> str:
    """A few sentences on the recipe's chain, at the verdict's batch size; empty where nothing is to be said.

    Args:
        rows: of one run, without controls.
        best: the row that the verdict names.
    """
    line = main_line(rows)
    last = max(line, key=lambda r: r["step"], default=None)
    if last is None or last["step"] == 0:
        return ""
    ends = [r for r in line if r["variant"] == last["variant"] and r["speedup"] is not None]
    trusted = [r for r in ends if is_trusted(r)]
    setting = Setting.of(best) if best is not None else max(map(Setting.of, trusted), default=None)
    here = [r for r in trusted if Setting.of(r) == setting]
    if not here:
        return "The end of the chain has no timing that can be trusted there." if trusted != ends and best else ""
    end = max(here, key=lambda r: (best is not None and r["engine"] == best["engine"], r["speedup_ci"][0]))
    return " ".join([*_whole(line, end, best), *_int8(line), *_no_faster(line, end)])


def _whole(line: Sequence[Row], end: Row, best: Row | None) -> list[str]:
    """How fast the end of the chain is, as far as the verdict does not say so."""
    stages = ", ".join(dict.fromkeys(r["stage"] for r in sorted(line, key=lambda r: r["step"]) if r["step"] > 0))
    if best is None or best["variant"] != end["variant"]:
        name = Written.of(end).name
        cost = "" if end["quality_delta"] is None else f", for a change in {name} of {difference(end, 'quality_delta')}"
        ratio = times(end, headline_ratio(end))
        return [f"The whole chain ({stages}) on {describe_setting(end)} is {ratio} as fast as {against(end)}{cost}."]
    if best["engine"] == best["reference"] or headline_ratio(best) != "speedup" or not best["speedup_same_engine"]:
        return []
    ratio = times(best, "speedup_same_engine")
    return [
        f"The whole chain ({stages}) is {ratio} as fast as the baseline on the same engine; the engine does the rest."
    ]


def _int8(line: Sequence[Row]) -> list[str]:
    """Where int8 does not make a variant faster than it was in floats, on any engine at any batch size."""
    compared = [(row, parent, relative_speedup(row, parent)) for row, parent in _quantized(line)]
    losing = [(row, parent, ratio) for row, parent, ratio in compared if ratio.low <= 1]
    if not losing:
        return []
    everywhere = "" if len(losing) == len(compared) else " everywhere"
    lacking = ", which has no int8 dot products" if losing[0][0]["int8_dot_product"] is False else ""
    places = [
        f"“{called(row)}” is {_against(ratio, called(parent))} on {describe_setting(row)}"
        for row, parent, ratio in losing
    ]
    more = f"; and at {len(places) - MOST_PLACES} more places" if len(places) > MOST_PLACES else ""
    return [f"int8 does not pay{everywhere} on this processor{lacking}: {'; '.join(places[:MOST_PLACES])}{more}."]


def _quantized(line: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows in int8 on the processor, each with its parent in floats on the same engine in the same setting."""
    trusted = {(r["variant"], r["engine"], Setting.of(r)): r for r in line if is_trusted(r)}
    pairs = ((r, trusted.get((r["parent"], r["engine"], Setting.of(r)))) for r in trusted.values())
    return [
        (row, parent)
        for row, parent in pairs
        if parent is not None and row["device"] == "cpu" and (row["int8_share"] or 0) > (parent["int8_share"] or 0)
    ]


def _no_faster(line: Sequence[Row], end: Row) -> list[str]:
    """The other steps that did not make it faster, on the engine of the chain's end."""
    told = {row["variant"] for row, _ in _quantized(line)}
    found = []
    for step in changes(line, end["engine"], Setting.of(end), timed=True):
        if step.technique in LEARNING or step.ratio is None or step.ratio_ci is None or step.row["variant"] in told:
            continue
        ratio = Estimate(step.ratio, *step.ratio_ci)
        if ratio.low <= 1:
            found.append(f"The step “{step.name}” is {_against(ratio, 'its parent')} on {describe_setting(end)}.")
    return found


def _against(ratio: Estimate, parent: str) -> str:
    """A ratio that is not above 1, in words."""
    quoted = parent if parent == "its parent" else f"“{parent}”"
    what = "slower" if ratio.high < 1 else "not measurably faster"
    return f"{what} than {quoted} ({ratio.value:.2f} times {interval(ratio.ci)} as fast)"
