"""Distillation losses of features: pure functions.

A feature is a map ``(N, C, H, W)``, a sequence of tokens ``(N, L, C)`` or a vector ``(N, C)``. A mask ``(N, L)`` says
which tokens are text and which padding; None, or a mask of another length, is for features without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hint_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean square difference of features; padding is left out.

    Hints of FitNets (Romero et al., 2015) on maps, hidden states of TinyBERT (Jiao et al., 2020) on tokens.

    Args:
        student, teacher: features of one shape.
        mask: of tokens.
    """
    square = (student - teacher.detach()).square()
    if not _applies(mask, student):
        return square.mean()
    assert mask is not None
    return (square.mean(-1) * mask).sum() / mask.sum()


def attention_transfer_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean square difference of attention maps: squares averaged over channels, each map scaled to length 1.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), in its activation-based form with p = 2.

    Args:
        student, teacher: features with the same places; their channels may differ.
        mask: of tokens.
    """
    ours, theirs = (F.normalize(_energy(x, mask), dim=-1) for x in (student, teacher.detach()))
    return (ours - theirs).square().mean()


def similarity_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean square difference of the similarities between the examples of a batch.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019): rows of the Gram matrices, each of length 1.

    Args:
        student, teacher: features of any shapes.
        mask: of tokens, which are averaged.
    """
    grams = []
    for x in (student, teacher.detach()):
        rows = _pooled(x, mask) if x.dim() == 3 else x.flatten(1)
        grams.append(F.normalize(rows @ rows.T, dim=-1))
    return (grams[0] - grams[1]).square().mean()


def rkd_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """Huber loss of the distances between examples, and of the angles in triples of examples.

    Park et al., "Relational Knowledge Distillation" (2019); the weights are the paper's for classification.

    Args:
        student, teacher: features of any widths; maps and tokens are averaged to vectors.
        mask: of tokens.
        distance: weight of the distances, in units of their mean.
        angle: weight of the cosines.
    """
    ours, theirs = _pooled(student, mask), _pooled(teacher.detach(), mask)
    loss = distance * F.smooth_l1_loss(_distances(ours), _distances(theirs))
    return loss + angle * F.smooth_l1_loss(_angles(ours), _angles(theirs))


def _distances(x: Tensor) -> Tensor:
    square = (x[:, None] - x[None]).square().sum(-1)
    # the root of a zero has no gradient
    apart = (square + (square == 0)).sqrt() * (square > 0)
    mean = apart.sum() / (apart > 0).sum().clamp_min(1)
    return apart / (mean + (mean == 0))  # a single example, or equal ones, have no distances


def _angles(x: Tensor) -> Tensor:
    """Cosines of the angles at each example between each two others ``(N, N, N)``."""
    towards = F.normalize(x[None] - x[:, None], dim=-1, eps=1e-8)
    return towards @ towards.transpose(1, 2)


def _energy(x: Tensor, mask: Tensor | None) -> Tensor:
    if x.dim() == 2:
        return x.square()
    if x.dim() == 4:
        return x.square().mean(1).flatten(1)
    energy = x.square().mean(-1)
    return energy * mask if _applies(mask, x) and mask is not None else energy


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    if x.dim() == 4:
        return x.mean((2, 3))
    if x.dim() != 3:
        return x
    if not _applies(mask, x) or mask is None:
        return x.mean(1)
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def _applies(mask: Tensor | None, x: Tensor) -> bool:
    return mask is not None and x.dim() == 3 and mask.shape == x.shape[:2]


def attention_map_loss(student: Tensor, teacher: Tensor, open_: Tensor) -> Tensor:
    """Mean square difference of attention scores before the softmax, over the pairs that may attend.

    TinyBERT (Jiao et al., 2020), equation 7, which takes the scores and not the probabilities.

    Args:
        student, teacher: scores ``(N, heads, L, S)``.
        open_: which pairs count, bool, of a shape that expands to theirs.
    """
    open_ = open_.expand_as(student)
    # a difference of two masks of -inf would be nan
    square = (student.masked_fill(~open_, 0) - teacher.detach().masked_fill(~open_, 0)).square()
    return square.sum() / open_.sum()


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """KL divergence between the relations of tokens: softmaxes of the scaled products of their queries, keys or values.

    MiniLM (Wang et al., 2020) does so with values, MiniLMv2 (2021) with all three and with relation heads, for which
    the width may differ between student and teacher.

    Args:
        student, teacher: queries, keys or values ``(N, heads, L, head size)``; both widths divisible by ``heads``.
        heads: relation heads that both are cut into.
        mask: of tokens.

    Returns:
        A scalar, the mean over heads and tokens.
    """
    ours, theirs = (_relations(x, heads, mask) for x in (student, teacher.detach()))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)
    if mask is None:
        return divergence.sum(-1).mean()
    both = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(divergence)
    return divergence.masked_fill(~both, 0).sum() / (mask.sum() * heads)


def _relations(x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    n, _, length, _ = x.shape
    x = x.transpose(1, 2).reshape(n, length, heads, -1).transpose(1, 2)
    products = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
    if mask is not None:
        products = products.masked_fill(~mask[:, None, None, :], torch.finfo(products.dtype).min)
    return F.log_softmax(products, dim=-1)
