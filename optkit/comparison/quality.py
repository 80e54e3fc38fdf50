"""The quality of sessions, by a function of the user's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optkit.core.engine import Session
from optkit.core.errors import UserError, own_code
from optkit.core.influence import interval_of_any, interval_of_share, paired_metric_difference
from optkit.core.statistics import Estimate, PairedDifference, paired_difference, proportion

log = logging.getLogger(__name__)
Evaluate = Callable[[Session], Any]
Scores = NDArray[np.float64]
FIX = "return a number, or one score for each example: a vector (N,)"


def scores_of(evaluate: Evaluate, session: Session, label: str) -> Scores:
    """What a function says of a session: a number ``()``, or one score an example ``(N,)``.

    Raises:
        UserError: it raises, or gives anything else.
    """
    log.info("evaluating %s", label)
    with own_code(f"fails on {label}", "evaluate"):
        found = evaluate(session)
    if found is None:
        raise UserError(f"returns nothing for {label}", key="evaluate", fix=FIX)
    try:
        if isinstance(found, str):  # which numpy would read
            raise TypeError
        scores = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        message = f"gives a {type(found).__name__} for {label}, which is no number"
        raise UserError(message, key="evaluate", fix=FIX) from error
    if scores.ndim > 1 or not scores.size:
        raise UserError(f"gives the shape {list(scores.shape)} for {label}", key="evaluate", fix=FIX)
    if (wrong := np.flatnonzero(~np.isfinite(scores))).size:
        where = f" for example {wrong[0]}" if scores.ndim else ""
        raise UserError(f"gives {scores.flat[wrong[0]]}{where} of {label}", key="evaluate")
    return scores


def check_same_length(scores: Scores, reference: Scores, label: str, against: str) -> None:
    """Raises UserError unless the scores of two sessions are of the same examples, as far as their number tells."""
    if scores.shape != reference.shape:
        ours, theirs = (f"{len(x)} scores" if x.ndim else "one number" for x in (scores, reference))
        message = f"gives {ours} for {label}, and {theirs} for {against}"
        raise UserError(message, key="evaluate", fix="score the same examples of every session, in the same order")


def are_answers(scores: Mapping[str, Scores]) -> bool:
    """Whether all scores say only whether an example is right: 1 or 0."""
    return all(x.ndim and np.isin(x, (0, 1)).all() for x in scores.values())


def judged(scores: Mapping[str, Scores], reference: str) -> dict[str, dict[str, Any]]:
    """The columns of quality of every session's row.

    Answers of 1 and 0 have Wilson's interval and the exact McNemar test, as accuracies have in a run. Other scores have
    Student's interval of their mean. A number has no interval.
    """
    found = {label: _judged(own, scores[reference], are_answers(scores)) for label, own in scores.items()}
    found[reference] |= {"score_delta_ci": None, "score_p_value": None}
    return found


def _judged(own: Scores, reference: Scores, answers: bool) -> dict[str, Any]:
    value = float(own.mean())
    if not own.ndim:
        return {
            "score": value,
            "score_ci": None,
            "score_delta": value - float(reference),
            "score_delta_ci": None,
            "score_p_value": None,
            "examples": None,
        }
    if answers:
        interval: Estimate = proportion(int(own.sum()), len(own))
        moved: PairedDifference = paired_difference(own > 0, reference > 0)
    else:
        is_share = own.min() >= 0 and own.max() <= 1
        interval = (interval_of_share if is_share else interval_of_any)(value, own)
        moved = paired_metric_difference(value - float(reference.mean()), own, reference)
    return {
        "score": value,
        "score_ci": interval.ci,
        "score_delta": moved.delta.value,
        "score_delta_ci": moved.delta.ci,
        "score_p_value": moved.p_value,
        "examples": len(own),
    }
