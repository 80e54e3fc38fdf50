"""`launch`: a recipe composed as ``hydra.main`` does it, and its job done: once, or for each job of a sweep."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from optkit.core.errors import OptkitError, UserError
from optkit.core.instantiate import TARGET
from optkit.core.logs import Messages
from optkit.core.processes import one_process_only
from optkit.launch.errors import composition_errors
from optkit.launch.in_turn import in_turn
from optkit.launch.loading import BundledConfig, layers_start_over, register_engines
from optkit.launch.sweeps import Origin, Swept, raise_failures, swept
from optkit.recipe.compose import find_recipe
from optkit.sweep.work import work_on

FLAGS_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
}  # fmt: skip
INFO_VALUES = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
NO_FILES = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
Job = Callable[[DictConfig], Path | None]


def launch(
    recipe: str,
    arguments: Sequence[str],
    job: Callable[[DictConfig], Any],
    messages: Messages | None = None,
    *,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
    redefine: bool = False,
    dry_run: bool = False,
) -> int:
    """Composes a recipe as ``hydra.main`` does, all of Hydra's flags included, and runs the job for each composition.

    A multirun is a sweep: `optkit.sweep` says what its folder holds. Its finished jobs are not run again.

    Args:
        recipe: a file or a bundled name.
        arguments: overrides and Hydra flags.
        job: called with the composed config; gives the folder of its run, if there is one. An `OptkitError` it raises
            is this run's failure, and in a sweep the others go on.
        messages: how the terminal shows messages; a launcher that works in other processes needs it there.
        command: the arguments of ``optkit`` that make the same sweep again.
        options: those of them that decide what a job does, besides its recipe.
        redefine: whether a sweep may have another definition than before; all of its jobs are gone through again.
        dry_run: whether the jobs of a sweep are done here, one after the other, and nothing is kept of the sweep.

    Returns:
        The exit code: 0.

    Raises:
        OptkitError: a mistake before any work, or the first failure.
    """
    if any(a in ("-m", "--multirun") for a in arguments):
        one_process_only("a sweep")
    path = find_recipe(recipe)
    if any(argument.startswith("--experimental-rerun") for argument in arguments):
        fix = "run the recipe.yaml of the run folder"
        raise UserError("would run what is in a pickle", key="--experimental-rerun", fix=fix)
    _check_run_dir(path, arguments)
    Plugins.instance().register(BundledConfig)
    register_engines()
    failures: list[OptkitError] = []
    sweep = Swept()

    def guarded(cfg: DictConfig) -> None:
        now = HydraConfig.get()
        if sweep.folder is not None:
            here = "BasicLauncher" in str(now.launcher.get(TARGET))
            number = sweep.number_of(list(now.overrides.task))
            if messages is not None and not here:
                replace(messages, of=f"[{number}] ").begin()
            work_on(sweep.folder, number, lambda: job(cfg))
            return
        try:
            if cfg.get("sweep") and now.mode == RunMode.RUN:
                raise UserError("one run is no sweep", key="sweep", value=cfg.sweep, fix="add -m, or leave it out")
            job(cfg)
        except OptkitError as error:  # Hydra would hide it
            failures.append(error)

    origin = Origin(str(path), list(command), list(options), _says_sweep_dir(arguments), redefine)
    launching = in_turn() if dry_run else swept(sweep, origin)
    with _arguments(arguments), composition_errors(path), layers_start_over(), launching:
        hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.stem)(guarded)()
    if failures:
        raise failures[0]
    raise_failures(sweep)
    return 0


def _says_sweep_dir(arguments: Sequence[str]) -> bool:
    return any(re.match(r"[+]*hydra\.sweep\.dir=", argument) for argument in arguments)


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra's command line for the time of the block, with its own output files switched off."""
    own = [a for a in NO_FILES if not any(g.startswith(a.partition("=")[0]) for g in arguments)]
    overrides, flags = _parted(arguments)
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["optkit run", *overrides, *own, *flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags with their values: Hydra's parser takes overrides in one piece only."""
    overrides: list[str] = []
    flags: list[str] = []
    previous = ""
    for argument in arguments:
        is_value = previous in FLAGS_WITH_VALUE or (previous in ("--info", "-i") and argument in INFO_VALUES)
        (flags if is_value or argument.startswith("-") else overrides).append(argument)
        previous = argument
    return overrides, flags


def _check_run_dir(path: Path, arguments: Sequence[str]) -> None:
    """Refuses a folder for Hydra's own files: optkit keeps none, and names its run folders itself."""
    try:
        of_file = OmegaConf.select(OmegaConf.load(path), "hydra.run") is not None
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        of_file = False  # composing it says what is wrong
    given = [a for a in arguments if re.match(r"[+~]*hydra\.run\b", a)]
    if given or of_file:
        fix = "out=DIR puts run folders into DIR, named by what they hold; hydra.sweep.dir=DIR is that of a sweep"
        raise UserError("optkit does not run in a folder of Hydra's", key="hydra.run.dir", fix=fix)
