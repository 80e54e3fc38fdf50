"""What the stages cost, and when that is paid back."""

from __future__ import annotations

import math

from optkit.core.setting import Setting
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.costs import break_evens
from optkit.report.page.formatting import MINUS, count, name, seconds
from optkit.report.page.runs import ShownRun, headline
from optkit.report.rows import describe_setting

ENDLESS = " A whisker that reaches ten times as far stands for one without end."


def cost_figures(run: ShownRun) -> list[Figure]:
    """The time of each stage, and the examples after which it is saved again."""
    stages = {(r["step"], r["variant"]): r for r in run.rows}
    if not stages:
        return []
    values = [
        {
            "name": name(r),
            "value": r["stage_cost_s"],
            "label": seconds(r["stage_cost_s"]),
            "technique": r["technique"],
        }
        for _, r in sorted(stages.items())
    ]
    device = [r["stage_device_s"] for _, r in sorted(stages.items())]
    took = Figure(
        "What each stage took",
        Table(
            ["stage", "wall s", "processor s"],
            [[v["name"], f"{v['value']:.1f}", f"{d:.1f}"] for v, d in zip(values, device, strict=True)],
        ),
        charts.bars(values, "wall time, s").to_dict(),
        "Wall time of each stage: " + "; ".join(f"{v['name']} {v['label']}" for v in values[:8]) + ".",
        "Step 0 is the making of the baseline.",
    )
    even = break_evens(run.rows)
    if not even:
        return [took]
    at = headline(run)
    here = [b for b in even if (b.row["engine"], Setting.of(b.row)) == at]
    shown = [b for b in here if math.isfinite(b.examples) and b.examples > 0]
    paid = [
        {
            "name": name(b.row), "technique": b.row["technique"], "value": b.examples,
            "low": max(b.low, 1e-9), "high": b.high if math.isfinite(b.high) else 10 * b.examples,
            "label": count(b.examples),
        }
        for b in shown
    ]  # fmt: skip
    where = f"{at[0]}, {at[1]}" if at else ""
    what = "tokens" if any(row["workload"] for row in run.rows) else "examples"
    payback = Figure(
        f"{what.capitalize()} until it has paid, {where}",
        Table(
            ["variant", "measured on", "stages s", "saved s per million", f"{what} to break even"],
            [
                [
                    name(b.row), describe_setting(b.row), f"{b.cost_s:.1f}",
                    f"{1e6 * b.saved_s:,.1f}".replace("-", MINUS), _even(b.examples, b.low, b.high),
                ]
                for b in even
            ],
            frozenset({0, 1}),
        ),
        charts.bars(paid, f"{what} served (log)", log=True).to_dict() if paid else None,
        f"{what.capitalize()} to break even: " + "; ".join(f"{v['name']} {v['label']}" for v in paid[:8]) + ".",
        "All stages from the baseline up to the variant, over what each "
        f"{what.removesuffix('s')} saves. “never”: it is not faster."
        + (ENDLESS if any(math.isinf(b.high) for b in shown) else ""),
    )  # fmt: skip
    return [took, payback]


def _even(examples: float, low: float, high: float) -> str:
    if math.isinf(examples):
        return "never"
    return f"{count(examples)} [{count(low)}, {count(high)}]"
