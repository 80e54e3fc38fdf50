"""Tasks for data of your own: torch Datasets or loaders, a loss, and metrics."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.checks import check_choice, check_count, check_distinct, check_share
from optkit.core.errors import UserError, own_code
from optkit.core.identity import identity
from optkit.core.instantiate import locate
from optkit.core.memory import available_memory
from optkit.core.metric import Metric, observed
from optkit.core.task import CLASS_MAPS, CLASSES, LABELS, NO_LABEL, OUTPUT_KINDS, POOL, VALUES, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.given import Given, as_examples, code_of_data, spread
from optkit.tasks.losses import Loss, check_first, loss_of, name_of, output_kind_of, resolve_loss
from optkit.tasks.picking import Pick, Picking
from optkit.tasks.reading import order_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 0
IGNORED = -100  # the class number that torch's own losses leave out
FORWARD = "it takes the module and a batch, and calls the module with the batch's inputs"


class LoaderTask:
    """Data, loss and metrics of your own.

    A split is a torch Dataset, a DataLoader, any other iterable of batches that can be read twice, a function that
    returns one of these, or the dotted path of any of them. Of a DataLoader the Dataset and the collate function are
    used: optkit chooses batch size and order itself. Any other iterable is read once and kept in memory. A list is an
    iterable of batches.

    A batch is ``(inputs, targets)``, ``(input, input, targets)``, or a dict. An input is a tensor ``(N, ...)``. Targets
    are a tensor ``(N, ...)``, a list with an entry for each example, or dicts and tuples of these. Floats of 64 bits
    become fp32.

    Args:
        train, test: the splits.
        validation: the split by which epochs and layers are chosen; None cuts `validation_share` from train.
        loss: ``cross_entropy``, ``binary_cross_entropy_with_logits``, ``mse``, ``l1``, a torch loss, or a function of
            the model's output and the targets that gives a scalar, the mean over the batch.
        metrics: names of `optkit.metrics.registry.METRICS`, metrics, or functions of outputs and targets that give a
            number for each example ``(N,)``; one or a list. The first one decides.
        forward: a function of the module and a `optkit.core.task.Batch` that gives what loss and metrics take. None
            calls the module with the inputs, which an own function must do as well.
        inputs: which parts of a batch the model takes: keys or places in the order of its arguments, or a function of
            the batch. None takes all but the last.
        targets: which part the targets are: a key or a place, several, or a function. None takes the last, or of a dict
            what is no input.
        output_kind: what the model's output is: ``classes``, ``labels``, ``values``, ``class_maps``, ``embeddings`` or
            ``other``. None takes what the loss is plainly for, else ``other``.
        classes: the class names, or how many there are. None takes the ``classes`` of the train Dataset.
        collate: makes a batch of a list of examples; None takes the loader's, or torch's.
        validation_share: share of train held out at random where `validation` is None.
        workers: processes that read a Dataset. None takes the loader's number, else none where an example is read in
            half a millisecond, else the number of usable cores. It changes no result.
        memory_share: share of the free memory that an iterable of batches may take.
        fingerprint: a text that changes with the data. None takes the Datasets' own ``fingerprint``, or hashes their
            examples: all of a split of up to 1,000, else 1,000 spread over it.
        limit: at most so many examples a split (a smoke run); None for all.

    Raises:
        UserError: a loss or a metric that is not there, or an option out of range.
    """

    def __init__(
        self,
        *,
        train: Any,
        test: Any,
        loss: str | Loss,
        metrics: str | Metric | Callable[..., Any] | Sequence[Any],
        validation: Any = None,
        forward: Callable[[nn.Module, Batch], Any] | str | None = None,
        inputs: Pick = None,
        targets: Pick = None,
        output_kind: str | None = None,
        classes: Sequence[str] | int | None = None,
        collate: Callable[[list[Any]], Any] | str | None = None,
        validation_share: float = 0.1,
        workers: int | None = None,
        memory_share: float = 0.25,
        fingerprint: str | None = None,
        limit: int | None = None,
    ):
        check_share("validation_share", validation_share)
        check_share("memory_share", memory_share)
        if output_kind is not None:
            check_choice("output_kind", output_kind, OUTPUT_KINDS)
        for key, value, least in (("limit", limit, 1), ("workers", workers, 0)):
            if value is not None:
                check_count(key, value, least)
        if classes is not None:
            _check_classes(classes)
        self._given = {"train": train, "validation": validation, "test": test}
        for name in ("train", "test"):
            if self._given[name] is None:
                raise UserError("missing", key=name, fix="give train and test data")
        self._loss = resolve_loss(loss)
        self._metrics = metrics
        resolve_metrics(metrics, classes=2, labels=2, targets=2)  # a name that is not there, before any data is read
        self._forward = _located(forward, "forward")
        self._collate = _located(collate, "collate")
        self._inputs, self._targets = _located(inputs, "inputs"), _located(targets, "targets")
        self._output_kind, self._classes, self._stated = output_kind, classes, fingerprint
        self._share, self._workers, self._memory_share, self._limit = validation_share, workers, memory_share, limit

    @cached_property
    def _splits(self) -> dict[str, Given]:
        most = self._memory_share * available_memory()
        found = {
            name: as_examples(given, Picking(self._inputs, self._targets, name), self._collate, self._workers, most)
            for name, given in self._open().items()
            if given is not None
        }
        self._is_cut = "validation" not in found
        if self._is_cut:
            count = len(found["train"])
            held = round(self._share * count)
            if not 0 < held < count:
                message = f"train has {count} examples, of which {self._share:g} are none or all"
                raise UserError(message, key="task.validation_share", value=self._share, fix="give a validation split")
            order = np.random.default_rng(SPLIT_SEED).permutation(count)
            log.info("validation is cut from train: %d of %d examples, drawn at random", held, count)
            whole = found["train"]
            found["train"], found["validation"] = (whole.subset(np.sort(x)) for x in (order[held:], order[:held]))
        if self._limit is not None:
            found = {name: split.subset(spread(len(split), self._limit)) for name, split in found.items()}
        return found

    def _open(self) -> dict[str, Any]:
        """What the splits are read from."""
        return self._given

    def _split(self, name: str) -> Given:
        return self._splits["train" if name == POOL else name]

    def _first(self, count: int) -> Batch:
        """The first examples of train, which repeat where there are fewer."""
        train = self._split("train")
        return train.__getitems__((np.arange(count) % len(train)).tolist())

    @cached_property
    def _one(self) -> Batch:
        return self._first(1)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured on the test split; the first one decides."""
        known: dict[str, Any] = {"classes": self._num_classes}
        if hasattr(self._one.targets, "dim"):
            numbers = self._one.targets[0].numel()
            known |= {"labels": numbers, "targets": numbers}
        try:
            return resolve_metrics(self._metrics, **{name: value for name, value in known.items() if value is not None})
        except TypeError as error:  # a metric that asks for a number that nothing says
            message = f"a metric needs to know how many classes or labels there are: {error}"
            raise UserError(message, key="task.classes", fix="set task.classes") from error

    @cached_property
    def output_kind(self) -> str:
        """What the model's output is."""
        return self._output_kind or output_kind_of(self._loss, self._one.targets)

    @cached_property
    def class_names(self) -> list[str] | None:
        """The class names, in the order of their numbers; None where nothing says them."""
        if self._classes is not None:
            return None if isinstance(self._classes, int) else list(map(str, self._classes))
        of_data = getattr(getattr(self._split("train"), "data", None), "classes", None)
        return None if of_data is None else list(map(str, of_data))

    @cached_property
    def _num_classes(self) -> int | None:
        if isinstance(self._classes, int):
            return self._classes
        return None if self.class_names is None else len(self.class_names)

    @cached_property
    def _digests(self) -> dict[str, tuple[str, str]]:
        """The hash of each split, and what it is of."""
        if self._stated is not None:
            return {name: (f"{self._stated} {len(self._split(name))}", "stated") for name in SPLITS}
        return {name: self._split(name).digest() for name in SPLITS}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data, and of how inputs and targets are taken from them."""
        hashes = [found for found, _ in self._digests.values()]
        state = [hashes, self._share, *(identity(part) for part in (self._inputs, self._targets))]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]

    @property
    def pool_fingerprint(self) -> str | None:
        return None

    def depends_on(self) -> list[Any]:
        """What decides the weights besides the data: loss, forward, collate function, and the Dataset's code."""
        code = code_of_data(getattr(self._split("train"), "data", None))
        return [*map(identity, (self._loss, self._forward, self._collate)), code]

    def preprocessing(self) -> dict[str, Any]:
        """Nothing: how data of your own become inputs is known to your code alone."""
        return {}

    def model_defaults(self) -> dict[str, Any]:
        first = self._one.inputs[0]
        found: dict[str, Any] = {}
        if (count := self._num_outputs()) is not None:
            found["num_classes"] = count
        if names := Picking(self._inputs).names:
            found["inputs"] = names
        elif len(self._one.inputs) == 1 and first.dim() == 4:
            found["inputs"] = ["pixel_values"]  # Hugging Face's name for images
        if first.is_floating_point() or first.dim() > 2:
            found["input_shape"] = list(first.shape[1:])
            if first.dim() > 2:
                found["in_channels"] = first.shape[1]
        elif first.dim() == 2:
            found["max_length"] = first.shape[1]
        return found

    def _num_outputs(self) -> int | None:
        """How many numbers, or classes, an output has, where it is known."""
        targets = self._one.targets
        if self._num_classes is None and self.output_kind in (LABELS, VALUES) and hasattr(targets, "dim"):
            return int(targets[0].numel())
        return self._num_classes

    def conditions(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        hashed = {name: what for name, (_, what) in self._digests.items()}
        found: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "fingerprint_of": hashed if len(set(hashed.values())) > 1 else hashed["train"],
            "examples": {name: self.size(name) for name in SPLITS},
            "loss": name_of(self._loss),
            "output_kind": self.output_kind,
        }
        if self._num_classes is not None:
            found["classes"] = self._num_classes
        if self._is_cut:
            found["validation"] = f"{self._share:g} of train, drawn at random"
        return found

    def size(self, split: str) -> int:
        return len(self._split(split))

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        return self._split(split).batches(batch_size, order_seed(training, seed))

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        return module(*batch.inputs) if self._forward is None else self._forward(module, batch)

    def loss(self, output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        return loss_of(self._loss, output, batch.targets, label_smoothing)

    def mismatch(self, output: Any, count: int) -> str | None:
        """Why the output does not fit; runs the loss and every metric on it once.

        Raises:
            UserError: a loss or a metric fails on it, or gives something of another shape; an example of any split
                has a class number that the output has not.
        """
        import torch

        from optkit.core.structure import as_float, mapped

        batch, classes = self._first(count), self._num_classes
        with torch.enable_grad():
            output = mapped(output, _with_gradient)
            if self._forward is not None:
                given = output  # what the module has given for these inputs
                with own_code(f"the function '{name_of(self._forward)}' fails", "task.forward", FORWARD):
                    output = self.forward(lambda *_: given, batch)  # type: ignore[arg-type]
            output = as_float(output)
            shape = list(getattr(output, "shape", ()))
            if self.output_kind in (CLASSES, CLASS_MAPS) and classes is not None and shape[1:2] != [classes]:
                return f"it gives {shape} for {count} examples of {classes} classes: logits, one for each class"
            if self.output_kind == CLASSES and len(shape) > 1:
                self._check_class_numbers(shape[1])
            loss = self.loss(output, batch)
        check_first(loss, name_of(self._loss), "task.loss")
        for metric in self.metrics:
            observed(metric, mapped(output, lambda x: x.detach()), batch)
        return None

    def _check_class_numbers(self, classes: int) -> None:
        """Examples without a class, which the loss leaves out, are for training alone: a metric would count them."""
        left_out = NO_LABEL if isinstance(self._loss, str) else IGNORED
        for name in SPLITS:
            for targets in self._targets_of(name):
                if not hasattr(targets, "dim") or targets.is_floating_point():
                    return  # shares of classes, or what an own loss takes
                wrong = targets[(targets < 0) | (targets >= classes)]
                wrong = wrong[wrong != left_out] if name == "train" else wrong
                if len(wrong):
                    message = f"{name} has the class number {int(wrong[0])}, and the output {classes} classes"
                    fix = f"correct it (0 to {classes - 1}), leave the example out, or give the model more classes"
                    raise UserError(message, key=f"task.{name}", value=int(wrong[0]), fix=fix)

    def _targets_of(self, split: str) -> Iterator[Any]:
        """The targets of a split, or of a sample, in batches."""
        return self._split(split).targets()

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return self._first(batch_size).inputs


def _with_gradient(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def _check_classes(classes: Any) -> None:
    """Raises UserError unless they are names, each of its own, or how many there are."""
    if isinstance(classes, int):
        check_count("classes", classes)
        return
    if isinstance(classes, str) or not isinstance(classes, Iterable) or not list(classes):
        fix = "the names in the order of their numbers, or how many there are"
        raise UserError(f"{classes!r} are no class names", key="classes", value=classes, fix=fix)
    check_distinct("classes", list(map(str, classes)), "give each class once")


def _located(part: Any, key: str) -> Any:
    """A dotted path's function; anything else as it is, as are keys of a batch."""
    is_path = isinstance(part, str) and "." in part
    return locate(part, key) if is_path else part
