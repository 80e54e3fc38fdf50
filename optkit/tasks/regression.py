"""Numbers for a picture, or for other numbers, from tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.task import VALUES, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.metrics.transformed import Transformed
from optkit.tasks.loader import LoaderTask
from optkit.tasks.picture_task import PictureOptions, Pictures, PictureTask, looked_at
from optkit.tasks.table_columns import check_tables, named, number_columns, picture_files, read_splits

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.core.metric import Metric

Numbers = NDArray[np.float64]


class Regression(PictureTask):
    """A table for each split, ``train.csv`` and so on, with pictures or numbers, and the numbers that a model gives.

    The shorter side of a picture is resized to `image_size`, and the middle cut out. Inputs that are numbers ``(N,
    columns)`` are standardized by the train split. Targets are ``(N, targets)``.

    With `standardize` the targets are standardized by the train split, too: the loss is of such targets, and a model
    gives such numbers. Metrics turn both back, and are in the targets' unit. `facts` has ``target_mean`` and
    ``target_std``: a prediction is ``output * target_std + target_mean``.

    Args:
        path: the folder of the tables: CSV or parquet.
        target_columns: the numbers that a model gives.
        input_columns: the numbers that it takes; None: pictures.
        file_column: names the pictures' files.
        images: the folder that files are named below; None: `path`.
        unit: of the targets, such as ``cm``.
        standardize: whether targets are standardized; False for a model that gives them in their own unit.
        image_size: of the square; None keeps pictures as they are, all of one size.
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips pictures left to right.
        mean: what pictures are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
        loss: as in `optkit.tasks.LoaderTask`.
        metrics: as in `optkit.tasks.LoaderTask`.
        validation_share: share of train held out at random where there is no validation split.
        workers: processes that read files; None: the number of usable cores.
        limit: at most so many examples a split; None for all.

    Raises:
        UserError: no such tables, or no target is named.
    """

    def __init__(
        self,
        *,
        path: str,
        target_columns: str | Sequence[str] = ("target",),
        input_columns: str | Sequence[str] | None = None,
        file_column: str = "file",
        images: str | None = None,
        unit: str = "1",
        standardize: bool = True,
        image_size: int | None = 224,
        crop: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        loss: Any = "mse",
        metrics: Any = ("mae", "rmse", "r2"),
        validation_share: float = 0.1,
        workers: int | None = None,
        limit: int | None = None,
    ):
        self.path, self.images, self.file_column = path, Path(images or path), file_column
        self.target_columns = named(target_columns, "target_columns")
        self.input_columns = None if input_columns is None else named(input_columns, "input_columns")
        if both := sorted(set(self.target_columns) & set(self.input_columns or ())):
            raise UserError(f"'{both[0]}' is a target", key="input_columns", value=both[0], fix="leave it out")
        self.unit, self.standardize = unit, standardize
        super().__init__(
            check_tables(path),
            PictureOptions(image_size, False, crop, flip, mean, std),
            loss=loss,
            metrics=metrics,
            output_kind=VALUES,
            validation_share=validation_share,
            # numbers are in memory
            workers=workers if input_columns is None else 0,
            limit=limit,
        )

    @cached_property
    def _found(self) -> tuple[dict[str, Numbers], Scale, dict[str, Any]]:
        """Targets in their unit, how they are scaled, and inputs: numbers, or files."""
        tables = read_splits(self.path)
        targets = {s: number_columns(t, s, self.target_columns, "target_columns") for s, t in tables.items()}
        scale = (
            Scale.of(targets["train"], self.target_columns, "target_columns")
            if self.standardize
            else Scale.none(targets["train"])
        )
        if self.input_columns is None:
            return targets, scale, {s: picture_files(t, s, self.file_column, self.images) for s, t in tables.items()}
        inputs = {s: number_columns(t, s, self.input_columns, "input_columns") for s, t in tables.items()}
        return targets, scale, inputs

    def datasets(self) -> Mapping[str, Any]:
        import torch

        targets, scale, inputs = self._found
        scaled = {split: torch.from_numpy(scale.apply(of)).float() for split, of in targets.items()}
        content = {split: [of.tolist(), repr(scale)] for split, of in targets.items()}
        if self.input_columns is not None:
            of_inputs = Scale.of(inputs["train"], self.input_columns, "input_columns")
            return {
                split: NumberRows(
                    torch.from_numpy(of_inputs.apply(of)).float(),
                    scaled[split],
                    self.fingerprint_of(None, of.tolist(), repr(of_inputs), content[split]),
                )
                for split, of in inputs.items()
            }
        looks = {split: looked_at(of, f"{split} images") for split, of in inputs.items()}
        picture = self.picture_input(inputs["train"], {s: [one["image"] for one in of] for s, of in looks.items()})
        found = {}
        for split, of_split in inputs.items():
            state = self.fingerprint_of(picture, [one["hash"] for one in looks[split]], content[split])
            found[split] = Pictures(of_split, picture, scaled[split], state)
        return found

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        known = {"unit": self.unit, "targets": len(self.target_columns)}
        return tuple(Transformed(metric, self._found[1]) for metric in resolve_metrics(self._metrics, **known))

    def facts(self) -> dict[str, Any]:
        scale = self._found[1]
        return super().facts() | {"target_mean": list(scale.mean), "target_std": list(scale.std)}

    def model_defaults(self) -> dict[str, Any]:
        if self.input_columns is None:
            return super().model_defaults()
        return LoaderTask.model_defaults(self) | {"inputs": ["numbers"]}

    def preprocessing(self) -> dict[str, Any]:
        """From a picture's file, or from numbers, to the model's input, and from its output to numbers."""
        scale = self._found[1]
        output = {"mean": list(scale.mean), "std": list(scale.std), "unit": self.unit, "targets": self.target_columns}
        if self.input_columns is None:
            return super().preprocessing() | {"output": output, "formula_of_output": "output * std + mean"}
        of_inputs = Scale.of(self._found[2]["train"], self.input_columns, "input_columns")
        return {
            "kind": None,
            "columns": self.input_columns,
            "mean": list(of_inputs.mean),
            "std": list(of_inputs.std),
            "formula": "(number - mean) / std in float32",
            "output": output,
            "formula_of_output": "output * std + mean",
        }

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        if self.input_columns is None:
            return super().batches(split, batch_size, training=training, seed=seed)
        return LoaderTask.batches(self, split, batch_size, training=training, seed=seed)


@dataclass(frozen=True)
class Scale:
    """Standardizes numbers, and turns outputs and targets back into their unit.

    Attributes:
        mean: of each column.
        std: its standard deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Numbers, columns: Sequence[str], option: str) -> Scale:
        """That of columns ``(N, columns)``; raises UserError for one that never varies."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = numbers.mean(0), numbers.std(0)
        for column, deviation, middle in zip(columns, std, mean, strict=True):
            if not np.isfinite(deviation):
                message = f"'{column}' has numbers too large to take their deviation"
                raise UserError(message, key=f"task.{option}", value=column, fix="scale the column")
            if deviation <= 1e-12 * max(1.0, abs(middle)):
                message = f"'{column}' is {middle:g} in every train row"
                raise UserError(message, key=f"task.{option}", value=column, fix="leave it out")
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def none(cls, numbers: Numbers) -> Scale:
        """That leaves columns as they are."""
        return cls((0.0,) * numbers.shape[1], (1.0,) * numbers.shape[1])

    def apply(self, numbers: Numbers) -> Numbers:
        """Standardized columns."""
        return (numbers - np.array(self.mean)) / np.array(self.std)

    def __call__(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        mean, std = (torch.tensor(x, dtype=torch.float64, device=targets.device) for x in (self.mean, self.std))
        return output.double().reshape(len(output), -1) * std + mean, targets.double() * std + mean


@dataclass(frozen=True)
class NumberRows:
    """Numbers with targets, one row at a time.

    Attributes:
        numbers: ``(N, columns)``.
        targets: ``(N, targets)``.
        fingerprint: of all that is given.
    """

    numbers: Tensor
    targets: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.numbers[place], self.targets[place]
