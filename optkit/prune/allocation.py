"""Which groups to cut how far: where the measured harm is least for what is saved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optkit.core.errors import UserError, did_you_mean
from optkit.prune.cut.selection import Meter, Selector
from optkit.prune.cut.units import Units
from optkit.prune.sensitivity import Sensitivity


def order_by_harm(table: Sensitivity, units: Units, scores: np.ndarray, meter: Meter) -> np.ndarray:
    """Scores under which a global ranking removes what adds least to the summed harm of the groups.

    How far to cut each group so that the sum of their harms is least for a given saving is the allocation problem of
    Shoham and Gersho ("Efficient bit allocation for an arbitrary set of quantizers", 1988): every group is cut up to
    the same marginal harm per saving on the lower convex hull of its curve. So each unit gets the slope of the hull
    at its place in its group, and the lowest slopes go first; units with equal slopes go by their scores.

    It is a first-order choice: harms are taken to add up, though they were measured with all other groups whole, and a
    group's savings to be those it makes alone. What was not measured, and what saves nothing, goes last.

    Args:
        table: the curves, one for each of these groups at least.
        units: what can be cut.
        scores: importance of each unit, by which the units of a group were ranked for the table.
        meter: the cost that is to be saved.
    """
    alone = Selector(units, scores, "local", 1, 0).alone
    curves = {curve.name: curve for curve in table.curves}
    slopes = np.full(units.count, np.inf)
    for group, name in enumerate(units.names):
        before = np.zeros(units.count, bool)
        cuts = [alone(group, share) for share in curves[name].shares]
        saved = [meter.total - meter(removed) for removed in cuts]
        for slope, removed in zip(hull_slopes(saved, table.harms(curves[name])), cuts, strict=True):
            slopes[removed & ~before] = slope
            before = removed
    order = np.lexsort((scores, slopes))
    places = np.empty(units.count)
    places[order] = np.arange(units.count)
    return places


def unmeasured(table: Sensitivity, units: Units) -> list[int]:
    """The groups that a table lacks: trial cuts while it was measured may have shown that they cannot be cut.

    Raises:
        UserError: if it lacks them all, as that of another model does.
    """
    curves = [curve.name for curve in table.curves]
    missing = [group for group, name in enumerate(units.names) if name not in curves]
    if len(missing) == len(units.names):
        fix = f"measure it on this model; {did_you_mean(units.names[0], curves)}"
        raise UserError(f"the table has no group {units.names[0]}, nor any other", key="sensitivity", fix=fix)
    return missing


def hull_slopes(saved: Sequence[float], harms: Sequence[float]) -> list[float]:
    """Slopes of the lower convex hull of a curve that starts at (0, 0), one for the stretch up to each point.

    They ascend; where no later point saves more they are infinite.
    """
    points = [(0.0, 0.0), *zip(saved, harms, strict=True)]
    slopes: list[float] = []
    while (start := len(slopes)) + 1 < len(points):
        x, y = points[start]
        ahead = [((h - y) / (s - x), -end) for end, (s, h) in enumerate(points) if end > start and s > x]
        slope, end = min(ahead, default=(np.inf, 1 - len(points)))  # the lowest, and of equals the longest
        slopes += [slope] * (-end - start)
    return slopes
