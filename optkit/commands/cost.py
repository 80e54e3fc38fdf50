"""``optkit cost``: what it costs to serve the variants of runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from optkit.commands import options
from optkit.core.errors import UserError

EMITTED = ("k8s", "keda", "ray")
POLICIES = ("best", "fixed", "autoscaled", "serverless")


@click.command(short_help="Find the cheapest way to serve each variant.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--traffic", required=True, metavar="SPEC", help="A log, a CSV file, or such as daily:rate=1000000/day.")
@click.option("--prices", type=click.Path(path_type=Path), metavar="FILE", help="A price list; required with a RUN.")
@click.option("--p99", metavar="TIME", help="The target, such as 50ms; required with a RUN.")
@click.option(
    "--policy", type=click.Choice(POLICIES), default="best", show_default=True, help="best: all that are offered."
)
@click.option("--emit", type=click.Choice(EMITTED), help="Print the files that deploy the cheapest, instead of tables.")
@click.option("--of", metavar="VARIANT", help="What --emit deploys, such as '3 quantize' or '3 quantize on ENGINE'.")
@click.option("--format", "format_", type=click.Choice(("table", "md", "json")), default="table", show_default=True)
@options.quiet
@options.debug
def cost(
    runs: tuple[str, ...],
    traffic: str,
    prices: Path | None,
    p99: str | None,
    policy: str,
    emit: str | None,
    of: str | None,
    format_: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Find the cheapest way to serve each variant of RUN folders.

    \b
    For each variant, engine and policy: batch size, wait, replicas or
    autoscaler, and offer of the price list, so that 99% of the requests
    are answered within the target. Service times are those of the ledger.
    Without a RUN: what the traffic looks like.

    \b
    SPEC is a file (CSV with times, or counts; access log; Prometheus
    range export), or a kind with options:
      poisson:rate=10/s            bursty:rate=10/s,burst=5,share=0.1
      daily:rate=1000000/day       weekly:rate=10/s,weekend=0.5
      trace.csv:repeat=168,rate=20/s
    The result of one run is also written to RUN/cost.json, which the page
    of optkit report shows, and optkit serve follows.

    \b
    --emit prints YAML with the numbers that were found:
      k8s    a Deployment, a Service and a HorizontalPodAutoscaler
      keda   a Deployment, a Service and a ScaledObject of KEDA
      ray    a config of Ray Serve
    """
    options.begin_messages((), debug, quiet)
    if of is not None and emit is None:
        raise UserError("is only for --emit", key="--of", value=of, fix="add --emit k8s, keda or ray")
    given = {"--emit": emit, "--prices": prices, "--p99": p99, "--policy": None if policy == "best" else policy}
    for option, value in given.items() if not runs else ():
        if value is not None:
            raise UserError("needs a run", key=option, value=str(value), fix="name a RUN")
    if not runs:
        _describe(traffic, format_)
        return
    for option, value in (("--prices", prices), ("--p99", p99)):
        if value is None:
            raise UserError("missing", key=option, fix="see optkit cost --help, or leave RUN out to see the traffic")
    assert prices is not None
    assert p99 is not None
    from optkit.costs.estimate import cost as cost_of
    from optkit.costs.result import COST
    from optkit.costs.tables import markdown, text

    found = cost_of(runs, traffic, prices, p99, policy)
    if len(runs) == 1 and (folder := Path(runs[0])).is_dir():
        found.save(folder / COST)
    if emit is not None:
        from optkit.serving.manifests import emit as manifests
        from optkit.serving.plan import best_plan

        click.echo(manifests(best_plan(found, of), emit), nl=False)
    elif format_ == "json":
        click.echo(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        click.echo(markdown(found) if format_ == "md" else text(found), nl=False)


def _describe(spec: str, format_: str) -> None:
    from dataclasses import asdict

    from optkit.costs.specs import parse_traffic
    from optkit.costs.traffic import describe

    found = describe(parse_traffic(spec))
    click.echo(json.dumps(asdict(found), indent=1) if format_ == "json" else "\n".join(found.lines()))
