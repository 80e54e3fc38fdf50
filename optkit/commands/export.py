"""``optkit export``: a variant as files that run without optkit."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options
from optkit.core.errors import UserError

EXPORTS = (
    "onnxruntime", "openvino", "inductor", "torch", "huggingface", "compressed-tensors", "gguf", "gguf-q8_0"
)  # fmt: skip


@click.command(context_settings=options.ANYWHERE)
@click.argument("variant", type=click.Path(path_type=Path))
@options.overrides
@click.option("--engine", required=True, type=click.Choice(EXPORTS), help="What the files are for.")
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write.")
@click.option("--repository", type=click.Choice(("ovms", "triton")), help="Write a model repository of this server.")
@click.option("--max-batch", type=click.IntRange(1), metavar="N", help="Of a repository: requests in a batch.")
@click.option("--max-wait", metavar="TIME", help="Of a repository: how long a request waits for others, such as 5ms.")
@click.option("--instances", type=click.IntRange(1), metavar="N", help="Of a repository: copies of it. Default: 1.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of a repository: of each copy.")
@click.option("--test-files", is_flag=True, help="Also write the test examples, so that infer.py gives the accuracy.")
@options.trust
@click.option("--force", is_flag=True, help="Write into a DIR that holds something else.")
@options.quiet
@options.debug
def export(
    variant: Path,
    arguments: tuple[str, ...],
    engine: str,
    to: Path,
    repository: str | None,
    max_batch: int | None,
    max_wait: str | None,
    instances: int | None,
    threads: int | None,
    test_files: bool,
    trust: tuple[str, ...],
    force: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Write a VARIANT as files that run without optkit.

    \b
    VARIANT is a folder such as RUN/variants/3-quantize. Of a RUN folder
    the last variant of the recipe's chain is taken.
    DIR gets the engine's file, preprocess.json, infer.py and a model
    card. It must be new or empty, or an earlier export of the same.

    \b
    onnxruntime   an ONNX file; infer.py needs no torch
    openvino      OpenVINO's files; infer.py needs no torch
    inductor      a package of torch.export, compiled when it is loaded
    torch         a package of torch.export
    huggingface   a folder for from_pretrained

    \b
    Of language models also, for vLLM and llama.cpp:
    compressed-tensors   as huggingface, with int8 or int4 weights
    gguf, gguf-q8_0      one file, in float or in int8

    \b
    --repository writes DIR for a server instead, with its own config:
      ovms     OpenVINO Model Server; --engine openvino
      triton   Triton Inference Server; --engine openvino or onnxruntime
    Batches, waits and threads are those that optkit cost chose
    (RUN/cost.json), unless options say otherwise; copies are one.

    \b
    ARGUMENTS are overrides of the run's recipe, such as task.path=DIR
    where its data have moved. log=json prints messages as JSON lines.
    """
    _, overrides = options.begin_messages(arguments, debug, quiet)
    chosen = {"max_batch": max_batch, "instances": instances, "threads": threads}
    if repository is not None:
        _repository(variant, overrides, engine, to, repository, chosen, max_wait, test_files, trust, force)
        return
    if given := [key for key, value in {**chosen, "max_wait": max_wait}.items() if value is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError("is only for --repository", key=option, fix="add --repository ovms or triton")
    from optkit.deploy import export as export_variant

    done = export_variant(
        variant, to, engine=engine, overrides=overrides, trust=trust, test_files=test_files, force=force
    )
    click.echo(done.summary())


def _repository(
    variant: Path,
    overrides: list[str],
    engine: str,
    to: Path,
    server: str,
    chosen: dict[str, int | None],
    max_wait: str | None,
    test_files: bool,
    trust: tuple[str, ...],
    force: bool,
) -> None:
    """Writes a model repository, with the numbers of ``cost.json`` where no option gives others."""
    from optkit.costs.units import SECONDS, quantity
    from optkit.deploy.repository import export_repository
    from optkit.serving.plan import plan_beside

    if test_files:
        raise UserError("a repository holds no test files", key="--test-files", fix="leave it out")
    found = plan_beside(variant, engine, overrides)
    numbers: dict[str, float] = {}
    if found is not None:
        numbers = {"max_batch": found.max_batch, "max_wait_ms": found.max_wait_ms, "threads": found.threads}
    numbers |= {key: value for key, value in chosen.items() if value is not None}
    if max_wait is not None:
        numbers["max_wait_ms"] = 1e3 * quantity(max_wait, SECONDS, "max-wait")
    done = export_repository(
        variant,
        to,
        server=server,
        engine=engine,
        overrides=overrides,
        trust=trust,
        force=force,
        **numbers,  # type: ignore[arg-type]
    )
    click.echo(f"repository: {done.folder}\nfiles: {', '.join(done.files)}")
