import random

import numpy as np
import pytest
import torch

from optkit.core.seeds import derive_seed, seed_sequence


def test_a_seed_is_that_of_numpys_seed_sequence_and_the_same_for_ever():
    assert derive_seed(3, 1, 2) == np.random.SeedSequence(3, spawn_key=(1, 2)).generate_state(1)[0]
    # a changed one would make every variant of every store anew
    assert derive_seed(0, "stage", 1) == 4074858095


def test_seed_and_place_and_purpose_all_count():
    places = [("stage", 1), ("stage", 2), ("order", 1), ("stage", 1, "order"), ("stage",), (1,), ()]
    seeds = {derive_seed(seed, *place) for seed in (0, 1, 1009) for place in places}
    assert len(seeds) == 3 * len(places)


def test_no_two_streams_of_ten_seeds_of_eight_stages_meet():
    """As stages derive them: a seed for each stage, each step within it, and each epoch's order and noise."""
    seeds = list(range(10))
    for seed in range(10):
        for stage in (derive_seed(seed, "stage", place) for place in range(1, 9)):
            steps = [derive_seed(stage, what, number) for what in ("step", "training") for number in (1, 2, 3)]
            purposes = ("calibration", "examples", "ties", "random")
            seeds += [stage, *steps, *(derive_seed(stage, purpose) for purpose in purposes)]
            seeds += [derive_seed(stage, what, epoch) for what in ("order", "noise") for epoch in range(50)]
    assert len(set(seeds)) == len(seeds) == 10 * (1 + 8 * 111)


def test_every_library_takes_a_seed():
    for seed in (derive_seed(0, "stage", place) for place in range(100)):
        random.seed(seed)
        np.random.RandomState(seed)
        torch.Generator().manual_seed(seed)


def test_a_generator_of_numpys_draws_the_same_numbers_for_the_same_place_alone():
    draws = [np.random.default_rng(seed_sequence(0, "x", n)).random(4) for n in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        derive_seed(-1, "stage", 1)
