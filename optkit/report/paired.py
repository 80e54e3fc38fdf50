"""Two measurements of one metric on the same examples: their difference, and tests of how large a loss is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.influence import loss_within_p, paired_metric_difference
from optkit.core.metric import SHARE
from optkit.core.records import Measurement, Record, unpack_values
from optkit.core.statistics import CONFIDENCE, PairedDifference, paired_difference

# losses that somebody may be ready to bear: of shares as they are, of other metrics relative to the baseline's value
TOLERANCES = (0.005, 0.01, 0.02, 0.05)


def same_metric(ours: Measurement, other: Record | None, conditions: dict[str, Any]) -> Measurement | None:
    """The same metric of another record's variant, on the same examples; None where there is none.

    Args:
        ours: the measurement.
        other: the record.
        conditions: where it is to have been measured.
    """
    found = other.find(ours.name, **conditions, split=ours.conditions["split"]) if other else None
    return None if found is None or found.n != ours.n else found


def difference(ours: Measurement, theirs: Measurement, confidence: float = CONFIDENCE) -> PairedDifference:
    """How much the metric of one is above that of the other."""
    if (bits := _bits(ours, theirs)) is not None:
        return paired_difference(*bits, confidence=confidence)
    return paired_metric_difference(_value(ours) - _value(theirs), *_numbers(ours, theirs), confidence)


def counts(ours: Measurement, theirs: Measurement) -> tuple[int, int] | None:
    """Of shares of examples: how many only the one got right, and how many only the other."""
    if (bits := _bits(ours, theirs)) is None:
        return None
    a, b = bits
    return int((a & ~b).sum()), int((~a & b).sum())


def tolerance_unit(theirs: Measurement) -> float:
    """What `TOLERANCES` are multiplied with to be in the unit of the metric."""
    return 1.0 if theirs.quality is not None and theirs.quality.kind == SHARE else abs(_value(theirs))


def losses_within(ours: Measurement, theirs: Measurement) -> dict[str, float]:
    """p-values of "the loss is at least this large", against "it is smaller", by tolerance."""
    assert ours.quality is not None
    better = ours.quality.higher_is_better
    if ours.quality.kind == SHARE and (found := counts(ours, theirs)) is not None:
        gained, lost = found if better else found[::-1]
        return {str(t): share_within_p(gained, lost, ours.n or 0, t) for t in TOLERANCES}
    loss = (_value(theirs) - _value(ours)) * (1 if better else -1)
    unit, pairs = tolerance_unit(theirs), _numbers(ours, theirs)
    return {str(t): loss_within_p(loss, *pairs, t * unit) for t in TOLERANCES}


def share_within_p(gained: int, lost: int, n: int, tolerance: float) -> float:
    """p-value of "the loss is at least this large" for a share of examples (Tango, 1998): a score test.

    Args:
        gained: examples that only the candidate got right.
        lost: examples that only the reference got right.
        n: of all examples.
        tolerance: the loss, a share between 0 and 1.
    """
    from scipy.stats import norm

    b = -lost - gained + (2 * n - lost + gained) * tolerance
    gaining = (math.sqrt(b * b + 8 * n * gained * tolerance * (1 - tolerance)) - b) / (4 * n)
    error = math.sqrt(n * (2 * gaining + tolerance * (1 - tolerance)))
    return float(norm.cdf((lost - gained - n * tolerance) / error))


def _bits(ours: Measurement, theirs: Measurement) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which examples each got right, if that is what both hold."""
    a, b = unpack_values(ours.raw), unpack_values(theirs.raw)
    return (a.astype(np.bool_), b.astype(np.bool_)) if a.dtype == b.dtype == np.bool_ else None


def _numbers(ours: Measurement, theirs: Measurement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return unpack_values(ours.raw).astype(np.float64), unpack_values(theirs.raw).astype(np.float64)


def _value(quality: Measurement) -> float:
    assert quality.value is not None
    return float(quality.value)
