"""The test of "the loss is at least this large": how often it is wrong where the loss is just that."""

import numpy as np
import pytest

from optkit.core.influence import interval_of_share, loss_within_p


@pytest.mark.slow
def test_it_is_wrong_as_often_as_it_says():
    random, wrong, experiments = np.random.default_rng(5), 0, 2000
    for _ in range(experiments):
        n, truth = int(random.integers(100, 1000)), random.uniform(0.01, 0.1)
        theirs = random.gamma(2.0, 0.5, n)
        ours = theirs + truth + random.uniform(0.05, 0.5) * random.standard_normal(n)
        wrong += loss_within_p(float(ours.mean() - theirs.mean()), ours, theirs, truth) <= 0.025
    # of 2,000 tests with an error of 2.5%, at most 72 are wrong in all but one case of a thousand
    assert 20 <= wrong <= 72


def test_no_difference_is_within_any_loss_that_examples_can_tell():
    values = np.random.default_rng(0).gamma(2.0, 0.5, 1000)
    assert loss_within_p(0.0, values, values, 0.1) < 0.001
    assert loss_within_p(0.2, values + 0.2, values, 0.1) > 0.999
    assert loss_within_p(0.0, np.ones(5), np.ones(5), 0.1) == 0.0


def test_a_share_of_one_example_has_the_interval_of_one_example():
    found = interval_of_share(0.4, np.array([0.4]))
    assert 0 <= found.low < 0.1
    assert 0.8 < found.high <= 1
