"""Agreement of language models with the baseline: the same most likely token, and the divergence of predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.engine import Session
from optkit.core.metric import ERROR, Metric, MetricOfSums, stacked
from optkit.core.records import Measurement
from optkit.core.task import NO_LABEL, Batch, Task
from optkit.measure.quality import of_metric

CHUNK = 256  # tokens whose distributions over the vocabulary are held at a time


class _OfTokens(MetricOfSums):
    """A mean over the tokens of blocks, which keep the sum over theirs and their number, ``(1, 2)``."""

    def observe(self, output: tuple[Tensor, Tensor], batch: Batch) -> NDArray[np.float64]:
        """``(1, 2)``: the sum over the tokens of a block, and how many there are.

        Args:
            output: logits ``(T, V)`` of the session, and of the baseline.
            batch: the block.
        """
        chunks = zip(*(logits.split(CHUNK) for logits in output), strict=True)
        return np.array([[sum(self.of_chunk(ours, theirs) for ours, theirs in chunks), len(output[0])]])

    @abstractmethod
    def of_chunk(self, ours: Tensor, theirs: Tensor) -> float:
        """The sum over a few tokens, of logits ``(T, V)``."""

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


class TopTokenAgreement(_OfTokens):
    """The share of tokens whose most likely value is the same."""

    name = "top_token_agreement"

    def of_chunk(self, ours: Tensor, theirs: Tensor) -> float:
        return float((ours.argmax(-1) == theirs.argmax(-1)).sum())


class KLDivergence(_OfTokens):
    """The mean of KL(baseline || session), in nats."""

    name, kind, higher_is_better = "kl_divergence", ERROR, False

    def of_chunk(self, ours: Tensor, theirs: Tensor) -> float:
        p, q = theirs.float().log_softmax(-1), ours.float().log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).clamp(min=0).double().sum())


METRICS = (TopTokenAgreement(), KLDivergence())


def measure_agreement(
    sessions: Mapping[str, Session],
    baseline: Callable[[], Session],
    task: Task,
    split: str,
    blocks: int,
    conditions: Mapping[str, dict[str, Any]],
) -> list[Measurement]:
    """How far predictions of the next token are those of the baseline, on the first blocks of a split.

    ``top_token_agreement`` is the share of scored tokens whose most likely value is the same, ``kl_divergence`` the
    mean of KL(baseline || session) over them, in nats. Intervals are over blocks.

    Args:
        sessions: by name; each is compared with the baseline.
        baseline: gives the session of the baseline.
        task: of a language model.
        split: whose blocks are read.
        blocks: how many; fewer where the split has fewer.
        conditions: of each session.
    """
    tables: dict[tuple[str, Metric], list[NDArray[np.float64]]] = {(n, m): [] for n in sessions for m in METRICS}
    reference = baseline() if sessions else None
    for batch in islice(task.batches(split, 1), blocks if sessions else 0):
        scored = batch.targets[0, 1:] != NO_LABEL
        theirs = _logits(task, reference, batch)[scored]
        for name, session in sessions.items():
            ours = _logits(task, session, batch)[scored]
            for metric in METRICS:
                tables[name, metric].append(metric.observe((ours, theirs), batch))
    return [
        of_metric(metric, stacked(table), conditions[name] | {"split": split}, primary=False)
        for (name, metric), table in tables.items()
    ]


def _logits(task: Task, session: Any, batch: Batch) -> Tensor:
    """Those that predict the tokens behind the first, ``(T - 1, V)``."""
    with torch.inference_mode():
        found: Tensor = task.forward(session, batch)[0, :-1]
    return found
