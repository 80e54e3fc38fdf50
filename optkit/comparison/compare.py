"""`compare`: models on engines, timed in the same rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optkit.comparison.candidates import (
    Candidate,
    Engines,
    batch_size_of,
    candidates,
    example_of,
    find_engines,
    find_reference,
)
from optkit.comparison.quality import Evaluate, are_answers, check_same_length, judged, scores_of
from optkit.comparison.requests import Part, Requests, forward_passes, prompts
from optkit.comparison.result import Comparison, Row
from optkit.core.caveat import is_disturbed, timing_caveat
from optkit.core.checks import check_count
from optkit.core.engine import Engine, Session
from optkit.core.errors import StageError, UserError
from optkit.core.records import REFERENCE, Measurement
from optkit.core.statistics import Estimate, ratio_of_medians
from optkit.core.threads import use_threads
from optkit.measure.config import Measure
from optkit.measure.latency import measure_latency

log = logging.getLogger(__name__)
TIMING = ("rounds", "stopped", "tries", "other_load", "other_load_peak")


def compare(
    models: Mapping[str, Any],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    engines: Engines = (REFERENCE,),
    evaluate: Evaluate | None = None,
    reference: str | None = None,
    threads: int | None = None,
    seconds: float = 5.0,
    batch_sizes: Sequence[int] | None = None,
    prompt_lengths: Sequence[int] | None = None,
    seed: int = 0,
) -> Comparison:
    """Times models on engines in the same rounds, and says how much faster each is and how its quality changes.

    This is the measuring of a run: every session takes its turn in every round, so a drift of the machine affects all
    of them. Ratios are taken within rounds. A timing beside other work is repeated once, then marked, and left out of
    the verdict. Other processes of optkit on this host do not time meanwhile.

    Args:
        models: by name: modules in eval mode, what `quantize_static`, `prune_structured` and the like return, sessions,
            or folders of variants. A session runs on its own engine only.
        inputs: an example of what a model takes: a tensor, or a tuple of tensors, on the CPU.
        engines: names or engines to run each model on. A mapping gives engines names of its own.
        evaluate: ``evaluate(session)`` gives a number, or one score for each example, always of the same examples. Then
            differences are paired, and have intervals. It is called for every session, so at every batch size.
        reference: the name of the model that the others are compared with, by default the first. Its first engine is
            the one that ``speedup`` refers to.
        threads: None takes torch's number.
        seconds: of timing for each batch size, shared by all sessions; less where all ratios are precise sooner.
        batch_sizes: the example is repeated or cut along its first dimension; each size is compiled, evaluated and
            timed on its own. None takes the example as it is.
        prompt_lengths: of models that generate, in tokens. Instead of a forward pass, reading a prompt (``prefill``)
            and each further token behind it (``decode``) are timed, at each length and batch size. The example is
            token numbers ``(N, T)``, repeated or cut to each length.
        seed: of the order in which sessions take their turns.

    Returns:
        The table. A model that an engine cannot run is in it with the reason.

    Raises:
        UserError: an argument that is wrong, found before any work; an ``evaluate`` that raises or gives something
            else; a reference that runs on none of the engines.
    """
    example = example_of(inputs)
    sizes = [batch_size_of(example)] if batch_sizes is None else _listed(batch_sizes, "batch_sizes")
    lengths = None if prompt_lengths is None else _listed(prompt_lengths, "prompt_lengths")
    config = Measure(batch_sizes=sizes, seconds=seconds, prompt_lengths=lengths)
    if evaluate is not None and not callable(evaluate):
        raise UserError(f"{evaluate!r} is no function", key="evaluate", value=evaluate, fix="it takes a session")
    if threads is not None:
        check_count("threads", threads)
    threads = torch.get_num_threads() if threads is None else threads
    chosen = find_engines(engines)
    found = candidates(models)
    against = find_reference(found, reference)
    _check_runs_somewhere(against, chosen)
    if lengths is None:
        parts = forward_passes(example, config.batch_sizes, as_it_is=batch_sizes is None)
    else:
        parts = prompts(found, example, config)
    with use_threads(threads):
        for model in found:
            model.check_takes(parts[0].example)
        timed = [_Sessions(found, chosen, against, part, threads) for part in parts]
        rows = [row for sessions in timed for row in sessions.rows(evaluate, config, seed)]
    return Comparison(rows, against.name, percent=evaluate is not None and all(one.answers for one in timed))


def _listed(numbers: Any, key: str) -> list[int]:
    if isinstance(numbers, int):
        raise UserError(f"{numbers} is no list", key=key, value=numbers, fix=f"[{numbers}]")
    return list(numbers)


def _check_runs_somewhere(reference: Candidate, engines: Mapping[str, Engine]) -> None:
    reasons = [reference.unsupported(engine) for engine in reference.engines(engines).values()]
    if None not in reasons:
        message = f"the reference '{reference.name}' runs on none of the engines: {reasons[0]}"
        raise UserError(message, key="reference", value=reference.name, fix="name another, or add an engine")


class _Sessions:
    """The sessions of one part of a comparison. A place is a model on an engine, named ``MODEL on ENGINE``."""

    def __init__(
        self,
        models: Sequence[Candidate],
        engines: Mapping[str, Engine],
        reference: Candidate,
        part: Part,
        threads: int,
    ):
        pairs = [(model, name, engine) for model in models for name, engine in model.engines(engines).items()]
        self.places = {f"{model.name} on {name}": (model, name, engine) for model, name, engine in pairs}
        self.reference, self.part, self.threads = reference, part, threads
        self.answers = False

    def rows(self, evaluate: Evaluate | None, config: Measure, seed: int) -> list[Row]:
        """A row for each kind of request and each place."""
        sessions, reasons = self._compiled()
        references = {
            name: p for p, (model, name, _) in self.places.items() if model is self.reference and p in sessions
        }
        if not references:
            reason = next(reasons[p] for p, (model, *_) in self.places.items() if model is self.reference)
            message = f"the reference '{self.reference.name}' runs on none of the engines: {reason}"
            raise UserError(message, key="reference", value=self.reference.name)
        first = next(iter(references.values()))
        beside = {place: references.get(self.places[place][1]) for place in sessions}
        quality = {} if evaluate is None else self._quality(sessions, evaluate, first)
        pairs = [(p, other) for p in sessions for other in dict.fromkeys((first, beside[p])) if other not in (None, p)]
        rows = []
        for requests in self.part.requests:
            timed = self._timed(sessions, requests, config, seed, pairs)
            for place, (model, name, _) in self.places.items():
                row: Row = {"model": model.name, "engine": name, **requests.here, "threads": self.threads}
                row |= {"reference": place == first, "not_run": reasons.get(place)}
                if place in sessions:
                    row |= _timing(timed[place], timed[first], timed.get(beside[place] or ""))
                    row |= requests.per_second(row["latency_p50_ms"])
                    row |= quality.get(place, {}) | _facts(sessions[place])
                rows.append(row)
        return rows

    def _timed(
        self,
        sessions: Mapping[str, Session],
        requests: Requests,
        config: Measure,
        seed: int,
        pairs: Sequence[tuple[str, str]],
    ) -> dict[str, Measurement]:
        here = {p: requests.here | {"threads": self.threads, "engine": self.places[p][1]} for p in sessions}
        return measure_latency(sessions, requests.inputs, config, seed, pairs, here, requests.workload)

    def _compiled(self) -> tuple[dict[str, Session], dict[str, str]]:
        """The sessions by place, and why there is none at others."""
        sessions, reasons = {}, {}
        for place, (model, _, engine) in self.places.items():
            if reason := model.unsupported(engine):
                reasons[place] = reason
                continue
            log.info("compiling %s for %s", place, " and ".join(str(list(x.shape)) for x in self.part.example))
            try:
                sessions[place] = model.compile(engine, self.part.example)
            except StageError as error:
                reasons[place] = str(error)
                log.warning("%s does not run: %s", place, error)
        return sessions, reasons

    def _quality(self, sessions: Mapping[str, Session], evaluate: Evaluate, first: str) -> dict[str, dict[str, Any]]:
        scores = {first: scores_of(evaluate, sessions[first], first)}
        for place in (p for p in sessions if p != first):
            scores[place] = scores_of(evaluate, sessions[place], place)
            check_same_length(scores[place], scores[first], place, first)
        self.answers = are_answers(scores)
        return judged(scores, first)


def _timing(own: Measurement, first: Measurement, beside: Measurement | None) -> Row:
    """The columns of time: against the reference, and against the reference on the same engine."""
    speedup, same = _speedup(first, own), None if beside is None else _speedup(beside, own)
    return {
        "latency_p50_ms": own.value,
        "latency_p50_ms_ci": own.ci,
        "speedup": speedup.value,
        "speedup_ci": speedup.ci,
        "speedup_same_engine": None if same is None else same.value,
        "speedup_same_engine_ci": None if same is None else same.ci,
        "disturbed": is_disturbed([own]),
        "caveat": timing_caveat([own, first], [own.ci, speedup.ci]),
    } | {name: own.conditions[name] for name in TIMING}


def _speedup(reference: Measurement, own: Measurement) -> Estimate:
    if own is reference:
        return Estimate(1.0, 1.0, 1.0)
    return ratio_of_medians(*(np.asarray(x.raw, dtype=np.float64) for x in (reference, own)))


def _facts(session: Session) -> Row:
    facts = session.facts()
    return {name: facts.get(name) for name in ("precision", "int8_share", "compile_s")}
