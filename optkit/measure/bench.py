"""Measures one variant: quality, latency beside the baseline, memory, and static figures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from torch import Tensor, nn

from optkit.core.artifact import Artifact
from optkit.core.engine import Engine, Session
from optkit.core.records import Measurement
from optkit.core.setting import Setting
from optkit.core.structure import tensors
from optkit.core.task import HasWorkloads, Task
from optkit.core.workload import FORWARD
from optkit.measure.config import Measure, tasks_to_measure
from optkit.measure.energy import energy_counters, measure_energy
from optkit.measure.latency import measure_latency
from optkit.measure.memory import measure_memory
from optkit.measure.quality import measure_quality
from optkit.measure.static import measure_macs, measure_static
from optkit.measure.tokenization import measure_tokenization
from optkit.measure.traffic import measure_traffic

log = logging.getLogger(__name__)


class Bench:
    """Measures the variants of one run. Compiles the baseline once and keeps it, because every speedup needs it.

    Args:
        task: the task, test split included.
        engines: by name in the recipe.
        config: what to measure.
        reference: the eager engine: the baseline is measured on it and timed on it beside every variant, even where the
            recipe does not ask for it.
        threads: torch threads, already set.
        trusted: names of what may be called to rebuild a variant.
        seed: of the order in which sessions take their turns.
    """

    def __init__(
        self,
        task: Task,
        engines: dict[str, Engine],
        config: Measure,
        reference: Engine,
        threads: int,
        trusted: tuple[str, ...],
        seed: int,
    ):
        self.tasks = tasks_to_measure(task, config)
        self.engines, self.config, self.reference = engines, config, reference
        self.reference_name = reference_name(engines, reference)
        self.threads, self.trusted, self.seed = threads, trusted, seed
        self._baseline: dict[tuple[str, int, str], Session] = {}
        self._tokenization: list[Measurement] | None = None
        self.counters = energy_counters()

    def measure(
        self,
        artifact: Artifact,
        baseline: Artifact,
        is_baseline: bool,
        say: Callable[[str], None],
        settings: Collection[Setting] | None = None,
    ) -> list[Measurement]:
        """All measurements of one variant; where ``settings`` are given, in those of the configured ones only."""
        module = artifact.module(self.trusted)
        found = measure_static(artifact, module)
        found += [measure_macs(module, t.example(2), t.conditions()) for t in self.tasks]
        found += [m for t in self.tasks for m in measure_traffic(module, t.example(2), t.conditions())]
        found += self._of_tokenization()
        # what qualities are compared with, too, is the baseline on the reference
        asked = {self.reference_name: self.reference} | self.engines if is_baseline else self.engines
        running = {n: e for n, e in asked.items() if e.unsupported(artifact.variant.traits) is None}
        for task, batch_size in product(self.tasks, self.config.batch_sizes):
            if settings is not None and Setting.of({"batch_size": batch_size} | task.conditions()) not in settings:
                continue
            length = "".join(f", {n} tokens" for n in task.conditions().values())
            say(f"measuring at batch size {batch_size}{length} on {', '.join(running)}")
            sessions = {
                name: self._baseline_session(baseline, name, task, batch_size)
                if is_baseline
                else engine.compile(module, artifact.variant, task.example(batch_size))
                for name, engine in running.items()
            }
            found += self._quality(sessions, task, batch_size)
            found += self._latency(sessions, baseline, is_baseline, task, batch_size)
            if self.config.memory and task is self.tasks[-1] and batch_size == max(self.config.batch_sizes):
                found += self._memory(sessions, task, batch_size)
        # compiled code holds the weights: what this variant compiled goes with it
        gc.collect()
        return found

    def _conditions(self, engine: str, task: Task, batch_size: int) -> dict:
        marked = {"reference": True} if engine == self.reference_name else {}
        return {"engine": engine, "batch_size": batch_size, "threads": self.threads} | task.conditions() | marked

    def _of_tokenization(self) -> list[Measurement]:
        """It is a matter of the task: measured once, and in every record."""
        if self._tokenization is None:
            cases = product(self.tasks, self.config.batch_sizes)
            self._tokenization = [m for t, b in cases for m in measure_tokenization(t, b, self.threads)]
        return self._tokenization

    def _baseline_session(self, baseline: Artifact, engine: str, task: Task, batch_size: int) -> Session:
        key = (engine, batch_size, str(task.conditions()))
        if key not in self._baseline:
            chosen = self.engines.get(engine, self.reference)
            module: nn.Module = baseline.module(self.trusted)
            self._baseline[key] = chosen.compile(module, baseline.variant, task.example(batch_size))
        return self._baseline[key]

    def _quality(self, sessions: dict[str, Session], task: Task, batch_size: int) -> list[Measurement]:
        found = []
        for name, session in sessions.items():
            conditions = self._conditions(name, task, batch_size)
            facts = session.facts()
            found += measure_quality(session, task, self.config.split, batch_size, conditions)
            found.append(Measurement("int8_share", facts["int8_share"], conditions=conditions))
            found += [
                Measurement(name, facts[name], "dB", conditions=conditions)
                for name in ("engine_sqnr_db", "rounding_sqnr_db")
                if name in facts
            ]
            if "sparse_share" in facts:
                found.append(Measurement("sparse_share", facts["sparse_share"], conditions=conditions))
            runs_in = {"is": facts.get("precision", "fp32"), "device": facts.get("device", "cpu")}
            found.append(Measurement("precision", None, conditions=conditions | runs_in))
            inputs = task.example(batch_size)
            found.append(Measurement("bytes_in", sum(map(_bytes, inputs)), unit="B", conditions=conditions))
            out = sum(map(_bytes, tensors(session(*inputs))))
            found.append(Measurement("bytes_out", out, unit="B", conditions=conditions))
            found.append(measure_energy(session, inputs, conditions, self.counters))
            found.append(Measurement("compile", facts["compile_s"], unit="s", conditions=conditions))
        return found

    def _latency(
        self, sessions: dict[str, Session], baseline: Artifact, is_baseline: bool, task: Task, batch_size: int
    ) -> list[Measurement]:
        """One interleaved series for each session, and for the baseline eager and on the same engines."""
        timed: dict[tuple[str, str], Session] = {("variant", name): s for name, s in sessions.items()}
        compared = [self.reference_name] if is_baseline else [self.reference_name, *sessions]
        for name in compared:
            if not (is_baseline and name in sessions):
                timed[("baseline", name)] = self._baseline_session(baseline, name, task, batch_size)
        keys = {f"{of}/{name}": (of, name) for of, name in timed}
        by_key = {label: timed[key] for label, key in keys.items()}
        beside = "variant" if is_baseline else "baseline"
        pairs = [
            (f"variant/{name}", f"{beside}/{base}")
            for name in sessions
            for base in dict.fromkeys((self.reference_name, name))
        ]
        conditions = {
            label: self._conditions(name, task, batch_size) | {"of": of} for label, (of, name) in keys.items()
        }
        wanted = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        workloads = task.workloads if isinstance(task, HasWorkloads) else (FORWARD,)
        inputs = task.example(batch_size)
        found: list[Measurement] = []
        for workload in workloads:
            timed_together = measure_latency(by_key, inputs, self.config, self.seed, wanted, conditions, workload)
            found += timed_together.values()
        return found

    def _memory(self, sessions: dict[str, Session], task: Task, batch_size: int) -> list[Measurement]:
        """Side by side: memory, unlike time, is not disturbed by a neighbour."""
        inputs = task.example(batch_size)

        def one(name: str) -> Measurement:
            conditions = self._conditions(name, task, batch_size)
            return measure_memory(sessions[name], inputs, self.threads, self.trusted, conditions)

        with ThreadPoolExecutor(max_workers=min(len(sessions), 2)) as pool:
            return list(pool.map(one, sessions))


def reference_name(engines: Mapping[str, Engine], reference: Engine) -> str:
    """What the reference is called in records: its own name, unless the recipe gives that to another engine.

    Args:
        engines: by name in the recipe.
        reference: against which speedups are taken.
    """
    named = engines.get(reference.name, reference)
    same = type(named) is type(reference) and named == reference
    return reference.name if same else f"{reference.name} (reference)"


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
