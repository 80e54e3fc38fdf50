"""The fold: a chain of stages over a model, every variant measured and recorded, from the start or where it stopped."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from optkit.core.allocator import keep_freed_memory
from optkit.core.artifact import FILES, WEIGHTS, Artifact
from optkit.core.cache import new_file, write_text
from optkit.core.checksums import ENTRY
from optkit.core.engine import packages_of
from optkit.core.environment import environment
from optkit.core.errors import (
    DeadEndError,
    OptkitError,
    StageError,
    UserError,
    cannot_write,
    is_disk_full,
    raise_if_full,
)
from optkit.core.ledger import LEDGER_NAME, UNMEASURED_NAME, Ledger, forget_measured, unmeasured
from optkit.core.locks import exclusive
from optkit.core.logs import RUN_LOG, log_file
from optkit.core.processes import current, is_lost, one_process_only
from optkit.core.records import Cost, Record
from optkit.core.stage import Context, Outcome
from optkit.core.store import StageStore, open_store
from optkit.core.surgeries import surgery_name
from optkit.core.task import SealedTask
from optkit.core.threads import use_threads
from optkit.core.variant import Step, Variant
from optkit.measure import Bench
from optkit.measure.config import LATER
from optkit.measure.peaks import peaks
from optkit.models import ModelSpec
from optkit.recipe.chain import START
from optkit.recipe.keys import params_of, parts, target_of
from optkit.recipe.manifest import beginning, recorded
from optkit.recipe.plan import OWN, Plan, PlannedStep, build_other, not_run_on, work_device
from optkit.recipe.recipe import MODEL, Recipe
from optkit.training import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: of the run.
        worked: whether anything was left to do.
        made: how many stages were applied.
        reused: how many variants were there already.
        failed: why a chain besides the recipe's own ended early, by its stages after the baseline; before those of a
            control stands its name.
    """

    folder: Path
    worked: bool
    made: int = 0
    reused: int = 0
    failed: dict[tuple[str, ...], str] = field(default_factory=dict)


def run(plan: Plan) -> Run:
    """Runs what `optkit.recipe.plan.make_plan` planned, or what is left of it.

    The same recipe finds the same run folder: what its ledger and the store hold is not done again.

    In several processes (`optkit.core.processes.joined`) all call it. What trains runs in all of them. The first does
    all else, and writes, while the others wait.

    Args:
        plan: of a recipe. A chain besides the recipe's own that fails ends there, and is named in the result; so is a
            control, where there are other chains.

    The process keeps freed memory from here on, which cannot be undone (`keep_freed_memory`). The number of torch's
    threads is the recipe's during the run, and afterwards what it was.

    Raises:
        UserError: a mistake found before any work; nothing is left behind.
        StageError: a stage failed; everything finished before it is kept.
    """
    keep_freed_memory()
    if plan.is_study:
        one_process_only("a study of several chains")
    with use_threads(plan.threads):
        return _Fold(plan).run()


def baseline(plan: Plan) -> tuple[Path, nn.Module]:
    """The folder of a plan's run, made if need be, and its baseline: from the store, or else the model as built."""
    recipe = plan.recipe
    folder = Path(recipe.out) / plan.run
    found = _store(recipe, folder).find(plan.baseline.id)
    if found is None and plan.baseline.number != plan.steps[0].number:
        log.warning("the baseline is not in the store yet: this is the model as built")
    _open_folder(folder, recipe)
    log.info("run folder: %s", folder)
    return folder, found.module(plan.trusted) if found else plan.spec.build(recipe.seed).eval()


class _Fold:
    """One run on its way."""

    def __init__(self, plan: Plan):
        self.plan, self.recipe, self.processes = plan, plan.recipe, current()
        self.engine_packages = packages_of([plan.recipe.reference, *plan.recipe.engines.values()])
        self.folder = Path(self.recipe.out) / plan.run
        self.sealed = SealedTask(self.recipe.task)
        self.device = work_device()
        self.later = self.recipe.measure.when == LATER
        self.made: dict[str, Artifact] = {}
        self.num_made = 0

    def run(self) -> Run:
        self._check_same_plan()
        if not self.recipe.fresh and not self._missing():
            return Run(self.folder, worked=False)
        opened = self.processes.first(lambda: str(_open_folder(self.folder, self.recipe, self.recipe.fresh)))
        self.folder = _seen_here(Path(opened))
        self.store = _store(self.recipe, self.folder)
        with ExitStack() as stack:
            if self.processes.is_first:
                stack.enter_context(exclusive(self.folder / ".lock", f"running {self.recipe.name}"))
                stack.enter_context(log_file(self.folder / RUN_LOG))
            missing = self._missing()  # another process may have finished the run meanwhile
            if not missing:
                return Run(self.folder, worked=False)
            if self.processes.is_first:
                begins = beginning(self.plan)
                stack.enter_context(recorded(self.folder, self.recipe, self.plan.threads, self.engine_packages, begins))
            return self._advance_all(missing)

    def _check_same_plan(self) -> None:
        """Raises a UserError if the processes of a run do not plan the same."""
        plans = self.processes.gather(self.plan.run)
        if others := [rank for rank, name in enumerate(plans) if name != plans[0]]:
            message = f"process 0 plans {plans[0]}, and process {others[0]} plans {plans[others[0]]}"
            fix = "they need the same data, versions and kind of machine"
            raise UserError(message, key="WORLD_SIZE", fix=fix)

    def _missing(self) -> list[PlannedStep]:
        """The steps whose record is not in the ledger; that are not made yet, where they are measured later."""
        recorded = self.processes.first(self._recorded)
        return [step for step in self.plan.measured if step.id not in recorded]

    def _recorded(self) -> list[str]:
        """The variants whose record is there, or, where they are measured later, an entry in its place."""
        waiting = unmeasured(self.folder) if self.later else []
        return [record.variant for record in [*Ledger(self.folder / LEDGER_NAME).records(), *waiting]]

    def _advance_all(self, missing: list[PlannedStep]) -> Run:
        """Makes and measures the steps in turn, as the only processes that work on this run."""
        log.info("run folder: %s", self.folder)
        if self.processes.several:
            log.info("%d processes train, and the first of them measures", self.processes.size)
        bench = Bench(
            self.recipe.task,
            self.recipe.engines,
            self.recipe.measure,
            self.recipe.reference,
            self.plan.threads,
            self.plan.trusted,
            self.recipe.seed,
        )
        failed: dict[str, str] = {}
        for step in self.plan.steps:
            if step.parent in failed:
                failed[step.id] = failed[step.parent]
                continue
            try:
                with _naming(step.name):
                    self._advance(step, step in missing, bench)
            except OptkitError as error:
                if step.of == OWN or (step.control and not self.plan.is_study) or is_disk_full(error):
                    raise
                failed[step.id] = str(error)
                log.warning("%s", error)
        self.processes.first(lambda: forget_measured(self.folder))
        return Run(
            self.folder,
            worked=True,
            made=self.num_made,
            reused=len(self.made) - self.num_made,
            failed={
                (*([step.control] if step.control else []), *step.chain): failed[step.id]
                for step in self.plan.steps
                if step.id in failed
            },
        )

    def _advance(self, step: PlannedStep, missing: bool, bench: Bench) -> None:
        """Makes a step's variant, or finds it, and measures it if its record is missing."""
        if not self._is_there(step):
            self._make_once(step)
        if step.id not in self.made and not self._find(step):
            raise StageError("its variant was taken out of the store meanwhile")
        if step.number >= 0:
            self.processes.first(lambda: self._show(step, self.made[step.id], missing, bench))

    def _show(self, step: PlannedStep, artifact: Artifact, missing: bool, bench: Bench) -> None:
        """Puts a variant into the run's folder, and measures it."""
        folder = self.folder / "variants" / step.folder
        _link(artifact.folder, folder)
        if missing:
            self._measure(step, artifact, bench, self._export(artifact, folder))

    def _make_once(self, step: PlannedStep) -> None:
        """Makes a step's variant, or waits for another run that does."""
        making = self.store.making(step.id, f"making {step.name} of {self.recipe.name}")
        with making if self.processes.is_first else nullcontext():
            if not self._is_there(step):
                self._make(step)
                self.num_made += step.stage is not None

    def _is_there(self, step: PlannedStep) -> bool:
        """Whether the first process finds a step's variant in the store."""
        return self.processes.first(lambda: self._find(step))

    def _find(self, step: PlannedStep) -> bool:
        """Takes a step's variant up if it is in the store."""
        if (artifact := self.store.find(step.id)) is not None:
            self.made[step.id] = artifact
        return artifact is not None

    def _export(self, artifact: Artifact, folder: Path) -> dict[str, Any]:
        """Puts what ``from_pretrained`` loads beside a Hugging Face model whose own config can express it; says so."""
        from optkit.models.pretrained import HUGGINGFACE, is_huggingface, save_pretrained

        if artifact.variant.model["target"] not in HUGGINGFACE:
            return {}
        module = artifact.module(self.plan.trusted)
        if "float" not in artifact.variant.traits or not is_huggingface(module):
            return {"from_pretrained": False, "from_pretrained_reason": "its weights are quantized"}
        exported, final = folder / ".huggingface", folder / "huggingface"
        shutil.rmtree(exported, ignore_errors=True)  # of a killed run
        reason = save_pretrained(module, self.recipe.task.example(2), exported)
        shutil.rmtree(final, ignore_errors=True)
        if reason is None:
            exported.rename(final)
        return {"from_pretrained": reason is None} | ({"from_pretrained_reason": reason} if reason else {})

    def _make(self, step: PlannedStep) -> None:
        """Puts a step's variant into the store. All processes train and share out data; the first does all else."""
        trains = step.stage is not None and any(isinstance(part, Trainer) for part in parts(step.stage))
        if not trains and not getattr(step.stage, "in_all_processes", False):
            self.processes.first(lambda: self._put(*self._applied(step)))
            return
        share = max(1, self.plan.threads // self.processes.local_size)
        with use_threads(share):
            applied = self._applied(step)
        self.processes.first(lambda: self._put(*applied))

    def _applied(self, step: PlannedStep) -> tuple[Variant, nn.Module, Artifact | None]:
        """A step's variant, its module, and the variant it was made of."""
        if step.stage is None or step.parent is None:
            module = self.plan.spec.build(step.seed).eval()
            return _start(self.plan.spec, step.id, module), module, None
        parent = self.made[step.parent]
        log.info("stage %s: %s", step.name, target_of(step.stage))
        wall, device = time.perf_counter(), time.process_time()
        outcome = step.stage.apply(parent.module(self.plan.trusted), self._context(step, parent))
        cost = Cost(round(time.perf_counter() - wall + outcome.resumed_s, 3), round(time.process_time() - device, 3))
        log.info("stage %s: done in %.1f s", step.name, cost.wall_s)
        return _child(step, parent.variant, outcome, cost), outcome.module, parent

    def _put(self, variant: Variant, module: nn.Module, parent: Artifact | None) -> None:
        check = {} if parent is None else {"check": partial(_check_differs, parent)}
        self.store.put(variant, module, self.recipe.task.example(2), **check)

    def _context(self, step: PlannedStep, parent: Artifact) -> Context:
        return Context(
            task=self.sealed,
            variant=parent.variant,
            baseline=self._baseline_module,
            build_model=lambda node: build_other(self.recipe, node)[1],
            seed=step.seed,
            device=self.device,
            workdir=self.store.workdir(step.id),
            module_of=lambda made: self.made[made].module(self.plan.trusted),
            max_steps=self.recipe.max_steps,
        )

    def _baseline_module(self) -> nn.Module:
        baseline = self.made.get(self.plan.baseline.id)
        if baseline is None:
            raise StageError("there is no baseline yet", fix="move this stage behind the baseline, or name a teacher")
        return baseline.module(self.plan.trusted)

    def _measure(self, step: PlannedStep, artifact: Artifact, bench: Bench, facts: dict[str, Any]) -> None:
        baseline = self.made[self.plan.baseline.id]
        is_baseline = step.id == self.plan.baseline.id
        measurements, where = [], environment(self.plan.threads, self.engine_packages)
        if not self.later:

            def say(text: str) -> None:
                log.info("%s: %s", step.name, text)

            where |= {"peaks": peaks(self.plan.threads)}
            measurements = bench.measure(artifact, baseline, is_baseline, say)
        variant = artifact.variant
        skipped = not_run_on(self.recipe.engines, variant.traits)
        record = Record(
            run=self.plan.run,
            recipe=self.recipe.name,
            variant=step.id,
            parent=None if is_baseline else step.parent,
            baseline=self.plan.baseline.id,
            step=step.number,
            stage=step.name,
            technique=step.stage.technique if step.stage else MODEL,
            params=variant.steps[-1].params if step.stage else {},
            facts=variant.facts | facts | ({"not_run_on": skipped} if skipped else {}),
            measurements=measurements,
            cost=self._preparation() if is_baseline else variant.cost,
            environment=where,
            data=self.recipe.task.facts(),
            chain=list(step.chain),
            control=step.control,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        Ledger(self.folder / (UNMEASURED_NAME if self.later else LEDGER_NAME)).append(record)

    def _preparation(self) -> Cost:
        """What all the stages took that made the baseline."""
        steps = (step for step in self.plan.steps if step.number <= 0 and step.of == OWN)
        costs = [self.made[step.id].variant.cost for step in steps]
        return Cost(sum(c.wall_s for c in costs), sum(c.device_s for c in costs))


def _start(spec: ModelSpec, made: str, module: nn.Module) -> Variant:
    """The model before any stage: fresh, or as the variant that it starts from was saved."""
    if (origin := spec.start()) is None:
        return Variant(made, None, START, spec.skeleton(module))
    facts = {"variant": {"id": origin.variant.id, "weights": origin.weights_digest(), "folder": str(origin.folder)}}
    return replace(origin.variant, id=made, parent=None, facts=facts, cost=Cost(0.0, 0.0))


def _child(step: PlannedStep, parent: Variant, outcome: Outcome, cost: Cost) -> Variant:
    stage = step.stage
    assert stage is not None
    target = target_of(stage)
    surgeries = parent.surgeries
    if outcome.surgery is not None:
        surgeries = (*surgeries, {"by": surgery_name(type(stage)), "data": outcome.surgery})
    return Variant(
        id=step.id,
        parent=parent.id,
        traits=(parent.traits - stage.drops) | stage.adds,
        model=parent.model,
        surgeries=surgeries,
        steps=(*parent.steps, Step(step.name, stage.technique, target, params_of(stage))),
        facts=copy.deepcopy(outcome.facts),
        cost=cost,
    )


def _check_differs(parent: Artifact, artifact: Artifact) -> None:
    if _same(parent, artifact):
        raise DeadEndError("changed nothing: the model is the same as before it")


def _same(a: Artifact, b: Artifact) -> bool:
    """Whether two variants have the same structure and the same weights, bit by bit."""
    if a.variant.surgeries != b.variant.surgeries:
        return False
    with safe_open(a.folder / WEIGHTS, "pt") as left, safe_open(b.folder / WEIGHTS, "pt") as right:
        if set(left.keys()) != set(right.keys()):
            return False
        return all(torch.equal(left.get_tensor(name), right.get_tensor(name)) for name in left.keys())  # noqa: SIM118


def _open_folder(folder: Path, recipe: Recipe, fresh: bool = False) -> Path:
    """Makes a run's folder, with its recipe in it; see :func:`make_folder`."""
    folder = make_folder(folder, fresh)
    write_text(folder / "recipe.yaml", recipe.text)
    return folder


def make_folder(folder: Path, fresh: bool) -> Path:
    """Makes a folder of results; with `fresh` the first of it, ``-2``, ``-3``, ... that nobody has made yet."""
    name, number = folder.name, 2
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=not fresh)
            return folder
        except FileExistsError:
            folder, number = folder.with_name(f"{name}-{number}"), number + 1
        except OSError as error:
            fix = "set out=DIR to a folder you can write to"
            raise cannot_write(folder, error, key="out", fix=fix) from error


def _seen_here(folder: Path) -> Path:
    """A folder that the first process has made; raises a UserError on a machine that does not see it."""
    for _ in range(20):  # network file systems show new folders late
        if folder.is_dir():
            return folder
        time.sleep(0.5)
    where = f"process {current().rank} on {socket.gethostname()} sees no {folder}"
    raise UserError(where, key="out", fix="set out and store to folders that all machines see")


def _store(recipe: Recipe, folder: Path) -> StageStore:
    return open_store(str(folder / "store") if recipe.fresh else recipe.store or f"{recipe.out}/store", recipe.name)


def _link(source: Path, folder: Path) -> None:
    """A variant of the store in the run's folder: hard links, so it takes no room and outlives the store."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, ENTRY):
        if not (source / name).is_file():
            continue
        with new_file(folder / name, key="out") as temporary:
            try:
                os.link(source / name, temporary)
            except OSError:
                shutil.copyfile(source / name, temporary)


class _Noting:
    """Adds to an error that optkit did not raise in which stage it happened; a full disk becomes optkit's own error."""

    def __init__(self, note: str):
        self.note = note

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise_if_full(error, getattr(error, "filename", None) or "the disk")
        if error is not None:
            error.add_note(self.note)


@contextmanager
def _naming(stage: str) -> Iterator[None]:
    """Says in which stage of the chain something failed."""
    try:
        with _Noting(f"in stage '{stage}'; the same command continues from here"):
            yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        message = f"stage '{stage}': another process of the run ended without a word"
        raise StageError(message, fix="see its machine's log; the same command continues from here") from error
    except UserError as error:
        key = f"stages.{stage}.{error.key}" if error.key else f"stages.{stage}"
        if str(error.key).startswith("task."):  # not the stage's, but the recipe's
            key = str(error.key)
        raise type(error)(error.message, key=key, value=error.value, fix=error.fix) from error
    except StageError as error:
        fix = f"{error.fix}; the same command continues" if error.fix else "the same command continues from here"
        raise type(error)(f"stage '{stage}': {error.message}", key=error.key, value=error.value, fix=fix) from error
