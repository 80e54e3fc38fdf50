"""Distillation losses of outputs: pure functions."""

from __future__ import annotations

import torch
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


def dkd_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:  # fmt: skip
    """`kd_loss` in two parts with a weight each: the right class against the others, and the others among themselves.

    Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022); there the weights are called alpha and beta.

    Args:
        student, teacher: logits ``(N, num_classes)``.
        targets: the right classes ``(N,)``.
        temperature: above 0.
        target_weight: of the divergence between the probabilities of the right class and of all others together.
        other_weight: of the divergence among the other classes.
    """
    right = F.one_hot(targets, student.shape[-1]).bool()
    parts = []
    for logits in (student / temperature, teacher.detach() / temperature):
        chances = F.log_softmax(logits, dim=-1)
        two = torch.stack([chances[right], chances.masked_fill(right, -torch.inf).logsumexp(-1)], dim=-1)
        others = F.log_softmax(logits[~right].view(len(logits), -1), dim=-1)
        parts.append((two, others))
    (ours, our_others), (theirs, their_others) = parts
    of_target = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    of_others = F.kl_div(our_others, their_others, reduction="batchmean", log_target=True)
    return (target_weight * of_target + other_weight * of_others) * temperature**2


def dist_loss(
    student: Tensor, teacher: Tensor, temperature: float, inter_weight: float = 1.0, intra_weight: float = 1.0
) -> Tensor:
    """One minus the correlation of probabilities: over the classes of an example, and over the examples of a class.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST, NeurIPS 2022).

    Args:
        student, teacher: logits ``(N, num_classes)``.
        temperature: above 0; 1 in the paper for most models.
        inter_weight: of the correlation over classes.
        intra_weight: of the correlation over the batch.
    """
    ours, theirs = F.softmax(student / temperature, dim=-1), F.softmax(teacher.detach() / temperature, dim=-1)
    inter = 1 - _correlation(ours, theirs).mean()
    intra = 1 - _correlation(ours.T, theirs.T).mean()
    return (inter_weight * inter + intra_weight * intra) * temperature**2


def label_kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's softened chance of each label to the student's, times T squared.

    Each label is a Bernoulli variable, as in the logit distillation of Yang et al., "Multi-Label Knowledge
    Distillation" (ICCV 2023).

    Args:
        student, teacher: logits ``(N, labels)``.
        temperature: above 0.

    Returns:
        A scalar, the mean over labels and examples.
    """
    ours, theirs = (
        torch.stack([F.logsigmoid(x / temperature), F.logsigmoid(-x / temperature)])
        for x in (student, teacher.detach())
    )
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / student.numel() * temperature**2


def value_kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of values.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (NeurIPS 2014), who regress the teacher's outputs.

    Args:
        student, teacher: values ``(N, ...)``.
    """
    return F.mse_loss(student, teacher.detach())


def map_kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kd_loss` of the classes at every place.

    Liu et al., "Structured Knowledge Distillation for Semantic Segmentation" (CVPR 2019), its pixel-wise part.

    Args:
        student, teacher: logits ``(N, num_classes, *places)``.
        temperature: above 0.

    Returns:
        A scalar, the mean over places and examples.
    """
    return kd_loss(_places(student), _places(teacher), temperature)


def token_kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kd_loss` of the next token at every token of a text.

    The word-level distillation of Kim and Rush, "Sequence-Level Knowledge Distillation" (EMNLP 2016).

    Args:
        student, teacher: logits ``(N, T, vocabulary)``.
        temperature: above 0.

    Returns:
        A scalar, the mean over tokens and examples.
    """
    return kd_loss(student.flatten(0, 1), teacher.flatten(0, 1), temperature)


def map_dist_loss(
    student: Tensor, teacher: Tensor, temperature: float, inter_weight: float = 1.0, intra_weight: float = 1.0
) -> Tensor:
    """`dist_loss` with every place as an example, as its paper does for segmentation.

    Args:
        student, teacher: logits ``(N, num_classes, *places)``.
        temperature, inter_weight, intra_weight: as for `dist_loss`.
    """
    return dist_loss(_places(student), _places(teacher), temperature, inter_weight, intra_weight)


def embedding_kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the angle between embeddings, the mean over the batch.

    The cosine loss of Sanh et al., "DistilBERT" (2019), which takes it of hidden states.

    Args:
        student, teacher: embeddings ``(N, dim)``.
    """
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def _places(logits: Tensor) -> Tensor:
    """Every place as an example: ``(N, num_classes, *places) -> (N * places, num_classes)``."""
    return logits.movedim(1, -1).flatten(0, -2)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of every row of one with that row of the other ``(N, M) -> (N,)``."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1, eps=1e-8)
