"""Metrics of language models: of the log-likelihood of a text, and of choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.metric import ERROR, MetricOfSums
from optkit.core.task import NO_LABEL, Batch
from optkit.metrics.classification import Accuracy

AT_ONCE = 256  # tokens of a row whose losses are taken at once: a vocabulary's logits are large


class MetricOfText(MetricOfSums):
    """A metric of windows of a text in their order, neighbours of which are alike.

    Its pseudo-values are of 20 groups of neighbouring windows, each left out at once (Künsch, Annals of Statistics,
    1989). Those of single windows would give intervals that are far too narrow: losses of neighbouring blocks of
    WikiText-2 have a correlation of 0.6.
    """

    groups: ClassVar[int] = 20

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(groups,)``, or ``(N,)`` of fewer windows."""
        count = min(self.groups, len(table))
        of_groups = np.stack([part.sum(0) for part in np.array_split(table, count)])
        sums = table.sum(0)
        return count * self.of_sums(sums, count) - (count - 1) * self.of_sums(sums - of_groups, count - 1)


@dataclass(frozen=True)
class Perplexity(MetricOfText):
    """The exponential of the mean negative log-likelihood of a token, over all tokens that are scored.

    A block counts by its number of scored tokens.
    """

    name: ClassVar[str] = "perplexity"  # type: ignore[misc]
    kind: ClassVar[str] = ERROR
    higher_is_better: ClassVar[bool] = False  # type: ignore[misc]
    unit: str = ""

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 2)``: the summed negative log-likelihood in nats, and the number of scored tokens.

        Args:
            output: logits ``(N, T, V)``.
            batch: targets ``(N, T)`` are the tokens themselves, -1 where one is not scored.
        """
        losses = token_losses(output, batch.targets).double().sum(1)
        counts = (batch.targets[:, 1:] != NO_LABEL).sum(1)
        return np.stack([losses.cpu().numpy(), counts.cpu().numpy().astype(np.float64)], 1)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return np.exp(sums[..., 0] / np.maximum(sums[..., 1], 1))


@dataclass(frozen=True)
class BitsPerByte(MetricOfText):
    """The negative log-likelihood of a text in bits, over the bytes of UTF-8 that its scored tokens stand for.

    It compares models of different tokenizers, which perplexity does not.
    """

    name: ClassVar[str] = "bits_per_byte"  # type: ignore[misc]
    kind: ClassVar[str] = ERROR
    higher_is_better: ClassVar[bool] = False  # type: ignore[misc]
    unit: str = "bits"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 2)``: the summed negative log-likelihood in bits, and the bytes.

        Args:
            output: logits ``(N, T, V)``.
            batch: targets ``(N, T)``, and the bytes of each example.

        Raises:
            UserError: the task does not say the bytes.
        """
        if batch.text_bytes is None:
            fix = "it is a metric of optkit.tasks.Language"
            raise UserError("this task does not say how many bytes its texts have", key="task.metrics", fix=fix)
        bits = token_losses(output, batch.targets).double().sum(1) / math.log(2)
        return np.stack([bits.cpu().numpy(), batch.text_bytes.cpu().numpy().astype(np.float64)], 1)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


@dataclass(frozen=True)
class NextTokenAccuracy(MetricOfText):
    """The share of scored tokens that are the most likely one."""

    name: ClassVar[str] = "next_token_accuracy"  # type: ignore[misc]

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 2)``: how many scored tokens are the most likely one, and how many are scored.

        Args:
            output: logits ``(N, T, V)``.
            batch: targets ``(N, T)``.
        """
        wanted = batch.targets[:, 1:]
        right = (output[:, :-1].argmax(-1) == wanted).sum(1)
        counts = (wanted != NO_LABEL).sum(1)
        return np.stack([right.cpu().numpy(), counts.cpu().numpy()], 1).astype(np.float64)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


@dataclass(frozen=True)
class ChoiceAccuracy(Accuracy):
    """The share of questions whose right choice has the highest log-likelihood, as ``acc`` of EleutherAI's lm-eval.

    Attributes:
        normalized: divide by the characters of the choice first, as ``acc_norm`` does.
    """

    normalized: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return "acc_norm" if self.normalized else "acc"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1)``: 1 where the right choice is chosen.

        Args:
            output: the log-likelihood of each choice ``(N, C)``; minus infinity where a question has fewer.
            batch: targets are ``answer`` ``(N,)`` and ``characters`` ``(N, C)``.
        """
        scores = output.double()
        if self.normalized:
            scores = scores / batch.targets["characters"]
        return (scores.argmax(1) == batch.targets["answer"]).double().cpu().numpy()[:, None]


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The negative log-likelihood of each token but the first, ``(N, T - 1)`` in nats; 0 where one is not scored.

    Args:
        logits: ``(N, T, V)``; those at a token are of the next.
        tokens: ``(N, T)``, -1 where one is not scored.
    """
    import torch
    from torch.nn import functional as F

    parts = []
    for start in range(0, tokens.shape[1] - 1, AT_ONCE):
        here = slice(start, min(start + AT_ONCE, tokens.shape[1] - 1))
        # vocabulary last: along another dimension torch sums less exactly
        of_part, wanted = logits[:, here].float().flatten(0, 1), tokens[:, 1:][:, here]
        losses = F.cross_entropy(of_part, wanted.flatten(), ignore_index=NO_LABEL, reduction="none")
        parts.append(losses.view(wanted.shape))
    return torch.cat(parts, 1)
