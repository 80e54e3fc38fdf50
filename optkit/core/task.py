"""The Task protocol: what a model is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from optkit.core.errors import SealedSplitError
from optkit.core.instantiate import named_paths

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from optkit.core.metric import Metric

POOL = "pool"  # a split: train, and behind it what the task has without labels, whose targets are NO_LABEL
NO_LABEL = -1
# what a model's output is, by which losses between two outputs are chosen
CLASSES = "classes"  # logits (N, classes), of one class an example
LABELS = "labels"  # logits (N, labels), each label for itself
VALUES = "values"  # numbers (N, ...)
CLASS_MAPS = "class_maps"  # logits (N, classes, *places), of one class at every place
EMBEDDINGS = "embeddings"  # vectors (N, dim)
TOKENS = "tokens"  # logits (N, T, vocabulary), at each token of the next one
OTHER = "other"  # anything else, such as boxes with scores
TOKENS_AT_ONCE = 2048  # of a batch whose output has a score for each token of the vocabulary at each place
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
    """A batch of examples.

    Attributes:
        inputs: of the model, by position, ``(N, ...)`` each.
        targets: what is asked of the model: a tensor ``(N, ...)``, a list with an entry for each example, or dicts and
            tuples of these.
        index: the examples' places in their split, ``(N,)``.
        text_bytes: of texts that are continued: the bytes that the scored tokens of each example stand for ``(N,)``.
    """

    inputs: tuple[Tensor, ...]
    targets: Any
    index: Tensor
    text_bytes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        """The same on a device. A GPU copies from pinned memory, so that nothing here waits for it."""
        inputs = tuple(_moved(x, device) for x in self.inputs)
        return Batch(inputs, _moved(self.targets, device), _moved(self.index, device), _moved(self.text_bytes, device))

    def subset(self, places: Tensor | slice) -> Batch:
        """Some of the examples.

        Args:
            places: in this batch, ``(M,)`` whole numbers; a slice takes views.
        """
        sizes = None if self.text_bytes is None else self.text_bytes[places]
        return Batch(tuple(x[places] for x in self.inputs), _taken(self.targets, places), self.index[places], sizes)


def _moved(value: Any, device: torch.device) -> Any:
    if hasattr(value, "to"):
        if device.type == "cuda" and hasattr(value, "pin_memory") and value.device.type == "cpu":
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return type(value)(_moved(part, device) for part in value) if isinstance(value, (list, tuple)) else value


def _taken(targets: Any, places: Tensor | slice) -> Any:
    """The targets of some examples."""
    if isinstance(targets, Mapping):
        return {name: _taken(part, places) for name, part in targets.items()}
    if isinstance(targets, tuple):
        return tuple(_taken(part, places) for part in targets)
    if isinstance(targets, list) and not isinstance(places, slice):
        return [targets[n] for n in places.tolist()]
    return targets[places]


def free_dims(example: tuple[Tensor, ...], module: nn.Module) -> tuple[Any, ...]:
    """What ``torch.export`` is to leave open: the batch size, and of token numbers ``(N, length)`` the length.

    Args:
        example: inputs by position.
        module: that takes them; what its ``forward(self, *inputs)`` gathers counts as one argument.
    """
    import torch

    free = torch.export.Dim.AUTO
    tokens = all(x.dim() == 2 and not x.is_floating_point() for x in example)
    dims = tuple({0: free, 1: free} if tokens else {0: free} if x.dim() else {} for x in example)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return dims
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*dims[:named], dims[named:])


OUTPUT_KINDS = (CLASSES, LABELS, VALUES, CLASS_MAPS, EMBEDDINGS, TOKENS, OTHER)


class Task(Protocol):
    """Data with its splits, a loss and metrics.

    Splits are ``train``, ``validation`` and ``test``, and ``pool``: what a model is distilled on, which is train, and
    behind it the examples without labels, if there are any; their targets are `NO_LABEL`.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured on the test split; the first is the one that budgets, searches and verdicts use."""
        ...

    @property
    def output_kind(self) -> str:
        """What the model's output is: one of `OUTPUT_KINDS`."""
        ...

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

    def preprocessing(self) -> dict[str, Any]:
        """From files to the model's inputs, for an export; JSON. Empty, or ``kind`` None, where that is not known.

        ``kind`` is ``image`` or ``text``, and ``classes`` the class names. Of images: ``color`` (Pillow's mode),
        ``size`` (height and width), ``resize`` (None, ``{"shorter_side": N, "filter": ..., "then_crop": "center"}`` or
        ``{"stretch": [H, W], "filter": ...}``), and ``mean`` and ``std`` of pixels in [0, 1]. Of texts: ``columns``,
        ``max_length``, ``padding`` and ``truncation``; such a task has ``save_tokenizer(folder)``. A task with
        ``write_test(folder)`` writes its test examples as files, with the table ``test.csv`` of their labels.
        """
        ...

    def size(self, split: str) -> int: ...

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        """Batches of a split: in order, or shuffled under a seed, so that the first of them are a sample of the split.

        For training they are augmented as well, and always shuffled; without a seed under 0.
        """
        ...

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        """The module's output for a batch, as `loss` and the metrics take it."""
        ...

    def loss(self, output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """The mean over the examples that have a target, a scalar; 0 where none has.

        Raises:
            UserError: label smoothing for targets that are no classes.
        """
        ...

    def mismatch(self, output: Any, count: int) -> str | None:
        """Why a model's output for the first examples of the train split does not fit the task; None where it does.

        Args:
            output: for the inputs of ``example(count)``.
            count: of the examples.
        """
        ...

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs of the given batch size, taken from the train split."""
        ...


def rows_at_once(task: Task, most: int) -> int:
    """How many examples a batch has outside of training: fewer where what a model returns for one is large.

    Logits of 2,048 tokens over a vocabulary of 50,000 take 400 MB.
    """
    if task.output_kind != TOKENS and not isinstance(task, HasModelInputs):
        return most
    return max(1, min(most, TOKENS_AT_ONCE // task.example(1)[0].shape[1]))


@runtime_checkable
class HasModelInputs(Protocol):
    """A task whose batches are not what a model takes at once."""

    def model_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What a model gets of a batch, by position: one row of inputs for each example."""
        ...


def model_inputs(task: Task, batch: Batch) -> tuple[Tensor, ...]:
    """What a model gets of a batch, for stages that run it without the task's targets."""
    return task.model_inputs(batch) if isinstance(task, HasModelInputs) else batch.inputs


@runtime_checkable
class OwnParts(Protocol):
    """A task with parts of the user's own, which are no data: a loss, functions of batches."""

    def depends_on(self) -> list[Any]:
        """What stands for their code and settings in keys; JSON."""
        ...


@runtime_checkable
class ReadsParts(Protocol):
    """A task that can read a part of each batch alone, so that several processes share out the reading."""

    def batch_parts(
        self,
        split: str,
        batch_size: int,
        part: Callable[[int], slice],
        *,
        training: bool = False,
        seed: int | None = None,
    ) -> Iterator[Batch]:
        """As `Task.batches`, of each batch only some examples, which are as they are in the whole batch.

        Args:
            split, batch_size, training, seed: as for `Task.batches`.
            part: gives the places in a batch of so many examples; one at least.
        """
        ...


class Evaluation(Protocol):
    """What of a `Task` is needed to measure quality."""

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    def size(self, split: str) -> int: ...

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]: ...

    def forward(self, module: nn.Module, batch: Batch) -> Any: ...


@runtime_checkable
class AlsoMeasured(Protocol):
    """A task whose models are measured on other data as well, by the same sessions."""

    @property
    def also(self) -> tuple[Evaluation, ...]:
        """Their metrics stand in records behind the task's own, and have names of their own."""
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


@runtime_checkable
class HasPrompts(Protocol):
    """A task of texts that a model continues: what is timed is reading a prompt, and each further token."""

    def prompt(self, batch_size: int, length: int) -> Tensor:
        """Tokens ``(batch_size, length)`` of the train split."""
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
        self.preprocessing = lambda: task.preprocessing()
        self.forward = lambda module, batch: task.forward(module, batch)
        self.loss = lambda output, batch, label_smoothing=0.0: task.loss(output, batch, label_smoothing)
        self.mismatch = lambda output, count: task.mismatch(output, count)
        self.example = lambda batch_size: task.example(batch_size)
        if isinstance(task, ReadsParts):
            self.batch_parts = lambda split, batch_size, part, *, training=False, seed=None: task.batch_parts(
                checked(split), batch_size, part, training=training, seed=seed
            )
        if isinstance(task, HasModelInputs):
            self.model_inputs = lambda batch: task.model_inputs(batch)
        if hasattr(task, "depends_on"):
            self.depends_on = lambda: task.depends_on()
        self.metrics = task.metrics
        self.output_kind = task.output_kind
        self.kind = type(task)
        self.named = named_paths(task)
        self.fingerprint = task.fingerprint
        self.pool_fingerprint = task.pool_fingerprint
