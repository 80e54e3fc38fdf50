"""How important a unit is: scores per parameter element, summed over everything that is cut together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from optkit.prune.groups import Units

CRITERIA = ("random", "l1", "l2")


def score_units(criterion: str, units: Units, params: Mapping[str, torch.Tensor], seed: int) -> np.ndarray:
    """Importance of every unit, larger is better.

    - ``random``: uniform, the control every other criterion has to beat.
    - ``l1``, ``l2``: norm of all weights that go with the unit (Li et al., ICLR 2017, over whole groups as in Fang et
      al., CVPR 2023).
    """
    if criterion == "random":
        return np.random.default_rng(seed).random(units.count)
    element: Callable[[torch.Tensor], torch.Tensor] = torch.abs if criterion == "l1" else torch.square
    scores = np.zeros(units.count)
    for slot in units.slots:
        param = params.get(slot.param)
        if param is None:
            continue
        held = slot.units >= 0
        values = element(param.detach().float())
        values = values.sum([d for d in range(values.ndim) if d != slot.dim]) if values.ndim > 1 else values
        scores += np.bincount(slot.units[held], values.double().cpu().numpy()[held], minlength=units.count)
    return np.sqrt(scores) if criterion == "l2" else scores


def normalize(units: Units, scores: np.ndarray) -> np.ndarray:
    """Make layers comparable: each score over the mean of those in its group that are at least as large.

    This is the layer-adaptive score of Lee et al. (LAMP, ICLR 2021) times the size of the group. Where scores are all
    alike it equals the inverse of the share kept so far, so a global ranking falls back to equal shares and no layer
    collapses; where a few channels carry a layer, the others go first.
    """
    result = np.empty_like(scores)
    for group in range(len(units.names)):
        members = np.flatnonzero(units.group == group)
        members = members[np.argsort(-scores[members], kind="stable")]
        at_least = np.cumsum(scores[members])
        result[members] = members.size * scores[members] / np.maximum(at_least, np.finfo(float).tiny)
    return result
