"""``optkit serve``: a variant behind HTTP, on Ray Serve."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from optkit.commands import options

MB = 2**20


@click.command(context_settings=options.ANYWHERE)
@click.argument("variant", type=click.Path(path_type=Path))
@options.overrides
@click.option("--engine", help="What computes. Required, unless VARIANT is a saved session.")
@click.option("--max-batch", type=click.IntRange(1), metavar="N", help="The most requests in a batch.")
@click.option("--max-wait", metavar="TIME", help="How long a request waits for others, such as 5ms.")
@click.option("--replicas", type=click.IntRange(1), metavar="N", help="A fixed number, instead of an autoscaler.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Cores of a replica.")
@click.option("--save", type=click.Path(path_type=Path), metavar="DIR", help="Write what is served to DIR, and end.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--max-mb", type=click.IntRange(1, 1024), default=16, show_default=True, help="The largest request.")
@options.trust
@options.quiet
@options.debug
def serve(
    variant: Path,
    arguments: tuple[str, ...],
    engine: str | None,
    max_batch: int | None,
    max_wait: str | None,
    replicas: int | None,
    threads: int | None,
    save: Path | None,
    host: str,
    port: int,
    max_mb: int,
    trust: tuple[str, ...],
    quiet: bool,
    debug: bool,
) -> None:
    """Serve a VARIANT over HTTP with Ray Serve.

    \b
    VARIANT is a folder such as RUN/variants/3-quantize (of a RUN folder
    the last variant of its chain), or one that --save or Session.save
    wrote. Batches, waits, replicas and autoscaler are those that optkit
    cost chose (RUN/cost.json), unless options say otherwise.

    \b
    POST /predict    {"inputs": {NAME: one example}}; for images also the
                     file itself, for texts {"text": "..."}
    GET /healthz     whether it answers
    GET /metrics     for Prometheus
    GET /metadata    names, shapes and types of the inputs

    Ctrl-C or SIGTERM ends it. It needs the extra serve.
    """
    _, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.core.extras import need
    from optkit.costs.units import SECONDS, quantity
    from optkit.serving.serving import prepared

    wait_ms = None if max_wait is None else 1e3 * quantity(max_wait, SECONDS, "max-wait")
    changes = {"max_batch": max_batch, "max_wait_ms": wait_ms, "replicas": replicas, "threads": threads}
    if save is not None:
        prepared(variant, engine, changes, save, overrides, trust)
        click.echo(f"saved: {save}")
        return
    need("serve", "server", key="serve")
    from optkit.serving.server import serve_plan

    with tempfile.TemporaryDirectory(prefix="optkit-serve-") as folder:
        model, plan = prepared(variant, engine, changes, Path(folder) / "model", overrides, trust)
        serve_plan(model, plan, host, port, max_mb * MB, trust)
