import math

import numpy as np
import pytest
from scipy import fft, stats

from optkit.core import statistics
from optkit.core.median_interval import median_interval
from scripts.statistics_coverage import EXPERIMENTS, coverage, drift


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
    for _ in range(200):
        mood = np.exp(0.1 * random.standard_normal((40, 1)))
        a = 3 * mood * np.exp(0.05 * random.standard_normal((40, 5)))
        b = 2 * mood * np.exp(0.05 * random.standard_normal((40, 5)))
        found = statistics.ratio_of_medians(a, b)
        inside += found.low <= 1.5 <= found.high
    assert 0.92 <= inside / 200 <= 0.99


def test_ratio_intervals_cover_the_truth_when_few_rounds_remember():
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        sides = [np.exp(0.03 * drift(random, 20, 0.6)[:, None] + 0.01 * random.standard_normal((20, 5))) for _ in "ab"]
        found = statistics.ratio_of_medians(*sides)
        inside += found.low <= 1 <= found.high
    assert 0.91 <= inside / 200 <= 0.99


@pytest.mark.parametrize("rounds", [20, 21, 60])
def test_limits_are_within_the_rounds_however_wild_they_are(rounds):
    for trial in range(50):
        random = np.random.default_rng([rounds, trial])
        a, b = (np.exp(2 * drift(random, rounds, 0.8)[:, None] + random.standard_t(2, (rounds, 5))) for _ in "ab")
        for found, by_round in (
            (statistics.ratio_of_medians(a, b), np.median(a, 1) / np.median(b, 1)),
            (statistics.median(a), np.median(a, 1)),
        ):
            assert found.low <= found.value <= found.high
            assert found.ci is None or by_round.min() <= found.low <= found.high <= by_round.max()


def test_a_round_that_is_slow_counts_as_one_round_however_slow():
    times = np.exp(0.01 * np.random.default_rng(12).standard_normal((60, 5)))
    slow, slower = times.copy(), times.copy()
    slow[::10] *= 2
    slower[::10] *= 1e6
    assert statistics.median(slow) == statistics.median(slower)
    assert statistics.median(slower).high < 1.02


def test_the_interval_is_two_quantiles_whose_distance_autocorrelation_decides():
    series = drift(np.random.default_rng(13), 101, 0.5)
    signs = np.sign(series - np.median(series)) / 2
    # 0.4 * 101 ** (2 / 3) is 8.7: the first 9 coefficients of the cosine transform, the constant left out
    error = math.sqrt((fft.dct(signs, norm="ortho")[1:10] ** 2).mean() / 101)
    level = 0.5 - stats.t.ppf(0.975, 9) * error
    expected = np.quantile(series, [level, 1 - level], method="weibull")
    assert median_interval(series, 0.95) == pytest.approx((np.median(series), *expected))


def test_of_many_independent_rounds_the_interval_is_that_of_the_sign_test():
    series = np.random.default_rng(14).standard_normal(20_000)
    _, low, high = median_interval(series, 0.95)
    ordered, count = np.sort(series), int(stats.binom.ppf(0.025, 20_000, 0.5))
    sign_test = ordered[20_000 - count] - ordered[count - 1]
    assert high - low == pytest.approx(sign_test, rel=0.15)


@pytest.mark.parametrize("rounds", [1, 2, 5, 7])
def test_too_few_rounds_have_a_value_and_no_interval(rounds):
    times = np.exp(np.random.default_rng(15).standard_normal((rounds, 5)))
    found = statistics.ratio_of_medians(times, times[:, :1])
    assert math.log(found.value) == pytest.approx(np.median(np.log(np.median(times, 1) / times[:, 0])))
    assert (found.low, found.high, found.ci) == (0, math.inf, None)
    assert statistics.median(times).ci is None


def test_what_is_made_of_a_ratio_without_interval_has_none():
    none, known = statistics.Estimate(2.0, 0.0, math.inf), statistics.Estimate(4.0, 3.9, 4.1)
    for found in (statistics.quotient(known, none), statistics.quotient(none, known)):
        assert (found.value, found.ci) in ((2.0, None), (0.5, None))
    assert statistics.log_error(none) == statistics.detectable_ratio(none) == math.inf
    of_one_seed = statistics.mean_with_errors(np.array([0.3]), np.array([math.inf]))
    assert (of_one_seed.value, of_one_seed.ci) == (0.3, None)


def test_the_error_of_a_logarithm_is_read_off_the_interval():
    ratio = statistics.Estimate(2.0, 2 * math.exp(-1.959964 * 0.03), 2 * math.exp(1.959964 * 0.03))
    assert statistics.log_error(ratio) == pytest.approx(0.03)


def test_a_quotient_of_independent_ratios_is_as_wide_as_both_together():
    random, (a, b) = np.random.default_rng(10), (0.03, 0.04)
    one, other = (
        statistics.Estimate(v, v * math.exp(-1.96 * e), v * math.exp(1.96 * e)) for v, e in ((6.0, a), (2.0, b))
    )
    draws = 3 * np.exp(a * random.standard_normal(100_000) - b * random.standard_normal(100_000))
    found = statistics.quotient(one, other)
    assert found.value == 3
    assert found.ci == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), rel=0.005)


def test_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="same rounds"):
        statistics.ratio_of_medians(np.ones((3, 5)), np.ones((4, 5)))


def test_neighbouring_rounds_that_move_together_widen_the_interval():
    random = np.random.default_rng(4)
    shocks = random.standard_normal(200)
    walk = np.convolve(shocks, np.ones(10) / np.sqrt(10), mode="full")[:200]
    other = np.ones((200, 1))
    together, apart = (np.exp(0.05 * x[:, None]) for x in (walk, random.permutation(walk)))
    width = [r.high - r.low for r in (statistics.ratio_of_medians(s, other) for s in (together, apart))]
    assert width[0] > 1.8 * width[1]


def test_constant_series_are_exact():
    assert statistics.ratio_of_medians(np.full((30, 5), 3.0), np.full((30, 5), 2.0)).ci == [1.5, 1.5]
    assert statistics.median(np.full((30, 5), 3.0)).ci == [3.0, 3.0]


def test_holm_corrects_step_by_step():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_calls_no_more_than_one_family_in_twenty_falsely():
    random = np.random.default_rng(5)
    false = sum(min(statistics.holm(random.random(10).tolist())) < 0.05 for _ in range(2000))
    assert 0.035 < false / 2000 < 0.065


def test_the_detectable_ratio_is_what_80_percent_of_such_measurements_show():
    error, random = 0.03, np.random.default_rng(6)
    interval = statistics.Estimate(1.0, math.exp(-1.959964 * error), math.exp(1.959964 * error))
    effect = math.log(statistics.detectable_ratio(interval))
    shown = np.abs(effect + error * random.standard_normal(20000)) > 1.959964 * error
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_one_seed_is_judged_by_its_examples_alone():
    values = np.random.default_rng(7).normal(size=(1, 500))
    found = statistics.mean_over_seeds(values)
    assert found.high - found.value == pytest.approx(1.9647 * values.std(ddof=1) / math.sqrt(500), rel=1e-3)


def test_few_disagreements_of_one_seed_have_the_interval_of_a_pair():
    reference = np.arange(450) < 400
    candidate = reference & (np.arange(450) >= 4)
    found = statistics.weighted_metric([-1.0, 1.0], [reference[None], candidate[None]])
    assert found == statistics.paired_difference(candidate, reference).delta
    assert found == statistics.difference_over_seeds(candidate[None], reference[None])
    assert found.low < -0.01 < found.value < 0 <= found.high


def test_numbers_that_happen_to_be_0_and_1_are_numbers_beside_others():
    whole, other = np.ones((1, 200), bool), np.linspace(0.5, 1.0, 200)[None]
    for weights, values in (([1.0, -1.0], [whole, other]), ([-1.0, 1.0], [other, whole])):
        found = statistics.weighted_metric(weights, values)
        assert found == statistics.weighted_metric(weights, [value.astype(float) for value in values])
        assert found.value == pytest.approx(0.25)


def test_no_disagreement_in_a_sum_still_has_an_interval_of_some_width():
    same = np.tile(np.arange(200) < 150, (3, 1))
    for found in (
        statistics.weighted_metric([0.5, -0.5, 0.5, -0.5], [same[:1]] * 4),
        statistics.weighted_metric([1.0, -1.0], [same] * 2),
        statistics.difference_over_seeds(same, same[:2]),
    ):
        assert found.value == 0
        assert -0.03 < found.low < -0.005 < 0.005 < found.high < 0.03


def test_what_is_added_to_a_sum_counts_as_much_as_its_examples_do():
    right = np.random.default_rng(9).random((4, 1, 500)) < 0.9
    right[1:, :, 60:] = right[0, :, 60:]
    weights = np.array([0.25, -0.25, 0.75, -0.75])
    values = (weights[:, None] * right[:, 0]).sum(0)
    typical = np.sqrt((values[values != 0] ** 2).mean())
    by_hand = statistics.mean_over_seeds(np.append(values, [typical, -typical])[None])
    found = statistics.weighted_metric(weights.tolist(), list(right))
    assert found.value == pytest.approx(values.mean())
    assert found.ci == pytest.approx(by_hand.ci)


def test_seeds_that_differ_more_than_their_examples_explain_widen_the_interval():
    values = np.random.default_rng(8).normal(size=(4, 500))
    apart = values + np.array([[-1.0], [0.0], [0.5], [0.5]])
    narrow, wide = statistics.mean_over_seeds(values), statistics.mean_over_seeds(apart)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_intervals_hold_the_truth_as_often_as_they_say(kind):
    share, given = coverage(EXPERIMENTS[kind], 300, seed=11)
    # of 300 honest 95% intervals, 272 to 297 hold it in all but one case of a thousand
    assert 272 <= 300 * share <= 297
    assert given > 0.95
