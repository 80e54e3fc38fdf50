"""The Task protocol: what a model is for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from optkit.core.errors import SealedSplitError
from optkit.core.instantiate import named_paths

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

POOL = "pool"  # a split: train, and behind it what the task has without labels, whose targets are NO_LABEL
NO_LABEL = -1
MODEL_DEFAULTS = (
    "num_classes",
    "inputs",  # names of the model's inputs, in their order
    "in_channels",  # images
    "input_shape",
    "vocab_size",  # texts
    "pad_token_id",
    "max_length",
)


@dataclass
class Batch:
    """A batch of examples: model inputs, targets ``(N,)`` and the examples' places in their split ``(N,)``."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        return Batch(tuple(x.to(device) for x in self.inputs), self.targets.to(device), self.index.to(device))


def free_dims(example: tuple[Tensor, ...], module: nn.Module) -> tuple[Any, ...]:
    """What ``torch.export`` is to leave open: the batch size, and of token numbers ``(N, length)`` the length.

    Args:
        example: inputs by position.
        module: that takes them; what its ``forward(self, *inputs)`` gathers counts as one argument.
    """
    import torch

    free = torch.export.Dim.AUTO
    tokens = all(x.dim() == 2 and not x.is_floating_point() for x in example)
    dims = tuple({0: free, 1: free} if tokens else {0: free} for _ in example)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return dims
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*dims[:named], dims[named:])


class Task(Protocol):
    """Data with its splits, a loss and a metric.

    Splits are ``train``, ``validation`` and ``test``, and ``pool``: what a model is distilled on, which is train, and
    behind it the examples without labels, if there are any; their targets are `NO_LABEL`.
    """

    @property
    def fingerprint(self) -> str:
        """Hash of the data and of everything that changes what a model sees of it."""
        ...

    @property
    def pool_fingerprint(self) -> str | None:
        """Hash of the examples without labels; None where there are none."""
        ...

    def model_defaults(self) -> dict[str, Any]:
        """What a model may ask of its task: see `MODEL_DEFAULTS`."""
        ...

    def conditions(self) -> dict[str, Any]:
        """What every figure of this task depends on besides engine and batch size (``sequence_length``); JSON."""
        ...

    def facts(self) -> dict[str, Any]:
        """Account of the data for the record: fingerprint, examples in each split, ...; JSON."""
        ...

    def size(self, split: str) -> int: ...

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        """Batches of a split: in order, or shuffled under a seed, so that the first of them are a sample of the split.

        For training they are augmented as well, and always shuffled; without a seed under 0.
        """
        ...

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits ``(N, num_classes)``."""
        ...

    def loss(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """The mean over the examples that have a label; 0 where none has."""
        ...

    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """Which examples were right, bool ``(N,)``."""
        ...

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs of the given batch size, taken from the train split."""
        ...

    def metric(self, correct: Any) -> float:
        """The task's metric over which examples were right."""
        ...


@runtime_checkable
class OfAnyLength(Protocol):
    """A task of texts, which are padded and cut to a length."""

    def at_length(self, length: int) -> Task:
        """The same task at another length in tokens."""
        ...

    def encode(self, start: int, count: int) -> tuple[Tensor, ...]:
        """Model inputs of train texts from place ``start`` on, tokenized now and padded to the length."""
        ...


class SealedTask:
    """A task as stages see it: every question about the test split is an error."""

    def __init__(self, task: Task):
        open_splits = ("train", "validation", POOL)

        def checked(split: str) -> str:
            if split not in open_splits:
                raise SealedSplitError(f"the split '{split}' is sealed: stages may use train and validation only")
            return split

        # closures, not attributes: a stage finds no handle on the unsealed task
        self.batches = lambda split, batch_size, *, training=False, seed=None: task.batches(
            checked(split), batch_size, training=training, seed=seed
        )
        self.size = lambda split: task.size(checked(split))
        self.model_defaults = lambda: task.model_defaults()
        self.conditions = lambda: task.conditions()
        self.facts = lambda: task.facts()
        self.forward = lambda module, batch: task.forward(module, batch)
        self.loss = lambda logits, batch, label_smoothing=0.0: task.loss(logits, batch, label_smoothing)
        self.correct = lambda logits, batch: task.correct(logits, batch)
        self.example = lambda batch_size: task.example(batch_size)
        self.metric = lambda correct: task.metric(correct)
        self.kind = type(task)
        self.named = named_paths(task)
        self.fingerprint = task.fingerprint
        self.pool_fingerprint = task.pool_fingerprint
