"""Any data set of the `datasets` library by its columns: images, texts or numbers, and what is asked of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_choice
from optkit.core.errors import UserError
from optkit.core.memory import available_memory
from optkit.core.task import Task
from optkit.tasks.column_values import label_lists, numbers_of
from optkit.tasks.decode import LazyImages, decode_once
from optkit.tasks.image_files import Cells, HubImages
from optkit.tasks.images import Normalization
from optkit.tasks.labels import numbered, read_labels
from optkit.tasks.loader import SPLITS, LoaderTask
from optkit.tasks.split_files import Table, check_source, files_key, tables_of
from optkit.tasks.text_files import TextFiles, texts_of
from optkit.tasks.texts import Padding, Texts, TextSplit
from optkit.tasks.tokens import Tokenizer, load_tokenizer, tokenize_once, trained_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CLASS, VALUES, LABELS = "class", "values", "labels"
LOSSES = {CLASS: "cross_entropy", VALUES: "mse", LABELS: "binary_cross_entropy_with_logits"}
METRICS = {CLASS: ["accuracy"], VALUES: ["mae", "r2"], LABELS: ["multilabel_map", "multilabel_f1"]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def hf_dataset(
    *,
    dataset: str | None = None,
    subset: str | None = None,
    path: str | None = None,
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    number_columns: Sequence[str] | None = None,
    target_columns: Sequence[str] | str = "label",
    target: str = CLASS,
    classes_from: Sequence[str] | None = None,
    loss: Any = None,
    metrics: Any = None,
    image_size: int | None = 224,
    crop: int = 0,
    flip: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    max_length: int = 128,
    validation_share: float = 0.1,
    memory_share: float = 0.25,
    workers: int | None = None,
    limit: int | None = None,
) -> Task:
    """The task of a data set of the Hugging Face hub, or of local files, by its columns.

    Images or texts with one class each become a `HubImages` or a `TextFiles`; everything else a `ColumnsTask`.

    Args:
        dataset: the hub's id; used where `path` is None.
        subset: of the hub's data set, where it has several.
        path: a folder with ``train.parquet`` (texts and numbers: or ``.csv``, ``.json``, ``.jsonl``) and ``test``, or
            one that ``DatasetDict.save_to_disk`` wrote.
        image_column: of images; the model's input is ``(N, 3, image_size, image_size)``.
        text_columns: one or two of texts; the inputs are token numbers and the mask, ``(N, max_length)`` each.
        number_columns: of numbers, or of lists of as many numbers; the input is ``(N, numbers)``, each less its mean
            over train, divided by its deviation there.
        target_columns: what is asked of the model.
        target: ``class``: one class number or class name an example; ``values``: one number or list of numbers, in one
            or several columns; ``labels``: a list of class numbers or names.
        classes_from: class names in the order of their numbers; None takes those that the files name.
        loss, metrics: see `LoaderTask`; None takes cross entropy and accuracy, the mean square error and MAE and R2, or
            the binary cross entropy and the mean average precision and F1.
        image_size, mean, std, memory_share, workers: of images, see `HubImages`; None for mean and std are those of
            ImageNet, with one class each those of train.
        crop, flip: random crop and mirror of training images; with one class each only.
        tokenizer, vocab_size, max_length: of texts, see `TextFiles`.
        validation_share: share of train held out where there is no validation split.
        limit: at most so many examples a split; None for all.

    Raises:
        UserError: neither or several of image, text and number columns, or options that do not go together.
    """
    check_choice("target", target, LOSSES)
    given = {"image_column": image_column, "text_columns": text_columns, "number_columns": number_columns}
    named = [name for name, value in given.items() if value]
    if len(named) != 1:
        found = " and ".join(named) or "none is given"
        raise UserError(f"a data set has one kind of input, and {found}", key=(named or ["image_column"])[-1],
                        fix="set image_column, text_columns or number_columns")  # fmt: skip
    targets = [target_columns] if isinstance(target_columns, str) else list(target_columns)
    if target != VALUES and len(targets) != 1:
        raise UserError(f"{len(targets)} columns for target={target}", key="target_columns", fix="name one column")
    by_class: dict[str, Any] = {
        "path": path, "dataset": dataset, "subset": subset, "label_column": targets[0], "classes_from": classes_from,
        "validation_share": validation_share, "limit": limit, "metrics": metrics or METRICS[CLASS],
    }  # fmt: skip
    plain = target == CLASS and loss is None
    if plain and image_column:
        return HubImages(
            **by_class, image_column=image_column, image_size=image_size, crop=crop, flip=flip, mean=mean, std=std,
            memory_share=memory_share, workers=workers,
        )  # fmt: skip
    if crop or flip:
        fix = "leave it out, or give one class an example and no loss"
        raise UserError("only for images with one class each", key="crop" if crop else "flip", fix=fix)
    if plain and text_columns:
        return TextFiles(
            **by_class, text_columns=text_columns, tokenizer=tokenizer, vocab_size=vocab_size, max_length=max_length
        )
    return ColumnsTask(
        Source(dataset, subset, path), image_column, text_columns, number_columns, targets, target, classes_from,
        Reading(image_size, tuple(mean or MEAN), tuple(std or STD), tokenizer, vocab_size, max_length),
        loss=loss or LOSSES[target], metrics=metrics or METRICS[target], validation_share=validation_share,
        memory_share=memory_share, workers=workers, limit=limit,
    )  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a data set comes from; see `hf_dataset`."""

    dataset: str | None
    subset: str | None
    path: str | None

    def __post_init__(self) -> None:
        check_source(self.path, self.dataset)


@dataclass(frozen=True)
class Reading:
    """How columns become the model's inputs; see `hf_dataset`."""

    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenizer: str | None
    vocab_size: int
    max_length: int


@dataclass(frozen=True)
class Rows:
    """A split as a Dataset that gives whole batches.

    Attributes:
        inputs: gives the model's inputs of rows.
        targets: of all rows.
        fingerprint: changes with the source and with how it is read.
    """

    inputs: Callable[[list[int]], tuple[Tensor, ...]]
    targets: torch.Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> Any:
        inputs, targets = self.__getitems__([place])
        return tuple(x[0] for x in inputs), targets[0]

    def __getitems__(self, places: list[int]) -> Any:
        return self.inputs(places), self.targets[places]


class ColumnsTask(LoaderTask):
    """The columns of a data set as a task; made by `hf_dataset`, whose arguments these are.

    Args:
        source: of the tables.
        image_column, text_columns, number_columns, target_columns, target, classes_from: see `hf_dataset`.
        reading: of the columns.
        options: of `LoaderTask`.
    """

    def __init__(
        self,
        source: Source,
        image_column: str | None,
        text_columns: Sequence[str] | None,
        number_columns: Sequence[str] | None,
        target_columns: Sequence[str],
        target: str,
        classes_from: Sequence[str] | None,
        reading: Reading,
        **options: Any,
    ):
        options |= {} if image_column else {"workers": 0}  # numbers and tokens are in memory
        super().__init__(train=self._rows, test=self._rows, collate=_as_it_is, **options)
        self._source, self._reading = source, reading
        self._image, self._texts, self._numbers = image_column, text_columns, number_columns
        self._asked_columns, self._asked_kind, self._from = list(target_columns), target, classes_from

    def _open(self) -> dict[str, Any]:
        return {name: self._rows(name) for name in SPLITS if name in self._tables}

    @cached_property
    def _tables(self) -> dict[str, Table]:
        source = self._source
        return tables_of(source.path, source.dataset, source.subset)

    @cached_property
    def _asked(self) -> tuple[dict[str, NDArray[Any]], list[str] | None]:
        """The targets of each split, and the class names."""
        tables, column = self._tables, self._asked_columns[0]
        if self._asked_kind == CLASS:
            return numbered(tables, read_labels(tables, column), column, self._from)
        if self._asked_kind == LABELS:
            return label_lists(tables, column, self._from)
        found = {name: numbers_of(table, self._asked_columns, "target_columns", name) for name, table in tables.items()}
        return {name: x[:, 0] if x.shape[1] == 1 else x for name, x in found.items()}, None

    @cached_property
    def class_names(self) -> list[str] | None:
        """The class names, in the order of their numbers; None where numbers are asked for."""
        return self._asked[1]

    def _targets_of(self, split: str) -> Iterator[Tensor]:
        import torch

        # of all rows, and without their inputs; a split that is cut from train is checked with it
        yield torch.from_numpy(self._asked[0][split if split in self._tables else "train"])

    def _rows(self, split: str) -> Rows:
        import torch

        targets = self._asked[0][split]
        key = files_key([], self._tables[split].key, self._reading, self._image, self._texts, self._numbers)
        digest = hashlib.sha256(json.dumps([key, targets.tolist()]).encode()).hexdigest()
        if self._texts:
            digest = hashlib.sha256(f"{digest} {self._tokenizer.digest}".encode()).hexdigest()
        return Rows(self._reader(split, key), torch.from_numpy(targets), digest)

    def _reader(self, split: str, key: str) -> Callable[[list[int]], tuple[Tensor, ...]]:
        import torch

        table = self._tables[split]
        if self._image is not None:
            size, norm = self._reading.image_size, Normalization(self._reading.mean, self._reading.std)
            cells = Cells(table.cells(self._image, "image_column", split), self._image, split)
            images: Any = LazyImages(cells, size, split, np.arange(len(cells)))
            if int(np.prod(images.shape)) * len(self._tables) <= self._memory_share * available_memory():
                images = decode_once(key, cells, size, split)
            return lambda places: (norm(torch.from_numpy(images[places])),)
        if self._texts is not None:
            tokens = self._tokenized(split)
            return lambda places: self._padding(tokens, places)
        mean, std = self._scale
        numbers = torch.from_numpy((self._number_table(split) - mean) / std).float()
        return lambda places: (numbers[places],)

    def _number_table(self, split: str) -> NDArray[np.float64]:
        return numbers_of(self._tables[split], self._numbers or (), "number_columns", split)

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of each number over train; 1 for one that never varies."""
        train = self._number_table("train")
        deviation = train.std(0)
        return train.mean(0), np.where(deviation > 0, deviation, 1.0)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self._reading.tokenizer is not None:
            return load_tokenizer(self._reading.tokenizer)
        return trained_tokenizer(self._read_texts("train"), self._reading.vocab_size)

    def _read_texts(self, split: str) -> Texts:
        table = self._tables[split]
        return texts_of(table, self._texts or (), split, np.zeros(len(table.rows), np.int64))

    def _tokenized(self, split: str) -> TextSplit:
        return tokenize_once(self._read_texts(split), self._tokenizer, self._reading.max_length, f"{split} texts")

    @cached_property
    def _padding(self) -> Padding:
        two = len(self._texts or ()) == 2 and "token_type_ids" in self._tokenizer.hf.model_input_names
        return Padding(self._reading.max_length, self._tokenizer.padding, two)

    def model_defaults(self) -> dict[str, Any]:
        found = super().model_defaults()
        if self._texts is None:
            return found
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * self._padding.kinds
        sizes = {"vocab_size": len(self._tokenizer), "pad_token_id": self._tokenizer.padding}
        return found | sizes | {"inputs": names, "max_length": self._reading.max_length}

    def conditions(self) -> dict[str, Any]:
        return {} if self._texts is None else {"sequence_length": self._reading.max_length}


def _as_it_is(batch: Any) -> Any:
    return batch
