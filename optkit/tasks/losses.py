"""Losses by name, by dotted path, as torch modules and as functions; and which kind of output each is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, own_code
from optkit.core.instantiate import check_part, locate
from optkit.core.metric import TAKES
from optkit.core.task import CLASS_MAPS, CLASSES, LABELS, NO_LABEL, OTHER, VALUES

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[Any, Any], "Tensor"]
KINDS = {"cross_entropy": CLASSES, "binary_cross_entropy_with_logits": LABELS, "mse": VALUES, "l1": VALUES}
# torch's own, which name the same
OF_TORCH = {
    "CrossEntropyLoss": CLASSES, "cross_entropy": CLASSES,
    "BCEWithLogitsLoss": LABELS, "binary_cross_entropy_with_logits": LABELS,
    "MSELoss": VALUES, "mse_loss": VALUES, "L1Loss": VALUES, "l1_loss": VALUES,
    "SmoothL1Loss": VALUES, "smooth_l1_loss": VALUES, "HuberLoss": VALUES, "huber_loss": VALUES,
}  # fmt: skip


def resolve_loss(loss: str | Loss) -> str | Loss:
    """A name of `KINDS` as it is; of a dotted path what is there, called if it is a class.

    Raises:
        UserError: there is no such loss.
    """
    if isinstance(loss, str) and loss not in KINDS:
        check_part(loss, KINDS, "loss")
        loss = locate(loss, "loss")
    if isinstance(loss, type):
        loss = loss()
    if not isinstance(loss, str) and not callable(loss):
        fix = "a name, a dotted path, a torch loss, or a function of outputs and targets"
        raise UserError(f"a {type(loss).__name__} is no loss", key="loss", value=str(loss), fix=fix)
    return loss


def output_kind_of(loss: str | Loss, targets: Any) -> str:
    """The kind of output that a loss is plainly for, given the targets of a batch; `OTHER` where it is not plain."""
    if isinstance(loss, str):
        kind = KINDS[loss]
    else:
        of = loss if hasattr(loss, "__qualname__") else type(loss)
        is_torch = str(getattr(of, "__module__", "")).startswith("torch.")
        kind = OF_TORCH.get(getattr(of, "__name__", ""), OTHER) if is_torch else OTHER
    if kind == CLASSES and hasattr(targets, "dim") and not targets.is_floating_point() and targets.dim() > 1:
        return CLASS_MAPS
    return kind


def loss_of(loss: str | Loss, output: Any, targets: Any, label_smoothing: float) -> Tensor:
    """The loss of a batch, a scalar.

    Raises:
        UserError: it is none, an own loss fails, or there is label smoothing for another than ``cross_entropy``.
    """
    if label_smoothing and loss != "cross_entropy":
        fix = "set label_smoothing=0, or task.loss=cross_entropy"
        raise UserError(
            "label smoothing is for loss=cross_entropy", key="label_smoothing", value=label_smoothing, fix=fix
        )
    with own_code(f"the loss '{name_of(loss)}' fails", "task.loss", TAKES):
        found = _named(loss, output, targets, label_smoothing) if isinstance(loss, str) else loss(output, targets)
    return one_number(found, name_of(loss), "task.loss")


def check_first(loss: Tensor, name: str, key: str) -> None:
    """Raises UserError for a loss of the first batch that is not finite, or by which nothing can be trained."""
    if not bool(loss.isfinite()):
        raise UserError(f"the loss of the first batch is {loss.item()}", key=key, fix="check data and loss")
    if not loss.requires_grad:
        fix = "compute it from the model's output by torch alone, without detach(), item() or numpy"
        raise UserError(f"the loss '{name}' has no gradient", key=key, fix=fix)


def one_number(found: Any, name: str, key: str) -> Tensor:
    """What an own loss gives, as a scalar; raises UserError where it is none."""
    import torch

    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = list(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        message = f"the loss '{name}' gives {what}, not one number"
        raise UserError(message, key=key, fix="return the mean over the examples: .mean()")
    return found.reshape(())


def _named(loss: str, output: Any, targets: Any, label_smoothing: float) -> Tensor:
    import torch
    from torch.nn import functional as F

    if not isinstance(output, torch.Tensor):
        message = f"the model gives a {type(output).__name__}, and {loss} takes a tensor"
        raise UserError(message, key="task.forward", fix="forward=... picks it: lambda module, batch: module(...)[...]")
    if loss == "cross_entropy":
        if targets.is_floating_point():
            return F.cross_entropy(output, targets, label_smoothing=label_smoothing)
        total = F.cross_entropy(
            output, targets.long(), ignore_index=NO_LABEL, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (targets != NO_LABEL).sum().clamp(min=1)
    if output.shape != targets.shape:
        if output.numel() != targets.numel() or len(output) != len(targets):
            message = f"the model gives {list(output.shape)} for targets {list(targets.shape)}"
            raise UserError(message, key="task.loss", fix=f"{loss} takes one number of the output for each target")
        targets = targets.reshape(output.shape)  # an axis of size 1 more or less
    named: dict[str, Loss] = {
        "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits, "mse": F.mse_loss, "l1": F.l1_loss,
    }  # fmt: skip
    return named[loss](output, targets.to(output.dtype))


def name_of(part: Any) -> str:
    """What a function, a class's object or a name is called."""
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
