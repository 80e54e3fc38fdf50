import math

import numpy as np
import pytest

from optkit.core import statistics


def test_proportion_is_the_wilson_interval():
    k, n, z = 88, 100, 1.959964
    p = k / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = statistics.proportion(k, n)
    assert found.value == p
    assert found.ci == pytest.approx([center - half, center + half], abs=1e-6)


def test_paired_difference_agrees_with_resampling_examples():
    random = np.random.default_rng(3)
    reference = random.random(2000) < 0.85
    candidate = np.where(random.random(2000) < 0.1, ~reference, reference)
    found = statistics.paired_difference(candidate, reference)
    difference = candidate.astype(int) - reference.astype(int)
    draws = [difference[random.integers(0, 2000, 2000)].mean() for _ in range(4000)]
    assert found.delta.value == pytest.approx(difference.mean())
    assert found.delta.ci == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.0015)


def test_mcnemar_is_the_exact_binomial_test():
    # 3 gained, 9 lost: twice the chance of at most 3 heads in 12 tosses
    candidate = np.array([True] * 3 + [False] * 9 + [True] * 20)
    reference = np.array([False] * 3 + [True] * 9 + [True] * 20)
    tail = sum(math.comb(12, k) for k in range(4)) / 2**12
    assert statistics.paired_difference(candidate, reference).p_value == pytest.approx(2 * tail)


def test_no_disagreement_still_has_an_interval_of_some_width():
    same = np.ones(200, dtype=bool)
    found = statistics.paired_difference(same, same)
    assert found.delta.value == 0
    assert found.p_value == 1
    assert found.delta.low < 0 < found.delta.high


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_unpaired_answers_are_refused(shapes):
    with pytest.raises(ValueError, match="paired"):
        statistics.paired_difference(np.ones(shapes[0], bool), np.ones(shapes[1], bool))


def test_paired_intervals_cover_the_truth():
    random = np.random.default_rng(0)
    inside = 0
    for trial in range(400):
        base = random.random(500) < 0.9
        flips = random.random(500) < 0.06
        candidate = np.where(flips, random.random(500) < 0.4, base)
        # of 6% of the examples, candidate is right in 40% where the base is in 90%
        truth = 0.06 * (0.4 - 0.9)
        found = statistics.paired_difference(candidate, base, seed=trial)
        inside += found.delta.low <= truth <= found.delta.high
    assert 0.92 <= inside / 400 <= 0.98


def test_ratio_survives_a_drift_that_moves_both():
    random = np.random.default_rng(1)
    drift = np.linspace(1, 3, 60)[:, None]
    slow = 2 * drift * (1 + 0.02 * random.random((60, 5)))
    fast = drift * (1 + 0.02 * random.random((60, 5)))
    found = statistics.ratio_of_medians(slow, fast)
    assert found.low <= 2 <= found.high
    assert found.high - found.low < 0.2


def test_ratio_intervals_cover_the_truth_when_rounds_are_correlated():
    random = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        mood = np.exp(0.1 * random.standard_normal((40, 1)))
        a = 3 * mood * np.exp(0.05 * random.standard_normal((40, 5)))
        b = 2 * mood * np.exp(0.05 * random.standard_normal((40, 5)))
        found = statistics.ratio_of_medians(a, b, seed=trial)
        inside += found.low <= 1.5 <= found.high
    assert inside / 200 >= 0.92


def test_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="same rounds"):
        statistics.ratio_of_medians(np.ones((3, 5)), np.ones((4, 5)))
