"""``optkit loadtest``: traffic to a server, and its latencies beside those that were predicted."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options


@click.command(short_help="Send traffic to a server, and time its answers.")
@click.argument("url")
@click.option("--traffic", required=True, metavar="SPEC", help="As of optkit cost: poisson:rate=10/s,hours=0.1")
@click.option("--run", type=click.Path(path_type=Path), help="The run whose service times predict the latencies.")
@click.option("--body", type=click.Path(path_type=Path), metavar="FILE", help="What is sent: JSON, an image or a text.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: loadtest.jsonl in RUN, or here.",
)
@click.option(
    "--timeout", default="60s", show_default=True, metavar="TIME", help="Requests without an answer by then are lost."
)
@click.option("--remote", is_flag=True, help="URL may be of another machine.")
@options.table_or_json
@options.quiet
@options.debug
def loadtest(
    url: str,
    traffic: str,
    run: Path | None,
    body: Path | None,
    out: Path | None,
    timeout: str,
    remote: bool,
    format_: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Send traffic to the server at URL, and compare its latencies with those predicted.

    \b
    Each request is sent at its time, whether or not those before it were
    answered. With --run, optkit simulates the same requests on what the
    server says that it runs, behind a web server that is measured before the
    traffic with 1 to 16 requests under way. A line goes to the ledger:
    percentiles, errors, rate, by how much requests were sent late, and every
    latency.
    """
    options.begin_messages((), debug, quiet)
    import json

    from optkit.costs.specs import parse_traffic
    from optkit.costs.units import SECONDS, quantity
    from optkit.serving import loadtest as tests

    address = tests.check_url(url, remote)
    timeout_s = quantity(timeout, SECONDS, "timeout")
    request = None if body is None else tests.body_of(body)
    requests = parse_traffic(traffic)
    measured = tests.loadtest(address, requests, request, timeout_s, unloaded=run is not None)
    predicted = None if run is None else tests.predict(run, measured, requests)
    line = tests.row(address, requests, measured, predicted)
    tests.append(out or (run or Path()) / tests.LEDGER, line)
    click.echo(json.dumps(line) if format_ == "json" else tests.table(line), nl=format_ == "json")
