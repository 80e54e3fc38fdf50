"""`distill_from`: a student trained by a teacher on the batches of any loader."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from optkit.core.checks import check_choice, is_number
from optkit.core.errors import UserError, own_code
from optkit.core.loaders import Pick, model_inputs
from optkit.core.metric import Metric
from optkit.core.model_copy import duplicate
from optkit.core.task import CLASSES, OTHER, OUTPUT_KINDS, Batch, Task
from optkit.distill.objective import DistillationObjective
from optkit.distill.terms import read_terms
from optkit.metrics.classification import Accuracy
from optkit.tasks.losses import Loss, loss_of, output_kind_of, resolve_loss
from optkit.training import Trainer

Losses = str | Sequence[str] | Mapping[str, Any]
ALPHA = 0.9  # weight of the teacher beside targets


def distill_from(
    teacher: nn.Module,
    student: nn.Module,
    loader: Iterable[Any],
    *,
    losses: Losses = "kd",
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    inputs: Pick | None = None,
    targets: Pick | None = None,
    output_kind: str | None = None,
    epochs: int = 10,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    weight_decay: float = 1e-4,
    temperature: float = 4.0,
    alpha: float | None = None,
    pairs: Any = None,
    seed: int = 0,
) -> nn.Module:
    """Trains a student to match a teacher: its outputs, its features, its attention.

    Every epoch reads the loader's batches once, in the order and the size that the loader gives. The learning rate
    follows one cycle.

    Args:
        teacher: a module in eval mode, not touched. On a GPU, both modules are there.
        student: not touched.
        loader: an iterable that can be read once an epoch. A batch is ``(inputs..., targets)``, or a tensor, which is
            the input, without targets.
        losses: a name of `optkit.distill.KINDS`, several, or names with their weights or options:
            ``{"kd": 1.0, "hidden": {"weight": 0.5, "pairs": "blocks"}}``.
        loss: the student's own: ``cross_entropy``, ``binary_cross_entropy_with_logits``, ``mse``, ``l1``, a torch loss,
            or a function of output and targets that gives a scalar. None trains by the teacher alone, which needs no
            targets.
        inputs: picks the model's inputs of a batch: ``inputs=lambda batch: (batch["pixels"],)``. None takes all but the
            last of a tuple.
        targets: picks the targets of a batch. None takes the last of a tuple.
        output_kind: what the outputs are: ``classes`` ``(N, classes)``, ``labels`` ``(N, labels)``, ``values``,
            ``class_maps`` ``(N, classes, H, W)``, ``embeddings``, or ``other``; it decides how a loss compares them.
            None takes what the loss is plainly for, else classes.
        epochs: passes over the loader.
        lr: the peak learning rate.
        optimizer: a class of ``torch.optim`` by name.
        weight_decay: of matrices and kernels, not of biases and norms.
        temperature: softens the classes of both, for losses of logits.
        alpha: weight of the teacher against `loss`; None is 0.9 with a loss, and 1 without.
        pairs: layers to compare, for losses that do not say.
        seed: of the first weights of projections, and of dropout.

    Returns:
        The trained student, a copy in eval mode, on its device.

    Raises:
        UserError: an argument that is wrong, or a teacher and a student that do not fit, found at the first batch.
        StageError: the loss is not finite.
    """
    terms = read_terms(_by_name(losses), pairs, temperature)
    if output_kind is not None:
        check_choice("output_kind", output_kind, OUTPUT_KINDS)
    trainer = Trainer(epochs=epochs, batch_size=1, optimizer=optimizer, lr=lr, weight_decay=weight_decay)
    for name, module in (("teacher", teacher), ("student", student)):
        if not isinstance(module, nn.Module):
            raise UserError(f"a {type(module).__name__} is no module", key=name, fix="give an nn.Module")
    if teacher.training:
        raise UserError("the teacher is in train mode", key="teacher", fix="teacher.eval()")
    if loss is None and any(term.kind.needs_targets for term in terms):
        name = next(term.name for term in terms if term.kind.needs_targets)
        fix = "loss='cross_entropy', or another of losses"
        raise UserError(f"{name} needs the right classes", key="loss", fix=fix)
    own_loss = None if loss is None else resolve_loss(loss)
    task = cast("Task", _BatchesOfLoader(loader, own_loss, inputs, targets, output_kind))
    weight = _weight_of_teacher(alpha, loss)
    trained = duplicate(student, {}).eval()
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        fix = "parameters with requires_grad learn"
        raise UserError("the student has nothing to train", key="student", fix=fix)
    device = next(trained.parameters()).device
    with (
        tempfile.TemporaryDirectory() as folder,
        DistillationObjective(task, trained, teacher, terms, alpha=weight, seed=seed) as objective,
    ):
        trainer.fit(
            trained, task, objective, seed=seed, workdir=Path(folder), device=device, description="distillation"
        )
    return trained.to(device)


def _by_name(losses: Losses) -> Mapping[str, Any]:
    """The losses with their weights."""
    if isinstance(losses, str):
        losses = [losses]
    return losses if isinstance(losses, Mapping) else dict.fromkeys(losses, 1.0)


def _weight_of_teacher(alpha: float | None, loss: object) -> float:
    if alpha is None:
        return 1.0 if loss is None else ALPHA
    if not is_number(alpha) or not 0 < alpha <= 1 or not math.isfinite(alpha):
        raise UserError(f"{alpha!r} is not above 0 and up to 1", key="alpha", value=alpha)
    if alpha < 1 and loss is None:
        fix = "loss='cross_entropy', or leave alpha out"
        raise UserError("there is no loss for the rest", key="alpha", value=alpha, fix=fix)
    return float(alpha)


@dataclass(frozen=True)
class _BatchesOfLoader:
    """What training and the objective ask of a task, of a loader's own batches. A batch counts as one example."""

    loader: Iterable[Any]
    own_loss: str | Loss | None
    pick_inputs: Pick | None
    pick_targets: Pick | None
    stated_kind: str | None

    metrics: ClassVar[tuple[Metric, ...]] = (Accuracy(),)  # which training asks for where it chooses an epoch

    def __post_init__(self) -> None:
        if not isinstance(self.loader, Iterable) or isinstance(self.loader, (Tensor, Mapping, str)):
            what = f"a {type(self.loader).__name__} is no iterable of batches"
            raise UserError(what, key="loader", fix="a DataLoader, or a list of batches")
        if iter(self.loader) is self.loader:
            fix = "a DataLoader, a list, or an object whose __iter__ begins anew"
            raise UserError(
                "every epoch reads the loader, and an iterator can be read only once", key="loader", fix=fix
            )

    @cached_property
    def output_kind(self) -> str:
        """As stated, or what the loss is plainly for."""
        found = self.stated_kind
        if found is None and self.own_loss is not None:
            found = output_kind_of(self.own_loss, next(self.batches("train", 1)).targets)
        return CLASSES if self.stated_kind is None and found in (None, OTHER) else str(found)

    def size(self, split: str) -> int:
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:  # an iterable of unknown length
            return sum(1 for _ in self.loader)

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        number = 0
        for number, given in enumerate(self.loader, 1):
            yield self._batch(given, number)
        if not number:
            raise UserError("there is no batch to train on", key="loader", fix="give at least one")

    def _batch(self, given: Any, number: int) -> Batch:
        several = isinstance(given, (tuple, list)) and len(given) > 1
        inputs = given[:-1] if self.pick_inputs is None and several else given
        inputs = model_inputs(inputs, self.pick_inputs, number, "loader")
        index = torch.arange(len(inputs[0]), device=inputs[0].device)
        if self.own_loss is None:
            return Batch(inputs, index, index)
        if self.pick_targets is not None:
            return Batch(inputs, self._picked(given, number), index)
        if not several:
            message = f"batch {number}, a {type(given).__name__}, has no targets for the loss"
            raise UserError(message, key="targets", fix="targets=lambda batch: batch['label'], or loss=None")
        return Batch(inputs, given[-1], index)

    def _picked(self, given: Any, number: int) -> Any:
        assert self.pick_targets is not None
        with own_code(f"targets fails on batch {number}", "targets"):
            return self.pick_targets(given)

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        return module(*batch.inputs)

    def loss(self, output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        assert self.own_loss is not None
        try:
            return loss_of(self.own_loss, output, batch.targets, label_smoothing)
        except UserError as error:
            raise UserError(error.message, key="loss", value=error.value, fix=error.fix) from error

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return next(self.batches("train", batch_size)).inputs

    def model_defaults(self) -> dict[str, Any]:
        return {}
