"""Service times with known distributions."""

import numpy as np

from optkit.costs.service import LEVELS, BatchTimes


def exponential(mean=1.0, sizes=(1,)):
    """Exponential, whatever the size of the batch."""
    return BatchTimes(list(sizes), np.tile(-mean * np.log(1 - LEVELS), (len(sizes), 1)), np.ones((len(sizes), 2)))


def constant(seconds, **options):
    """By batch size, always the same."""
    return BatchTimes.of_samples({size: np.array([value]) for size, value in seconds.items()}, **options)
