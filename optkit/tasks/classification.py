"""Classification: the common part of tasks over images and over texts."""

from __future__ import annotations

import csv
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count
from optkit.core.errors import UserError, first_line, own_code
from optkit.core.instantiate import NAMED, locate, own_part
from optkit.core.metric import TAKES, observed
from optkit.core.task import CLASSES, NO_LABEL, POOL, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.given import spread
from optkit.tasks.losses import check_first, one_number

if TYPE_CHECKING:
    from torch import Tensor, nn

SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"
SPLIT_SEED = 0


class Labelled(Protocol):
    """Examples with labels ``(N,)``; a subset can be selected."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def subset(self, index: NDArray[np.int64]) -> Self: ...


class Split(Labelled, Protocol):
    """A split as a task keeps it."""

    def digest(self) -> str:
        """Hash of the examples and their labels."""
        ...

    def hashes(self) -> list[bytes]:
        """A hash of each example, whatever its label."""
        ...

    def joined(self, other: Self) -> Self:
        """This split, and the other behind it."""
        ...


L = TypeVar("L", bound=Labelled)
S = TypeVar("S", bound=Split)


@dataclass(kw_only=True)
class Classification(ABC, Generic[S]):
    """A labelled data set with train, validation and test splits.

    Attributes:
        limit: at most so many examples a split (a smoke run); None for all.
        metrics: names of `optkit.metrics.registry.METRICS`, dotted paths, or metrics; the first one budgets.
        loss_function: the dotted path of a loss of your own: a function of logits ``(N, classes)`` and class numbers
            ``(N,)`` that gives a scalar, the mean over the examples. None is cross-entropy.
    """

    limit: int | None = None
    metrics: Any = ("accuracy",)
    loss_function: str | None = field(default=None, metadata=NAMED)

    def __post_init__(self) -> None:
        self.metrics = resolve_metrics(self.metrics)
        if self.loss_function is not None:
            own_part(self.loss_function, (), "loss_function", "loss")
        if self.limit is not None:
            check_count("limit", self.limit)

    @abstractmethod
    def load(self) -> tuple[dict[str, S], list[str]]:
        """The splits, examples without labels as ``unlabelled`` among them, and the class names. Called once."""

    @abstractmethod
    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        """As `optkit.core.task.Task.batches`."""

    @abstractmethod
    def seen(self) -> Any:
        """Other settings that change the model's inputs; its repr is part of the fingerprint."""

    def check(self, splits: dict[str, S], classes: list[str]) -> None:
        """Raises UserError for data that cannot be trained on and measured."""
        for name in SPLITS:
            if name not in splits or not len(splits[name]):
                fix = "a recipe needs train and test data"
                raise UserError(f"the data set has no {name} split", key="task", fix=fix)
            lowest, highest = int(splits[name].labels.min()), int(splits[name].labels.max())
            if highest >= len(classes):
                message = f"label {highest}, but only {len(classes)} class names"
                raise UserError(message, key="task", fix="correct classes_from")
            if lowest < 0:
                raise UserError(f"{name} has examples without a label ({lowest})", key="task", fix="leave them out")

    @cached_property
    def _loaded(self) -> tuple[dict[str, S], list[str]]:
        splits, classes = self.load()
        self.check(splits, classes)
        if self.limit is not None:
            splits = {name: split.subset(spread(len(split), self.limit)) for name, split in splits.items()}
        return splits, classes

    @cached_property
    def _unlabelled(self) -> S | None:
        """The examples without labels, each once, less those that the other splits hold."""
        found = self._loaded[0].get(UNLABELLED)
        if found is None:
            return None
        seen = {key for name in SPLITS for key in self._split(name).hashes()}
        new = [n for n, key in enumerate(found.hashes()) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]
        if not new:
            message = f"all {len(found)} examples are in the other splits as well"
            raise UserError(message, key="task.unlabelled", fix="give others, or task.unlabelled=null")
        return found.subset(np.asarray(new, dtype=np.int64))

    @cached_property
    def _pool(self) -> S:
        train = self._split("train")
        return train if self._unlabelled is None else train.joined(self._unlabelled)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(self._split(name).digest().encode())
        digest.update(repr(self.seen()).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def pool_fingerprint(self) -> str | None:
        return None if self._unlabelled is None else self._unlabelled.digest()

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their numbers."""
        return self._loaded[1]

    def _split(self, name: str) -> S:
        return self._pool if name == POOL else self._loaded[0][name]

    def size(self, split: str) -> int:
        return len(self._split(split))

    def conditions(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        examples = {name: self.size(name) for name in SPLITS}
        found = {"fingerprint": self.fingerprint, "classes": len(self.classes), "examples": examples}
        numbers = [int(name) for name in self.classes if name.isdecimal()]
        if len(numbers) == len(self.classes) and numbers != list(range(len(numbers))):
            found["label_values"] = numbers  # the labels in the data, in the order of the class numbers
        if self._unlabelled is None:
            return found
        examples[UNLABELLED] = len(self._unlabelled)
        left_out = len(self._loaded[0][UNLABELLED]) - len(self._unlabelled)
        return found | {"pool_fingerprint": self.pool_fingerprint, "unlabelled_left_out": left_out}

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(*batch.inputs)

    @property
    def output_kind(self) -> str:
        return CLASSES

    def mismatch(self, output: Any, count: int) -> str | None:
        shape = list(output.shape) if hasattr(output, "shape") else type(output).__name__
        if shape != [count, len(self.classes)]:
            return f"it gives {shape} for {count} examples of {len(self.classes)} classes: logits, one for each class"
        import torch

        batch = next(self.batches("train", count))
        output = output.detach().float()[: len(batch)]
        if self.loss_function is not None:
            with torch.enable_grad():
                loss = self.loss(output.clone().requires_grad_(), batch)
            check_first(loss, str(self.loss_function), "task.loss_function")
        for metric in self.metrics:
            observed(metric, output, batch)
        return None

    def loss(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        from torch.nn import functional as F

        if self.loss_function is not None:
            return self._own_loss(self.loss_function, logits, batch, label_smoothing)
        total = F.cross_entropy(
            logits, batch.targets, ignore_index=NO_LABEL, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (batch.targets != NO_LABEL).sum().clamp(min=1)

    @staticmethod
    def _own_loss(path: str, logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
        key = "task.loss_function"
        if label_smoothing:
            fix = "leave it out, or smooth in your own loss"
            raise UserError("label smoothing is of the built-in loss", key=key, value=path, fix=fix)
        labelled = batch.targets != NO_LABEL
        if not labelled.any():
            return logits.sum() * 0.0
        with own_code(f"the loss '{path}' fails", key, TAKES):
            found = locate(path, key)(logits[labelled], batch.targets[labelled])
        return one_number(found, path, key)


def write_labels(folder: Path, columns: Mapping[str, Sequence[str]], labels: Sequence[str]) -> Path:
    """Writes ``test.csv``: columns, and the class names of the examples as ``label``.

    Raises:
        UserError: one of the columns is called ``label``.
    """
    if "label" in columns:
        message = "a column of texts is called 'label', which names the classes in test.csv"
        raise UserError(message, key="--test-files", fix="leave --test-files out, or rename the column")
    path = folder / "test.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "label"])
        table.writerows(zip(*columns.values(), labels, strict=True))
    return path


def stratified_split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices ``(rest, held out)`` with every class held out in the same share; both in ascending order."""
    from sklearn.model_selection import train_test_split

    rest, held = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(held)


def with_validation(splits: dict[str, L], share: float, classes: Sequence[str]) -> dict[str, L]:
    """Cuts a stratified validation split from train if the data set has none.

    Raises:
        UserError: a class with one example in train, or fewer examples held out or left than there are classes.
    """
    if "validation" in splits:
        return splits
    whole = splits["train"]
    found, counts = np.unique(whole.labels, return_counts=True)
    if 1 in counts:
        label = int(found[counts == 1][0])
        name = classes[label] if 0 <= label < len(classes) else label
        message = f"train has one example of the class '{name}', and validation is cut from it by class"
        raise UserError(message, key="task", fix="add examples, leave the class out, or give a validation split")
    try:
        train, validation = stratified_split(whole.labels, share, SPLIT_SEED)
    except ValueError as error:
        fix = "another share, or give a validation split"
        raise UserError(first_line(error), key="task.validation_share", value=share, fix=fix) from error
    return splits | {"train": whole.subset(train), "validation": whole.subset(validation)}
