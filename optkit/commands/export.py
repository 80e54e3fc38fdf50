"""``optkit export``: a variant as files that run without optkit."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options

EXPORTS = ("onnxruntime", "openvino", "inductor", "torch", "huggingface")


@click.command(context_settings=options.ANYWHERE)
@click.argument("variant", type=click.Path(path_type=Path))
@options.overrides
@click.option("--engine", required=True, type=click.Choice(EXPORTS), help="What the files are for.")
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write.")
@click.option("--test-files", is_flag=True, help="Also write the test examples, so that infer.py gives the accuracy.")
@click.option("--trust", multiple=True, metavar="NAME", help="Code that may be called to rebuild the model.")
@click.option("--force", is_flag=True, help="Write into a DIR that holds something else.")
@options.quiet
@options.debug
def export(
    variant: Path,
    arguments: tuple[str, ...],
    engine: str,
    to: Path,
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
    ARGUMENTS are overrides of the run's recipe, such as task.path=DIR
    where its data have moved. log=json prints messages as JSON lines.
    """
    _, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.deploy import export as export_variant

    done = export_variant(
        variant, to, engine=engine, overrides=overrides, trust=trust, test_files=test_files, force=force
    )
    click.echo(done.summary())
