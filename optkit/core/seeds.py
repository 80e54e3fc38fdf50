"""Seeds of everything random in a run, all from the recipe's one, so that no two streams of random numbers meet."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *place: str | int) -> int:
    """The seed of one purpose in one place of a run, from the seed of what is around it.

    Sums and products of seeds and places meet: stage 1 of one seed draws what stage 0 of another does. Those of
    `numpy.random.SeedSequence` do not, as it hashes the place. The seed is a number of 32 bits, which every library
    takes, and more than which torch does not use on a CPU.

    Args:
        seed: 0 or more.
        place: what it is for, such as ``"stage", 2`` or ``"order", epoch``.
    """
    return int(seed_sequence(seed, *place).generate_state(1)[0])


def seed_sequence(seed: int, *place: str | int) -> np.random.SeedSequence:
    """The same for a generator of numpy's, which uses all of its 128 bits: for streams of which there are many."""
    return np.random.SeedSequence(seed, spawn_key=tuple(map(_number, place)))


def _number(part: str | int) -> int:
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8]) if isinstance(part, str) else part
