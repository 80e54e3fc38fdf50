"""Several labels for a picture, each of which is there or not, from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.task import LABELS
from optkit.tasks.picture_task import PictureOptions, Pictures, PictureTask, looked_at
from optkit.tasks.table_columns import (
    check_tables,
    indicators,
    label_columns,
    label_lists,
    named,
    picture_files,
    read_splits,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Multilabel(PictureTask):
    """A table for each split, ``train.csv`` and so on, with the file and the labels of each picture.

    Labels are either a column of 0 and 1 for each, or one column of lists. The shorter side of a picture is resized to
    `image_size`, and the middle cut out. Targets ``(N, labels)`` are 0 and 1; a model gives a logit for each label.

    Args:
        path: the folder of the tables: CSV or parquet.
        images: the folder that files are named below; None: `path`.
        file_column: names the files.
        label_columns: a column of 0 and 1 for each label.
        list_column: in their place, a column of names with `separator` between, or of lists.
        separator: between the names in a cell.
        labels_from: the labels of `list_column` in their order; None takes those of the train split by alphabet.
        image_size: of the square; None keeps pictures as they are, all of one size.
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips pictures left to right.
        mean: what inputs are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
        loss: as in `optkit.tasks.LoaderTask`; the default is the mean over examples and labels.
        metrics: as in `optkit.tasks.LoaderTask`.
        validation_share: share of train held out at random where there is no validation split.
        workers: processes that read files; None: the number of usable cores.
        limit: at most so many examples a split; None for all.

    Raises:
        UserError: no such tables, or both or none of the two ways to give labels.
    """

    def __init__(
        self,
        *,
        path: str,
        images: str | None = None,
        file_column: str = "file",
        label_columns: Sequence[str] | None = None,
        list_column: str | None = None,
        separator: str = ";",
        labels_from: Sequence[str] | None = None,
        image_size: int | None = 224,
        crop: int = 0,
        flip: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        loss: Any = "binary_cross_entropy_with_logits",
        metrics: Any = ("multilabel_f1", "multilabel_map"),
        validation_share: float = 0.1,
        workers: int | None = None,
        limit: int | None = None,
    ):
        if (label_columns is None) == (list_column is None):
            which = "both ways" if label_columns is not None else "neither way"
            fix = "label_columns=[a,b] for a column each, or list_column=labels for lists"
            raise UserError(f"labels are given {which}", key="label_columns", fix=fix)
        if not separator:
            raise UserError("it is empty", key="separator", value=separator, fix="such as ';'")
        self.path, self.images, self.file_column = path, Path(images or path), file_column
        self.label_columns = None if label_columns is None else named(label_columns, "label_columns")
        self.list_column, self.separator = list_column, separator
        self.labels_from = None if labels_from is None else named(labels_from, "labels_from")
        super().__init__(
            check_tables(path),
            PictureOptions(image_size, False, crop, flip, mean, std),
            loss=loss,
            metrics=metrics,
            output_kind=LABELS,
            validation_share=validation_share,
            workers=workers,
            limit=limit,
        )

    @cached_property
    def _found(self) -> tuple[dict[str, list[Path]], dict[str, NDArray[Any]], list[str]]:
        """Files and labels of each split, and the names of the labels."""
        tables = read_splits(self.path)
        files = {split: picture_files(t, split, self.file_column, self.images) for split, t in tables.items()}
        if self.label_columns is not None:
            labels = self.label_columns
            found = {split: label_columns(table, split, labels) for split, table in tables.items()}
        else:
            lists = {split: label_lists(t, split, str(self.list_column), self.separator) for split, t in tables.items()}
            labels = self.labels_from or sorted({name for names in lists["train"] for name in names})
            found = indicators(lists, labels)
        for name, count in zip(labels, found["train"].sum(0), strict=True):
            if count in (0, len(found["train"])):
                message = f"{'no' if count == 0 else 'every'} train example has the label '{name}'"
                raise UserError(message, key="task.path", value=name, fix="leave the label out: it cannot be learned")
        if not labels:
            raise UserError("no train example has a label", key="task.list_column", value=self.list_column)
        return files, found, labels

    @cached_property
    def class_names(self) -> list[str]:
        return self._found[2]

    def known(self) -> dict[str, Any]:
        return super().known() | {"labels": len(self.class_names)}

    def datasets(self) -> Mapping[str, Any]:
        import torch

        files, labels, names = self._found
        looks = {split: looked_at(of, f"{split} images") for split, of in files.items()}
        picture = self.picture_input(files["train"], {s: [one["image"] for one in of] for s, of in looks.items()})
        found = {}
        for split, of_split in files.items():
            content = [one["hash"] for one in looks[split]]
            state = self.fingerprint_of(picture, content, labels[split].tolist(), names)
            found[split] = Pictures(of_split, picture, torch.from_numpy(labels[split]), state)
        return found
