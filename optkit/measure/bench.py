"""Measures one variant: quality, requests timed beside the baseline, memory, and static figures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from optkit.core.artifact import Artifact
from optkit.core.engine import Engine, Session
from optkit.core.generation import Generator
from optkit.core.records import Measurement
from optkit.core.setting import Setting
from optkit.core.structure import tensors
from optkit.core.task import HasPrompts, Task
from optkit.core.turns import heavy_work
from optkit.measure.agreement import measure_agreement
from optkit.measure.cases import Case, Timing, cases_of
from optkit.measure.config import Measure
from optkit.measure.energy import energy_counters, measure_energy
from optkit.measure.latency import measure_latency
from optkit.measure.memory import measure_memory
from optkit.measure.quality import measure_quality
from optkit.measure.static import measure_macs, measure_static
from optkit.measure.token_counts import measure_tokens, weight_bytes
from optkit.measure.tokenization import measure_tokenization
from optkit.measure.traffic import measure_traffic

log = logging.getLogger(__name__)
NO_CACHE = "its session keeps no cache: it makes forward passes only"


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
        same_engine: whether a variant is timed beside the baseline on its own engines, too, and not on the reference
            alone. The baseline is then compiled for each of them.
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
        same_engine: bool = True,
    ):
        self.same_engine = same_engine
        self.cases = cases_of(task, config)
        self.engines, self.config, self.reference = engines, config, reference
        self.reference_name = reference_name(engines, reference)
        self.threads, self.trusted, self.seed = threads, trusted, seed
        self.largest = max((t for case in self.cases for t in case.timings), key=lambda t: t.setting)
        self._baseline: dict[tuple[str, str], Session] = {}
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
        found = [*measure_static(artifact, module), *self._counts(module), *self._of_tokenization()]
        # what qualities are compared with, too, is the baseline on the reference
        asked = {self.reference_name: self.reference} | self.engines if is_baseline else self.engines
        running = {n: e for n, e in asked.items() if e.unsupported(artifact.variant.traits) is None}
        for case in (case.within(settings) for case in self.cases):
            if not case.timings:
                continue
            say(f"measuring{_words(case.conditions)} on {', '.join(running)}")
            with heavy_work():
                sessions = {
                    name: self._baseline_session(baseline, name, case)
                    if is_baseline
                    else engine.compile(module, artifact.variant, case.example)
                    for name, engine in running.items()
                }
            found += self._quality(sessions, case)
            found += self._agreement(sessions, baseline, is_baseline, case)
            for timing in case.timings:
                timed = timing.of(sessions)
                if timing.workload.generates and timed:
                    say(f"timing at {timing.setting} on {', '.join(timed)}")
                found += self._requests(timed, module, case, timing)
                found += self._latency(timed, baseline, is_baseline, case, timing)
            if self.config.memory and self.largest in case.timings:
                found += self._memory(sessions, case)
        # compiled code holds the weights: what this variant compiled goes with it
        gc.collect()
        return found

    def _counts(self, module: nn.Module) -> list[Measurement]:
        """MACs and modelled traffic: of an example, or of a token."""
        if (prompt := self._prompt) is not None:
            lengths = {t.setting.sequence_length: None for t in self.cases[0].timings}
            return measure_tokens(module, prompt, [n for n in lengths if n is not None])
        tasks = {str(case.task.conditions()): case.task for case in self.cases}.values()
        found = [measure_macs(module, t.example(2), t.conditions()) for t in tasks]
        return found + [m for t in tasks for m in measure_traffic(module, t.example(2), t.conditions())]

    @property
    def _prompt(self) -> Tensor | None:
        """A few tokens of a model that generates."""
        case = self.cases[0]
        return case.example[0] if isinstance(case.task, HasPrompts) else None

    def _conditions(self, engine: str, setting: Mapping[str, Any]) -> dict[str, Any]:
        marked = {"reference": True} if engine == self.reference_name else {}
        return {"engine": engine, "threads": self.threads, **setting, **marked}

    def _of_tokenization(self) -> list[Measurement]:
        """It is a matter of the task: measured once, and in every record."""
        if self._tokenization is None:
            sizes = [(case.task, t.batch_size) for case in self.cases for t in case.timings]
            self._tokenization = [m for task, size in sizes for m in measure_tokenization(task, size, self.threads)]
        return self._tokenization

    def _baseline_session(self, baseline: Artifact, engine: str, case: Case) -> Session:
        key = (engine, str(case.conditions))
        if key not in self._baseline:
            chosen = self.engines.get(engine, self.reference)
            module: nn.Module = baseline.module(self.trusted)
            with heavy_work():
                self._baseline[key] = chosen.compile(module, baseline.variant, case.example)
        return self._baseline[key]

    def _quality(self, sessions: dict[str, Session], case: Case) -> list[Measurement]:
        found = []
        for name, session in sessions.items():
            conditions = self._conditions(name, case.conditions)
            facts = session.facts()
            found += measure_quality(session, case.task, self.config.split, case.judged_by, conditions)
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
            found.append(Measurement("compile", facts["compile_s"], unit="s", conditions=conditions))
            if self._prompt is not None and not isinstance(session, Generator):
                found.append(Measurement("generation", None, conditions=conditions | {"reason": NO_CACHE}))
        return found

    def _agreement(
        self, sessions: dict[str, Session], baseline: Artifact, is_baseline: bool, case: Case
    ) -> list[Measurement]:
        """Of language models with the baseline on the reference, which does not agree with itself."""
        if self._prompt is None or self.config.agreement_blocks is None:
            return []
        compared = {n: s for n, s in sessions.items() if not (is_baseline and n == self.reference_name)}
        return measure_agreement(
            compared,
            lambda: self._baseline_session(baseline, self.reference_name, case),
            case.task,
            self.config.split,
            self.config.agreement_blocks,
            {name: self._conditions(name, case.conditions) for name in compared},
        )

    def _requests(
        self, sessions: dict[str, Session], module: nn.Module, case: Case, timing: Timing
    ) -> list[Measurement]:
        """What a request moves, holds and uses."""
        found = []
        inputs = timing.workload.inputs(case.task, timing.batch_size)
        for name, session in sessions.items():
            conditions = self._conditions(name, timing.setting.conditions)
            request = timing.workload.request(session, inputs)
            answer = request.call()
            moved = {"bytes_in": sum(map(_bytes, inputs)), "bytes_out": sum(map(_bytes, tensors(answer)))}
            found += [Measurement(what, size, unit="B", conditions=conditions) for what, size in moved.items()]
            if isinstance(session, Generator):
                held, read = weight_bytes(module, session.facts().get("precision", "fp32"))
                found += [
                    Measurement("weights", held / 1e6, "MB", conditions=conditions | {"read_mb": read / 1e6}),
                    Measurement("cache", session.cache_bytes / 1e6, "MB", conditions=conditions),
                ]
            found.append(measure_energy(request, conditions, self.counters))
        return found

    def _latency(
        self, sessions: dict[str, Session], baseline: Artifact, is_baseline: bool, case: Case, timing: Timing
    ) -> list[Measurement]:
        """One interleaved series for each session, and for the baseline eager and on the same engines."""
        if not sessions:
            return []
        timed: dict[tuple[str, str], Session] = {("variant", name): s for name, s in sessions.items()}
        own = sessions if self.same_engine and not is_baseline else {}
        compared = [self.reference_name, *own]
        for name in compared:
            if not (is_baseline and name in sessions):
                timed[("baseline", name)] = self._baseline_session(baseline, name, case)
        keys = {f"{of}/{name}": (of, name) for of, name in timed}
        by_key = {label: timed[key] for label, key in keys.items()}
        beside = "variant" if is_baseline else "baseline"
        pairs = [
            (f"variant/{name}", f"{beside}/{base}")
            for name in sessions
            for base in dict.fromkeys((self.reference_name, *([name] if self.same_engine else [])))
        ]
        conditions = {
            label: self._conditions(name, timing.setting.conditions) | {"of": of} for label, (of, name) in keys.items()
        }
        wanted = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        inputs = timing.workload.inputs(case.task, timing.batch_size)
        timed_together = measure_latency(by_key, inputs, self.config, self.seed, wanted, conditions, timing.workload)
        return [*timed_together.values()]

    def _memory(self, sessions: dict[str, Session], case: Case) -> list[Measurement]:
        """Two side by side: memory is not disturbed by a neighbour, and load times say that there was one."""
        inputs = self.largest.workload.inputs(case.task, self.largest.batch_size)
        beside = {"processes": min(len(sessions), 2)}
        where = replace(self.largest.setting, workload=None).conditions | beside

        def one(name: str) -> list[Measurement]:
            return measure_memory(sessions[name], inputs, self.threads, self.trusted, self._conditions(name, where))

        with heavy_work(), ThreadPoolExecutor(max_workers=beside["processes"]) as pool:
            return [m for found in pool.map(one, sessions) for m in found]


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


def _words(conditions: Mapping[str, int]) -> str:
    """A batch size and a length, behind "measuring"; nothing for sessions that serve all."""
    if not conditions:
        return ""
    length = f", {conditions['sequence_length']} tokens" if "sequence_length" in conditions else ""
    return f" at batch size {conditions['batch_size']}{length}"
