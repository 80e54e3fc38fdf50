"""The tables of costs, for terminals and in Markdown."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from optkit.costs.result import Costs, Deployment, Payback, Share
from optkit.report.caveats import MARK

NOTE = (
    "USD with 95% intervals of the measured service times. Latency is waiting and service, cold starts included. "
    "Replicas are the mean and, in brackets, the most."
)
Column = tuple[str, Callable[[Any], str], int]


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.995 else f"{value:.3g}"


def _with_ends(value: float, ends: Sequence[float] | None) -> str:
    return _money(value) + ("" if ends is None else f" [{_money(ends[0])}, {_money(ends[1])}]")


def _variant(one: Deployment) -> str:
    return f"{one.name}{MARK if one.caveat else ''}"


def _replicas(one: Deployment) -> str:
    return f"{one.mean_replicas:.1f} ({one.replicas})" if one.policy != "fixed" else f"{one.replicas}"


def _late(one: Deployment) -> str:
    return f"{100 * (one.late + one.lost) / one.requests:.2g}"


RUN: Column = ("run", lambda one: one.run, 0)
DEPLOYMENTS: tuple[Column, ...] = (
    ("variant", _variant, 0),
    ("engine", lambda one: one.engine, 0),
    ("policy", lambda one: one.policy, 0),
    ("offer", lambda one: one.offer, 100),
    ("batch", lambda one: str(one.max_batch), 80),
    ("wait ms", lambda one: f"{one.max_wait_ms:.3g}", 110),
    ("replicas", _replicas, 70),
    ("busy %", lambda one: "-" if one.utilization is None else f"{100 * one.utilization:.0f}", 90),
    ("p50 ms", lambda one: f"{one.p50_ms:.3g}", 120),
    ("p99 ms", lambda one: f"{one.p99_ms:.3g}", 60),
    ("late %", _late, 130),
    ("USD a day", lambda one: _with_ends(one.dollars_a_day, one.dollars_a_day_ci), 110),
    ("USD a million", lambda one: _with_ends(one.dollars_a_million, one.dollars_a_million_ci), 0),
    ("spot a day", lambda one: "-" if one.spot_dollars_a_day is None else _money(one.spot_dollars_a_day), 150),
    ("kWh a million", lambda one: "-" if one.kwh_a_million is None else f"{one.kwh_a_million:.3g}", 150),
)
PAYBACKS: tuple[Column, ...] = (
    ("variant", lambda one: one.name, 0),
    ("policy", lambda one: one.policy, 0),
    ("engine", lambda one: one.engine, 90),
    ("making USD", lambda one: f"{one.making_dollars:.3g}", 0),
    ("saves USD a million", lambda one: f"{one.saved_a_million:.3g}", 0),
    ("requests to break even", lambda one: _break_even(one), 0),
    ("days", lambda one: "never" if one.days is None else f"{one.days:,.3g}", 0),
)
SHARES: tuple[Column, ...] = (
    ("technique", lambda one: one.technique, 0),
    ("policy", lambda one: one.policy, 0),
    ("USD a million", lambda one: f"{one.dollars_a_million:+.3g}", 0),
    ("orders", lambda one: str(one.orders), 0),
)
Block = tuple[str, tuple[Column, ...], Sequence[Deployment] | Sequence[Payback] | Sequence[Share]]


def text(costs: Costs, width: int | None = None) -> str:
    """The tables and sentences for a terminal, as wide as it or as ``width``."""
    from rich.console import Console

    from optkit.report.tables import fitted, terminal_width

    width = width or terminal_width()
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=sys.stdout.isatty(), force_jupyter=False, highlight=False)
    _say(out, costs.traffic.lines(), width)
    for title, columns, items in _blocks(costs):
        _say(out, ["", title], width)
        console.print(fitted(columns, items, width, ""))
    _say(out, ["", *_sentences(costs)], width)
    return out.getvalue()


def markdown(costs: Costs) -> str:
    """The same in Markdown."""
    parts = ["\n".join(costs.traffic.lines())]
    for title, columns, items in _blocks(costs):
        head = [f"| {' | '.join(header for header, _, _ in columns)} |", "|---" * len(columns) + "|"]
        body = [f"| {' | '.join(cell(one).replace('|', '/') for _, cell, _ in columns)} |" for one in items]
        parts += [title, "\n".join([*head, *body])]
    return "\n\n".join([*parts, *_sentences(costs)]) + "\n"


def verdict(costs: Costs) -> str:
    """The cheapest deployment without measurable loss of quality, in a sentence."""
    best = costs.best
    if best is None:
        return "No deployment is known to keep the quality of the baseline."
    batch = f"batches of up to {best.max_batch}" if best.max_batch > 1 else "single requests"
    return (
        f"Cheapest without measurable loss: “{best.name}” on {best.engine}, {best.policy} on {best.offer}, {batch}: "
        f"{_with_ends(best.dollars_a_million, best.dollars_a_million_ci)} USD a million requests, "
        f"{_with_ends(best.dollars_a_day, best.dollars_a_day_ci)} USD a day."
    )


def _blocks(costs: Costs) -> list[Block]:
    title = f"Cost of {costs.traffic_name} within {costs.p99_ms:g} ms at p99, at prices of {costs.prices}:"
    found: list[Block] = [
        (title, _used(DEPLOYMENTS, costs.deployments), costs.deployments),
        ("When a variant has paid for its making, against the baseline:", PAYBACKS, costs.paybacks),
        ("What each technique adds to the cost (Shapley values, or steps where orders is 1):", SHARES, costs.shares),
    ]
    several = len({one.run for one in costs.deployments}) > 1
    return [(title, (*columns, RUN) if several else columns, items) for title, columns, items in found if items]


def _used(columns: tuple[Column, ...], items: Sequence[Any]) -> tuple[Column, ...]:
    """The columns that hold something."""
    return tuple(column for column in columns if any(column[1](one) != "-" for one in items))


def _sentences(costs: Costs) -> list[str]:
    found = [NOTE]
    if doubtful := {f"{one.name} on {one.engine} ({one.caveat})" for one in costs.deployments if one.caveat}:
        found.append(
            f"{MARK} This timing cannot be trusted, and nothing is concluded from it: {'; '.join(sorted(doubtful))}."
        )
    found.append(verdict(costs))
    for choice in costs.choices[1:]:
        if choice.deployment is not None and costs.deployments[choice.deployment] is not costs.best:
            one = costs.deployments[choice.deployment]
            found.append(
                f"For a loss of at most {choice.tolerance}: “{one.name}” on {one.engine}, {one.policy}: "
                f"{_with_ends(one.dollars_a_million, one.dollars_a_million_ci)} USD a million."
            )
    found += [f"Left out: {line}." for line in costs.unmet]
    return found + costs.hints


def _break_even(one: Payback) -> str:
    if one.requests is None:
        return "never"
    if one.requests_ci is None:
        return f"{one.requests:,.0f}"
    low, high = ("never" if end is None else f"{end:,.0f}" for end in one.requests_ci)
    return f"{one.requests:,.0f} [{low}, {high}]"


def _say(out: io.StringIO, lines: Sequence[str], width: int) -> None:
    for line in lines:
        out.write(textwrap.fill(line, width, break_on_hyphens=False, break_long_words=False) + "\n")
