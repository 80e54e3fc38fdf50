"""Distillation losses: pure functions of logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's softened classes to the student's, times T squared.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015): the factor T**2 keeps the
    gradient's size independent of the temperature.

    Args:
        student: logits ``(N, num_classes)``.
        teacher: logits ``(N, num_classes)``; no gradient flows into them.
        temperature: above 0; higher looks more at the wrong classes.

    Returns:
        A scalar, the mean over the batch.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
