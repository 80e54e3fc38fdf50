"""The commands. Nothing heavy is imported until a command needs it: ``optkit --help`` answers at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click

from optkit import __version__
from optkit.core.errors import OptkitError
from optkit.core.logs import RUN_LOG, TEXT, Messages, complain, log_file

EXPORTS = ("onnxruntime", "openvino", "inductor", "torch", "huggingface")
FORMATS = ("table", "md", "csv", "json", "latex", "html")
PASS_THROUGH = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["-h"]}
ANYWHERE = PASS_THROUGH | {"allow_interspersed_args": True, "help_option_names": ["-h", "--help"]}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="optkit")
def cli() -> None:
    """Prune, distill and quantize PyTorch models, and measure on your engine what each step gains and costs."""


@cli.command(context_settings=PASS_THROUGH, add_help_option=False)
@click.argument("recipe", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, recipe: str | None, arguments: tuple[str, ...]) -> None:
    """Run RECIPE (a file, or a bundled name), or continue it.

    \b
    ARGUMENTS are Hydra's: overrides such as stages.prune.amount=0.6,
    -m for a sweep, --cfg job to see the composed recipe.
    --quiet shows warnings and the result only, log=json prints
    messages as JSON lines, --debug shows tracebacks.
    """
    if recipe is None or recipe in ("-h", "--help"):
        click.echo(ctx.get_help())
        ctx.exit(0 if recipe else 2)
    flags = [a for a in arguments if a in ("--debug", "--quiet")]
    overrides = [a for a in arguments if a not in flags]
    messages, overrides = _messages(overrides, debug="--debug" in flags, quiet="--quiet" in flags)
    from optkit.recipe.compose import launch

    launch(recipe, overrides, _run_job, messages)


def _run_job(cfg: Any) -> None:
    """One composed recipe: run it, then print its table and the verdict on it."""
    from optkit.runs import run_composed

    run_composed(cfg, show=lambda done: click.echo(done, nl=False))


@cli.command(context_settings=ANYWHERE)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--rows", default="all", show_default=True, help="all, marked, or variants such as 2-recover,3-quantize.")
@click.option("--quiet", is_flag=True, help="Show warnings and the result only.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def measure(run_folder: Path, arguments: tuple[str, ...], rows: str, quiet: bool, debug: bool) -> None:
    """Evaluate and time the variants of the RUN folder again, without making them.

    \b
    --rows marked times the rows again whose timing cannot be trusted.
    ARGUMENTS are overrides of measure, engines, task and threads, such as
    measure.seconds=20 'measure.batch_sizes=[64]' +engine@engines.openvino=openvino.
    Reports show each figure as it was last measured; the ledger keeps all.
    log=json prints messages as JSON lines.
    """
    messages, overrides = _messages(arguments, debug, quiet)
    from optkit.core import ledger
    from optkit.core.errors import UserError
    from optkit.recipe.compose import launch

    if found := {"-m", "--multirun"}.intersection(overrides):
        raise UserError("optkit measure measures one run", key=found.pop(), fix="leave it out")
    folder = ledger.one_run(run_folder)
    ledger.read(folder)
    launch(str(folder / "recipe.yaml"), overrides, lambda cfg: _measure_run(cfg, folder, rows), messages)


def _measure_run(cfg: Any, folder: Path, names: str) -> None:
    """One composed recipe: measure its variants in a run's folder again, then say what the run shows now."""
    from optkit.recipe.compose import to_recipe, to_tracker
    from optkit.report import summarize, write_report
    from optkit.report.selection import SIZES, changed_keys, select

    recipe, tracker = to_recipe(cfg), to_tracker(cfg)
    changed = changed_keys(folder, recipe.text)
    from optkit.remeasure import configured, measure_again

    within = configured(recipe) if changed.intersection(SIZES) else None
    with log_file(folder / RUN_LOG):
        measure_again(folder, recipe, select(folder, names, within))
        write_report(folder)
    click.echo(summarize(folder), nl=False)
    if tracker is not None:
        from optkit.report.trackers import send

        send(folder, tracker)


@cli.command(context_settings=ANYWHERE)
@click.argument("recipe")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--orders", is_flag=True, help="Also run the other orders that the stages allow.")
@click.option("--seeds", type=int, default=1, show_default=True, help="How many times to train and measure everything.")
@click.option(
    "--engine",
    default="best",
    show_default=True,
    help="Whose figures count; best: the fastest of each variant.",
)
@click.option("--subsets", type=click.Choice(("auto", "all", "leave-one-out")), default="auto", show_default=True)
@click.option("--quiet", is_flag=True, help="Show warnings and the result only.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def ablate(
    recipe: str,
    arguments: tuple[str, ...],
    orders: bool,
    seeds: int,
    engine: str,
    subsets: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Run every subset of RECIPE's stages, and show what each technique contributes: Shapley values, interactions.

    \b
    ARGUMENTS are overrides, as for run. Stages that chains share at their
    start are made once. The same command continues an interrupted study.
    log=json prints messages as JSON lines.
    """
    messages, overrides = _messages(arguments, debug, quiet)
    from optkit.recipe.compose import launch

    command = " ".join(["optkit", *sys.argv[1:]])

    def job(cfg: Any) -> None:
        from optkit.recipe.compose import to_recipe

        built = to_recipe(cfg)
        from optkit.core.cache import write_text
        from optkit.report import read_rows, remedies
        from optkit.report.ablation import ablation_markdown
        from optkit.study.ablation import ablate as ablate_recipe

        done = ablate_recipe(built, orders=orders, seeds=seeds, engine=engine, subsets=subsets, command=command)
        text = ablation_markdown(done.result, read_rows([done.folder]))
        write_text(done.folder / "ablation.md", text)
        click.echo(text)
        click.echo(f"study folder: {done.folder}")
        for again in remedies([done.folder / run for run in done.result["runs"]]):
            click.echo(f"To time the marked rows again: {again} (then run the same ablation)")

    launch(recipe, overrides, job, messages)


@cli.command(context_settings=ANYWHERE)
@click.argument("recipe")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--metric", type=click.Choice(("loss", "metric")), default="loss", show_default=True)
@click.option("--technique", type=click.Choice(("prune", "quantize")), default="prune", show_default=True)
@click.option("--quiet", is_flag=True, help="Show warnings and the result only.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def sensitivity(recipe: str, arguments: tuple[str, ...], metric: str, technique: str, quiet: bool, debug: bool) -> None:
    """Measure for each layer of RECIPE's baseline the loss on validation against the share removed.

    \b
    With --technique quantize: the error that int8 makes in each layer, as
    the recipe's first static quantization calibrates it.

    \b
    ARGUMENTS are overrides, as for run. Channels are ranked as the
    recipe's first structured pruning ranks them, on as many examples:
    stages.prune.sensitivity_examples=5000.
    log=json prints messages as JSON lines.
    """
    messages, overrides = _messages(arguments, debug, quiet)
    from optkit.recipe.compose import launch

    launch(recipe, overrides, lambda cfg: _measure_layers(cfg, technique, metric), messages)


def _measure_layers(cfg: Any, technique: str, metric: str) -> None:
    """One composed recipe: print the table of its baseline; JSON, and a picture of cuts, go into the run folder."""
    from optkit.core.errors import UserError
    from optkit.recipe.compose import to_recipe

    if technique == "quantize" and metric != "loss":
        raise UserError("int8 is told apart by the loss alone", key="--metric", value=metric, fix="leave --metric out")
    recipe = to_recipe(cfg)
    from optkit.core.extras import missing
    from optkit.core.task import SealedTask
    from optkit.pipeline import baseline
    from optkit.prune import StructuredPruning
    from optkit.quantize import StaticQuantization
    from optkit.recipe.plan import make_plan
    from optkit.report.heatmap import save_heatmap

    folder, module = baseline(make_plan(recipe))
    task = SealedTask(recipe.task)
    kind = StructuredPruning if technique == "prune" else StaticQuantization
    stages = (recipe.stages[name] for name in recipe.chain)
    stage = next((stage for stage in stages if isinstance(stage, kind)), kind())
    if isinstance(stage, StructuredPruning):
        cuts = stage.measure_sensitivity(module, task, recipe.seed, metric)
        cuts.save(folder / "sensitivity.json")
        if reason := missing("report"):
            logging.getLogger("optkit").info("no picture: %s", reason)
        else:
            save_heatmap(cuts, folder / "sensitivity.svg")
        summary = cuts.summary()
    else:
        costs = stage.measure_layers(module, task, recipe.seed)
        costs.save(folder / "sensitivity_int8.json")
        summary = costs.summary()
    click.echo(summary)
    click.echo(f"run folder: {folder}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the report to this file.")
@click.option(
    "--p99-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Name the largest batch size within this p99 latency, instead of measure.p99_limit_ms.",
)
@click.option("--over", metavar="KEY", help="Show means over the runs that differ in this key only, such as seed.")
@click.option("--wide", is_flag=True, help="Show every column of the table, however narrow the terminal is.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def report(
    runs: tuple[str, ...],
    format_: str,
    output: Path | None,
    p99_limit: float | None,
    over: str | None,
    wide: bool,
    debug: bool,
) -> None:
    """Show the results in RUN folders: as a table, Markdown, CSV, LaTeX or JSON rows, or a page for a browser.

    \b
    A RUN may be a folder of runs, such as that of a sweep: there is a
    column for each key in which their recipes differ.

    \b
    The page (html) is one file that opens offline; without --output
    it becomes report.html in the first RUN folder.
    """
    _show_tracebacks(debug)
    folders = [Path(r) for r in runs]
    if output is None and format_ != "html":
        _print_report(folders, format_, p99_limit, wide, over)
        return
    from optkit.report import save_report

    click.echo(save_report(folders, format_, output, p99_limit, wide, over))


@cli.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def diff(first: Path, second: Path, format_: str, debug: bool) -> None:
    """Compare two RUN folders: their recipes, and each variant with the variant of the same name."""
    _show_tracebacks(debug)
    import json

    from optkit.report.diff import diff_runs, print_diff

    found = diff_runs(first, second)
    if format_ == "json":
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        print_diff(found)


def _print_report(runs: list[Path], format_: str, p99_limit: float | None, wide: bool, over: str | None) -> None:
    from optkit.report import render

    click.echo(render(runs, format_, p99_limit, wide, over), nl=False)


@cli.command(context_settings=ANYWHERE)
@click.argument("variant", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--engine", required=True, type=click.Choice(EXPORTS), help="What the files are for.")
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write.")
@click.option("--test-files", is_flag=True, help="Also write the test examples, so that infer.py gives the accuracy.")
@click.option("--trust", multiple=True, metavar="NAME", help="Code that may be called to rebuild the model.")
@click.option("--force", is_flag=True, help="Write into a DIR that holds something else.")
@click.option("--quiet", is_flag=True, help="Show warnings and the result only.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
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
    _, overrides = _messages(arguments, debug, quiet)
    from optkit.deploy import export as export_variant

    done = export_variant(
        variant, to, engine=engine, overrides=overrides, trust=trust, test_files=test_files, force=force
    )
    click.echo(done.summary())


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="REPO")
@click.option("--create", is_flag=True, help="Make the repository if there is none; only you can see it.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--force", is_flag=True, help="Replace files of REPO that differ from those in DIR.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def push(folder: Path, repo: str, create: bool, dry_run: bool, force: bool, debug: bool) -> None:
    """Send an export to the Hugging Face hub.

    \b
    DIR is a folder that optkit export wrote, and REPO a name such as
    me/my-model. Test files stay here. Log in with "hf auth login", or
    set HF_TOKEN. HF_ENDPOINT names another hub.
    """
    _show_tracebacks(debug)
    from optkit.deploy import push as push_folder

    click.echo(push_folder(folder, repo, create=create, dry_run=dry_run, force=force).summary())


@cli.command()
def recipes() -> None:
    """List the recipes that come with optkit."""
    _show_tracebacks(False)
    from optkit.recipe.compose import bundled_recipes
    from optkit.report.tables import print_pairs

    print_pairs(("recipe", "what it shows"), bundled_recipes())


@cli.command()
def stages() -> None:
    """List the stages that a chain can have, with parameters and defaults."""
    _show_tracebacks(False)
    from optkit.recipe.compose import stage_catalogue
    from optkit.report.tables import print_stages

    print_stages(stage_catalogue())


@cli.command()
@click.option("--peaks", is_flag=True, help="Also show this machine's peaks, measured once and kept.")
@click.option("--remeasure", is_flag=True, help="Measure the peaks again, and show them.")
def doctor(peaks: bool, remeasure: bool) -> None:
    """Show versions, processor and threads, and which engines work here."""
    _show_tracebacks(False)
    from optkit.report.doctor import print_doctor, print_peaks

    print_doctor()
    if peaks or remeasure:
        print_peaks(remeasure)


def _messages(arguments: Sequence[str], debug: bool, quiet: bool) -> tuple[Messages, list[str]]:
    """Begins a working command's messages as ``log=`` says; gives how they go, and the other arguments."""
    _show_tracebacks(debug)
    formats = [argument.removeprefix("log=") for argument in arguments if argument.startswith("log=")]
    messages = Messages(quiet, formats[-1] if formats else TEXT, debug)
    messages.begin()
    return messages, [argument for argument in arguments if not argument.startswith("log=")]


def _show_tracebacks(debug: bool) -> None:
    """Unexpected errors as one line, unless debugging; Python exits with 1 either way."""
    if not debug:
        sys.excepthook = _one_line


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    notes = "; ".join([*getattr(error, "__notes__", []), "--debug shows where"])
    complain(f"{kind.__name__}: {first} ({notes})")


def main() -> NoReturn:
    """The ``optkit`` command."""
    from optkit.core.interruption import Ending, Interruption

    if not sys.flags.safe_path and not {"", os.getcwd()}.intersection(sys.path):
        sys.path.insert(0, os.getcwd())  # as under python -m: recipes name code that lies here
    ending = Ending()
    try:
        code = cli(prog_name="optkit", standalone_mode=False)
    except OptkitError as error:
        if "--debug" in sys.argv:
            raise
        complain(str(error))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Interruption as error:
        sys.exit(ending.farewell(error))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
