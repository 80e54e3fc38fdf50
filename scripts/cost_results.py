"""What serving costs for several models through one chain: a row for each run, traffic and policy, from kept ledgers.

    optkit run docs/examples/mlp_digits.yaml
    python -m scripts.cost_results RUN... [--traffic SPEC ...] --results cost_results.jsonl
    python -m scripts.result_tables add cost_results.jsonl --command '...'

The last stage of each run's chain stands beside its baseline; both are on their cheapest engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optkit import cost
from optkit.core.ledger import read
from optkit.costs import Costs, Deployment
from optkit.report import read_rows
from optkit.report.written import Written
from scripts.results import Results, machine

TRAFFIC = ["daily:rate=1000000/day,peak=2", "daily:rate=5000000/day,peak=2"]
PRICES = Path("docs/examples/prices.yaml")


def rows_of(costs: Costs, reported: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each policy under which baseline and chain were both trusted.

    Args:
        costs: of a run.
        reported: its rows, which have the quality.
    """
    found = []
    last = max((row for row in reported if row["control"] is None), key=lambda row: row["step"])
    written = Written.of(last)
    change = f"{written.signed(last['quality_delta'])}{written.change_unit}"
    for policy in dict.fromkeys(one.policy for one in costs.deployments):
        own = [one for one in costs.deployments if one.policy == policy and not one.control and not one.caveat]
        baseline = _cheapest([one for one in own if one.step == 0])
        chain = _cheapest([one for one in own if one.step == last["step"]])
        if baseline is None or chain is None:
            continue
        pays = next(one for one in costs.paybacks if (one.name, one.policy) == (chain.name, policy))
        row = {
            "recipe": chain.recipe,
            "policy": policy,
            "day": round(1e6 * baseline.dollars_a_day / baseline.dollars_a_million),
            "baseline": [baseline.dollars_a_million, baseline.dollars_a_million_ci],
            "chain": [chain.dollars_a_million, chain.dollars_a_million_ci],
            "engines": [baseline.engine, chain.engine],
            "replicas": [baseline.mean_replicas, chain.mean_replicas],
            "change": change,
            "shares": {one.technique: one.dollars_a_million for one in costs.shares if one.policy == policy},
            "requests": pays.requests,
            "days": pays.days,
        }
        found.append(row)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Dollars a million of baseline and chain, each technique's share of the baseline's, and break-even.

    Replicas are the mean of the day.
    """
    techniques = list(dict.fromkeys(name for row in rows for name in row["shares"]))
    headers = ["recipe", "requests a day", "policy", "baseline, USD a million", "chain, USD a million", "replicas"]
    headers += [*(f"{name}, %" for name in techniques), "requests to break even", "days"]
    lines = [f"| {' | '.join(headers)} |", "|---|---:|---|" + "---:|" * (len(headers) - 3)]
    for row in rows:
        shares = [row["shares"].get(name) for name in techniques]
        cells = [
            f"{row['recipe']} ({row['change']})",
            f"{row['day'] / 1e6:g} million",
            row["policy"],
            _money(*row["baseline"]),
            _money(*row["chain"]),
            " → ".join(f"{count:.2g}" for count in row["replicas"]),
            *("" if share is None else f"{100 * share / row['baseline'][0]:+.1f}" for share in shares),
            "never" if row["requests"] is None else f"{row['requests']:,.0f}",
            "never" if row["days"] is None else f"{row['days']:,.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    how = dict.fromkeys(
        f"{row['recipe']}: {' → '.join(row['engines'])}" for row in rows if row["policy"] == "serverless"
    )
    return "\n".join([*lines, "", f"Engines ({rows[0]['machine']}) {'; '.join(how)}."])


def _cheapest(deployments: Sequence[Deployment]) -> Deployment | None:
    return min(deployments, key=lambda one: one.dollars_a_million, default=None)


def _money(value: float, ends: list[float] | None) -> str:
    return f"{value:.3g}" + ("" if ends is None else f" [{ends[0]:.3g}, {ends[1]:.3g}]")


def main() -> None:
    """Compute what is missing from the results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--traffic", nargs="+", default=TRAFFIC)
    parser.add_argument("--p99", default="50 ms")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    settings = {"p99": args.p99, "prices": str(PRICES)}
    results = Results(args.results, settings, "cost_results")
    for run in args.runs:
        first = read(run)[0]
        for traffic in args.traffic:
            if results.has(recipe=first.recipe, traffic=traffic):
                continue
            costs = cost(run, traffic, PRICES, args.p99)
            for row in rows_of(costs, read_rows([run])):
                results.add(row | {"traffic": traffic, "machine": machine(first.environment)})
    print(table(results.rows))


if __name__ == "__main__":
    main()
