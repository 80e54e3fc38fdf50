"""Hydra's multiruns as sweeps: whichever sweeper and launcher it uses, the sweep's folder knows the jobs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from optkit.core.errors import OptkitError, StageError, UserError, first_line
from optkit.core.flat_keys import flat
from optkit.core.instantiate import TARGET, build
from optkit.core.secrets import arguments_without_secrets, without_secrets
from optkit.recipe.compose import check_name, mapping
from optkit.sweep.opening import enter, open_sweep, same_command
from optkit.sweep.state import APART, State, Sweep, SweepFolder

log = logging.getLogger(__name__)
SWEEPS = "sweeps"  # the folder of sweeps, in that of runs
RETRIES = 1  # of a job whose process was killed, or died with another one
OPEN = (State.WAITING, State.INTERRUPTED)
DIGEST = 8  # hex digits of a sweep's definition, in its name


@dataclass
class Swept:
    """The sweep that a multirun is; none before Hydra starts its launcher, and for a single run.

    Attributes:
        folder: of the sweep.
        numbers: of the jobs that this process starts, in all batches.
    """

    folder: SweepFolder | None = None
    numbers: tuple[int, ...] = ()

    def number_of(self, overrides: Sequence[str]) -> int:
        """The number of the job with these overrides."""
        assert self.folder is not None
        job = self.folder.read().find(overrides)
        assert job is not None, overrides
        return job.number


@dataclass(frozen=True)
class Origin:
    """What starts a sweep.

    Attributes:
        recipe: the recipe's file.
        command: the arguments of ``optkit`` that make the same sweep again.
        options: those of them that decide what a job does, besides its recipe.
        has_folder: whether the user names the folder of the sweep (``hydra.sweep.dir``).
        redefine: whether the definition may be another one than before.
    """

    recipe: str
    command: list[str]
    options: list[str]
    has_folder: bool
    redefine: bool


class SweepLauncher(Launcher):
    """Enters the jobs into the sweep, and starts those that are not finished with another launcher."""

    def __init__(self, inner: Launcher, sweep: Swept):
        self.inner, self.sweep = inner, sweep

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing: the other launcher is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.sweep.folder is not None
        log.info("sweep folder: %s", self.sweep.folder.path)
        # Hydra's record holds passwords; the sweep's holds all that is needed
        (self.sweep.folder.path / "multirun.yaml").unlink(missing_ok=True)
        entered = enter(self.sweep.folder, job_overrides)
        self.sweep.numbers += tuple(job.number for job, _ in entered)
        todo = [list(o) for o, (_, starts) in zip(job_overrides, entered, strict=True) if starts]
        if done := len(entered) - len(todo):
            log.info("%d of %d jobs are finished and are not run again (--redefine does)", done, len(entered))
        returned = dict(zip(map(tuple, todo), self._launched(todo, initial_job_idx), strict=True)) if todo else {}
        nothing = [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
        return [returned.get(tuple(o), none) for o, none in zip(job_overrides, nothing, strict=True)]

    def _launched(self, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        """What the other launcher returns for the jobs. If it ends because a process died, the others go on."""
        folder = self.sweep.folder
        assert folder is not None
        returned = [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in jobs]
        todo, deaths = list(range(len(jobs))), Counter[int]()
        while True:
            try:
                for place, found in zip(todo, self.inner.launch([jobs[n] for n in todo], first), strict=True):
                    returned[place] = found
                return returned
            except (OptkitError, HydraException, OmegaConfBaseException):
                raise
            except Exception as error:
                log.debug("the launcher failed", exc_info=True)
                sweep = folder.read()
                states = {n: job.state for n in todo if (job := sweep.find(jobs[n])) is not None}
                ran = any(state != State.WAITING for state in states.values())
                deaths.update(n for n in todo if states[n] == State.INTERRUPTED)
                todo = [n for n in todo if states[n] in OPEN and deaths[n] <= RETRIES]
                if cancelled := sweep.count(State.CANCELLED):
                    message = f"{cancelled} of {len(sweep.jobs)} jobs were cancelled"
                    raise StageError(message, fix=_continued(folder)) from error
                reason = f"{type(self.inner).__name__} ended early: {type(error).__name__}: {first_line(error)}"
                if not (ran and todo):
                    raise StageError(reason, fix=_continued(folder)) from error
                log.warning("%s; %d jobs are started again", reason, len(todo))


@contextmanager
def swept(sweep: Swept, origin: Origin) -> Iterator[None]:
    """Within, each launcher of Hydra's is that of a sweep, whose folder goes into ``sweep``."""

    made: list[Path] = []

    def wrapped(config: DictConfig, make: Callable[[], Launcher], **_: Any) -> Launcher:
        sweep.folder, is_new = _open(config, origin)
        made.extend([sweep.folder.path] if is_new else [])
        return SweepLauncher(make(), sweep)

    try:
        with launchers(wrapped):
            yield
    except (UserError, HydraException, OmegaConfBaseException):
        # a mistake before any work leaves nothing behind
        if made and all(job.state == State.WAITING for job in SweepFolder(made[0]).read().jobs):
            shutil.rmtree(made[0])
            with contextlib.suppress(OSError):  # they hold something else
                made[0].parent.rmdir()
                made[0].parent.parent.rmdir()
        raise


@contextmanager
def launchers(wrapped: Callable[..., Launcher]) -> Iterator[None]:
    """Hydra starts launchers through ``wrapped``, and optkit's own ones (``_target_: optkit...``) too."""
    usual = Plugins.instantiate_launcher

    def instantiate_launcher(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Launcher:
        given: dict[str, Any] = {"hydra_context": hydra_context, "task_function": task_function}

        def make() -> Launcher:
            if not str(config.hydra.launcher.get(TARGET)).startswith("optkit."):
                return usual(self, config=config, **given)
            launcher = build(mapping(OmegaConf.to_container(config.hydra.launcher, resolve=True)), "hydra.launcher")
            launcher.setup(config=config, **given)
            return launcher

        return wrapped(config=config, make=make, **given)

    Plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign]
    try:
        yield
    finally:
        Plugins.instantiate_launcher = usual  # type: ignore[method-assign]


def _open(config: DictConfig, origin: Origin) -> tuple[SweepFolder, bool]:
    """Opens the folder of the sweep that a multirun's config defines, and tells Hydra of it; says whether it is new."""
    HydraConfig.instance().set_config(config)  # a recipe's name may refer to it
    OmegaConf.set_readonly(config.hydra, False)
    definition = _definition(config, origin)
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:DIGEST]
    given = OmegaConf.select(config, "sweep", default=None)
    check_name(given, "sweep") if given is not None else None
    name = str(given or f"{config.name}-{digest}")
    home = Path(os.path.expanduser(str(config.out))).absolute() / SWEEPS
    folder = SweepFolder(Path(config.hydra.sweep.dir).absolute() if origin.has_folder else home / name)
    command = arguments_without_secrets(origin.command)
    if given is None and not folder.file.exists() and (change := same_command(home, command, definition)):
        log.warning("this is a new sweep: %s", change)
    fail_fast = OmegaConf.select(config, "fail_fast", default=False)
    if not isinstance(fail_fast, bool):
        raise UserError(f"{fail_fast!r} is not true or false", key="fail_fast", value=fail_fast)
    launcher = str(config.hydra.launcher.get(TARGET))
    made = Sweep(name, origin.recipe, command, os.getcwd(), launcher, fail_fast, definition, folder=str(folder.path))
    is_new = open_sweep(folder, made, origin.redefine)
    put_files(config, folder.path)
    return folder, is_new


def put_files(config: DictConfig, folder: Path) -> None:
    """Hydra's own files of a multirun go into a folder, those of the configs of its jobs too."""
    with read_write(config.hydra):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(folder), "."
        config.hydra.overrides.hydra.extend([f"hydra.sweep.dir='{_escaped(folder)}'", "hydra.sweep.subdir=."])


def _escaped(folder: Path) -> str:
    return str(folder).replace("\\", "\\\\").replace("'", "\\'")


def _definition(config: DictConfig, origin: Origin) -> dict[str, Any]:
    """What the jobs of a multirun are made of, by key; JSON."""
    node = mapping(OmegaConf.to_container(config, resolve=False))
    sweeper = node.pop("hydra")["sweeper"]
    kept = {key: value for key, value in flat(node) if key.partition(".")[0] not in APART}
    typed = [str(o) for o in config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(typed)
    varied = {o.key_or_group: str(o.input_line).partition("=")[2] for o in parsed if o.is_sweep_override()}
    if alike := sorted(set(varied).intersection(APART)):
        raise UserError("the jobs of a sweep have one", key=alike[0], value=varied[alike[0]], fix="give one value")
    kept = {key: value for key, value in kept.items() if key not in varied}
    doing = " ".join([origin.command[0], *origin.options]) if origin.command else "run"
    found = {"command": doing} | {f"-m {key}": value for key, value in varied.items()} | kept
    found |= {f"hydra.sweeper.{key}": value for key, value in flat(sweeper)}
    return without_secrets(json.loads(json.dumps(found, default=str)))


def raise_failures(sweep: Swept) -> None:
    """Raises the first failure of the jobs that were started, if there is one, and says how many there are."""
    if sweep.folder is None:
        return
    found = sweep.folder.read()
    jobs = [found.jobs[number] for number in dict.fromkeys(sweep.numbers)]
    failed = [job for job in jobs if job.state == State.FAILED]
    left = [job for job in jobs if job.state not in (State.FAILED, State.FINISHED)]
    others = f"; {len(failed)} of {len(jobs)} jobs failed" if len(failed) > 1 else ""
    stopped = f"; {len(left)} did not finish" if left else ""
    fix = _continued(sweep.folder)
    if failed:
        first = failed[0]
        kind = UserError if first.exit_code == UserError.exit_code else StageError
        raise kind(f"{first.why} (job {first.number}: {found.own(first)}){others}{stopped}", fix=fix)
    if left:
        first = left[0]
        message = f"{len(left)} of {len(jobs)} jobs did not finish; job {first.number} is {first.state}: {first.why}"
        raise StageError(message, fix=fix)


def _continued(folder: SweepFolder) -> str:
    return f"optkit sweep status {folder.path} shows all; the same command goes on"
