"""Zero-shot multiple choice: the choice that a language model finds likeliest behind a context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count, check_share
from optkit.core.errors import UserError
from optkit.core.paths import FilePath
from optkit.core.task import NO_LABEL, OTHER, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.given import spread
from optkit.tasks.language.choices import SUFFIXES, Choices, read_choices
from optkit.tasks.language.continuation import scores
from optkit.tasks.language.token_task import TokenTask
from optkit.tasks.reading import in_batches, order_seed
from optkit.tasks.split_names import find_tables, log_not_read, needed_for
from optkit.tasks.tokens import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

METRICS = ("acc", "acc_norm")


def choice_scores(module: nn.Module, batch: Batch) -> Tensor:
    """The log-likelihood of each choice in nats ``(N, C)``; minus infinity where a question has fewer choices."""
    import torch

    (tokens,), wanted = batch.inputs, batch.targets["next"]
    found = []
    for choice in range(tokens.shape[1]):
        of_choice = wanted[:, choice]
        logits = module(tokens[:, choice])[: len(of_choice)]
        total, _ = scores(logits, of_choice)
        found.append(total.masked_fill((of_choice == NO_LABEL).all(1), -torch.inf))
    return torch.stack(found, 1)


@dataclass(kw_only=True)
class MultipleChoice(TokenTask):
    """Questions of JSON lines with ``context``, ``choices`` and ``answer``, the number of the right one from 0 on.

    A choice stands behind its context after a space. Its score is the log-likelihood of its tokens, as in EleutherAI's
    lm-eval. Training takes the loss of the right choice's tokens.

    Attributes:
        path: the folder of ``train.jsonl``, ``test.jsonl`` and perhaps ``validation.jsonl`` (or .json, .parquet).
        max_length: tokens of a context with a choice; longer contexts are cut on the left.
        validation_share: share of train held out where there is no validation file.
    """

    path: FilePath
    max_length: int = 1024
    validation_share: float = 0.1
    metrics: Any = METRICS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_length", self.max_length, 2)
        check_share("validation_share", self.validation_share)
        if self.tokenizer is None:
            raise UserError("missing", key="tokenizer", fix="give the model's: task.tokenizer=ID, DIR or FILE.gguf")
        if not Path(self.path).is_dir():
            raise UserError(f"no folder {self.path}", key="path", value=self.path, fix="check the path")
        self._files = find_tables(Path(self.path), SUFFIXES)
        for name in ("train", "test"):
            if name not in self._files:
                fix = needed_for(name, Path(self.path), SUFFIXES)
                raise UserError(f"{self.path} has no {name} split", key="path", value=self.path, fix=fix)

    def load(self) -> dict[str, Choices]:
        log_not_read(Path(self.path), SUFFIXES, self._files)
        found = {
            name: Choices(read_choices(files, "task.path"), self._tokenizer, self.max_length)
            for name, files in self._files.items()
        }
        if "validation" not in found:
            whole = found["train"]
            held = spread(len(whole), max(1, round(self.validation_share * len(whole))))
            rest = np.setdiff1d(np.arange(len(whole)), held)
            if not len(rest):
                raise UserError("train has one question, and validation is cut from it", key="task.path")
            found |= {"train": whole.subset(rest), "validation": whole.subset(held)}
        return found

    def stream(self) -> NDArray[np.int32]:
        pairs = (pairs[0] for pairs in self._split("train").pairs)
        return np.asarray([token for context, choice in pairs for token in context + choice], np.int32)

    @property
    def length(self) -> int:
        return self._split("test").length

    @property
    def output_kind(self) -> str:
        return OTHER

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return choice_scores(module, batch)

    def model_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The contexts with their right choices, filled up to the longest of them ``(N, T)``."""
        import torch

        (tokens,), answers = batch.inputs, batch.targets["answer"]
        rows = torch.arange(len(tokens), device=tokens.device)
        scored = batch.targets["next"][rows, answers] != NO_LABEL  # an example ends with its choice
        return (tokens[rows, answers][:, : 1 + int(scored.any(0).nonzero().max())],)

    def loss(self, output: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        import torch

        if label_smoothing:
            raise UserError("choices have no smooth labels", key="label_smoothing", value=label_smoothing, fix="use 0")
        rows, answers = torch.arange(len(output), device=output.device), batch.targets["answer"]
        tokens = (batch.targets["next"][rows, answers] != NO_LABEL).sum()
        return -output[rows, answers].sum() / tokens.clamp(min=1)


class ChoicesOnly:
    """A file of questions on which the models of another task are measured as well; it has a test split alone.

    Args:
        file: of the questions.
        tokenizer: of the model.
        max_length: as of `MultipleChoice`.
        limit: at most so many questions; None for all.

    Raises:
        UserError: the file is not as it should be.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer, max_length: int, limit: int | None):
        self.metrics = resolve_metrics(METRICS)
        self._file = file.name
        found = Choices(read_choices([file], "task.choices"), tokenizer, max_length)
        self._choices = found if limit is None else found.subset(spread(len(found), limit))
        self.fingerprint = self._choices.digest()

    def size(self, split: str) -> int:
        return len(self._choices)

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        return in_batches(self._choices, batch_size, order_seed(training, seed))

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return choice_scores(module, batch)

    def facts(self) -> dict[str, Any]:
        return {"file": self._file, "questions": len(self._choices)}
