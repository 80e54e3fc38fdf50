"""How often the 95% intervals hold the truth, over simulated experiments whose truth is known.

    python -m scripts.statistics_coverage [--experiments 1000] [--seed 0] [--only latency_ratio ...]

Kinds of experiment, drawn anew each time:

- a difference of accuracies on shared test examples;
- ratios of latencies timed in turn, over 30 to 200 rounds and over 20, of 5 calls and of one (``single_calls``), on a
  machine that drifts: an autoregressive
  noise that both sides share, and one of each side's own;
- the same where one round in ten of each side is slowed 2 to 100 times, at random (``slow_rounds``), or in runs of
  three rounds on average, as beside a load that comes and goes (``slow_runs``);
- the same where rounds are added until the interval is narrow enough (``until_precise``), over noises of 0.3 to 10%;
- every metric besides accuracy, alone and as a paired difference (`scripts/metric_experiments.py`);
- Shapley values of accuracy, with random seeds and examples; effects on accuracy of one seed, Shapley values or of the
  whole chain, of variants of which some answer almost alike; Shapley values of a latency;
- the same effects on a mean error, of one seed and of several, and its difference between two arms of seeds.

Where an interval cannot be given, it is left out of the coverage; how often that is stands beside it. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, combinations

import numpy as np
from scipy.stats import norm

from optkit.core.statistics import Estimate, difference_over_seeds, paired_difference, ratio_of_medians
from optkit.measure.latency import MAX_ROUNDS
from optkit.measure.precision import CHECKED_AT, precise_enough
from optkit.study.effects import LogCosts, cost_effect, quality_effect
from optkit.study.game import Subset, shapley_weights
from scripts.metric_experiments import METRICS, metric_delta, metric_value

PLAYERS = ("prune", "recover", "quantize")
SUBSETS: list[Subset] = [
    frozenset(s) for s in chain.from_iterable(combinations(PLAYERS, n) for n in range(len(PLAYERS) + 1))
]
Experiment = Callable[[np.random.Generator], tuple[Estimate, float]]


def accuracy_delta(random: np.random.Generator) -> tuple[Estimate, float]:
    """300 to 3,000 examples; 1 to 15% on which exactly one side is right, more often one or the other."""
    n, disagree, share = int(random.integers(300, 3000)), random.uniform(0.01, 0.15), random.uniform(0.2, 0.8)
    kinds = random.choice(3, size=n, p=[disagree * share, disagree * (1 - share), 1 - disagree])
    candidate, reference = kinds != 1, kinds != 0
    return paired_difference(candidate, reference, int(random.integers(1 << 30))).delta, disagree * (2 * share - 1)


def latency_ratio(
    random: np.random.Generator, rounds: int | None = None, slow: str | None = None, calls: tuple[int, int] = (5, 5)
) -> tuple[Estimate, float]:
    """30 to 200 rounds of 5 calls, or of as many as each side makes.

    Noise of 3 to 15% that both sides share, and 1 to 5% of their own, with memory.
    """
    rounds = int(random.integers(30, 200)) if rounds is None else rounds
    own, of_calls = random.uniform(0.01, 0.05, 2), random.uniform(0.005, 0.03, 2)
    sides, truth = _timed_in_turn(random, rounds, own, of_calls, slow)
    sides = [side[:, :count] for side, count in zip(sides, calls, strict=True)]
    return ratio_of_medians(*sides), truth


def until_precise(random: np.random.Generator, slow: str | None = None) -> tuple[Estimate, float]:
    """Rounds are added until the ratio is known to 2%, or there are 400; noise of 0.3 to 10% of each side's own."""
    noise = np.exp(random.uniform(np.log(0.003), np.log(0.1)))
    sides, truth = _timed_in_turn(random, MAX_ROUNDS, [noise] * 2, [0.6 * noise] * 2, slow)
    for rounds in (*CHECKED_AT, MAX_ROUNDS):
        first = {name: side[:rounds] for name, side in zip("ab", sides, strict=True)}
        if rounds == MAX_ROUNDS or precise_enough(first, [("a", "b")], 0.02):
            return ratio_of_medians(first["a"], first["b"]), truth
    raise AssertionError("the last number of rounds always returns")


def _timed_in_turn(
    random: np.random.Generator, rounds: int, own: Sequence[float], calls: Sequence[float], slow: str | None
) -> tuple[list[np.ndarray], float]:
    """Latencies of two sides, ``(rounds, 5)`` each, and the true ratio.

    Args:
        own: noise of each side's rounds, beside a noise of 3 to 15% that both share.
        calls: noise of each side's calls.
        slow: whether a tenth of the rounds of each side are slow: "rounds", each by itself, or "runs" of them.
    """
    memory, truth = random.uniform(0, 0.7), random.uniform(0.5, 4)
    shared = drift(random, rounds, memory) * random.uniform(0.03, 0.15)
    sides = []
    for level, of_rounds, of_calls in zip((truth, 1.0), own, calls, strict=True):
        noise = (shared + drift(random, rounds, memory) * of_rounds)[:, None]
        noise = noise + of_calls * random.standard_normal((rounds, 5))
        if slow is not None:
            factors = random.uniform(np.log(2), np.log(100), rounds)
            noise += (_slow(random, rounds, 3 if slow == "runs" else None) * factors)[:, None]
        sides.append(level * np.exp(noise))
    return sides, truth


def _slow(random: np.random.Generator, rounds: int, length: int | None) -> np.ndarray:
    """A tenth of the rounds, independent of each other or in runs of this length on average, ``(rounds,)`` of bool."""
    found = random.random(rounds) < 0.1
    if length is not None:
        draws = random.random(rounds)
        for place in range(1, rounds):
            found[place] = draws[place] < (1 - 1 / length if found[place - 1] else 0.1 / 0.9 / length)
    return found


def shapley_accuracy(random: np.random.Generator) -> tuple[Estimate, float]:
    """3 to 6 seeds, 300 to 1,500 examples: a probit of strength, hardness of the example, luck of seed and training."""
    seeds, n, hard, luck = int(random.integers(3, 7)), int(random.integers(300, 1500)), 1.5, random.uniform(0.02, 0.2)
    strength = {s: 2 + random.uniform(-0.8, 0.4) * len(s) + random.uniform(-0.3, 0.3) for s in SUBSETS}
    examples, common = hard * random.standard_normal(n), luck * random.standard_normal((seeds, 1))
    correct = {
        s: strength[s]
        + examples
        + common
        + luck * random.standard_normal((seeds, 1))
        + random.standard_normal((seeds, n))
        > 0
        for s in SUBSETS
    }
    spread = np.sqrt(1 + hard**2 + 2 * luck**2)
    weights = _weights()
    truth = sum(w * norm.cdf(strength[s] / spread) for s, w in weights.items())
    return quality_effect(weights, correct), float(truth)


def one_seed_accuracy(random: np.random.Generator) -> tuple[Estimate, float]:
    """300 to 3,000 examples, one seed, whose luck is part of the truth: variants that answer alike but for a noise."""
    n, hard, apart = int(random.integers(300, 3000)), 1.5, np.exp(random.uniform(-4.5, 0))
    strength = {s: 2 + apart * random.uniform(-0.8, 0.4) * len(s) for s in SUBSETS}
    examples = hard * random.standard_normal(n)
    correct = {s: (strength[s] + examples + apart * random.standard_normal(n) > 0)[None] for s in SUBSETS}
    weights = _weights() if random.random() < 0.5 else {frozenset(PLAYERS): 1.0, frozenset(): -1.0}
    spread = np.hypot(apart, hard)
    return quality_effect(weights, correct), float(sum(w * norm.cdf(strength[s] / spread) for s, w in weights.items()))


def shapley_error(random: np.random.Generator, seeds: int | None = None) -> tuple[Estimate, float]:
    """A mean error: 3 to 6 seeds, or one whose luck is part of the truth; 300 to 1,500 examples of other difficulty."""
    n, apart, luck = int(random.integers(300, 1500)), np.exp(random.uniform(-4, 0)), random.uniform(0.02, 0.2)
    several = seeds or int(random.integers(3, 7))
    hardness = random.gamma(2.0, 0.5, n)
    means = {s: 1 + apart * random.uniform(-0.2, 0.5) * len(s) for s in SUBSETS}
    if seeds == 1:
        luck = 0.0
    values = {
        s: mean
        * hardness
        * np.exp(apart * random.standard_normal((several, n)) - apart**2 / 2)
        * (1 + luck * random.standard_normal((several, 1)))
        for s, mean in means.items()
    }
    whole: dict[Subset, float] = {frozenset(PLAYERS): 1.0, frozenset(): -1.0}
    weights = _weights() if random.random() < 0.5 else whole
    return quality_effect(weights, values), float(sum(w * means[s] for s, w in weights.items()))


def arms_of_seeds(random: np.random.Generator) -> tuple[Estimate, float]:
    """A mean error of two arms of 2 to 5 seeds each, on the same 300 to 1,500 examples."""
    n, luck = int(random.integers(300, 1500)), random.uniform(0.02, 0.1)
    hardness, means = random.gamma(2.0, 0.5, n), random.uniform(0.8, 1.2, 2)
    arms = []
    for mean in means:
        seeds = int(random.integers(2, 6))
        noise = np.exp(0.3 * random.standard_normal((seeds, n)) - 0.3**2 / 2)
        arms.append(mean * hardness * noise * (1 + luck * random.standard_normal((seeds, 1))))
    return difference_over_seeds(*arms), float(means[0] - means[1])


def shapley_latency(random: np.random.Generator) -> tuple[Estimate, float]:
    """1 to 5 seeds: measured with an error of 1 to 4%, and as much again from seed to seed."""
    seeds, luck = int(random.integers(1, 6)), random.uniform(0, 0.04)
    truths = {s: random.uniform(-1, 0.2) for s in SUBSETS}
    costs = {}
    for subset, truth in truths.items():
        errors = random.uniform(0.01, 0.04, seeds)
        # one seed's interval is about that seed
        by_seed = truth + (luck * random.standard_normal(seeds) if seeds > 1 else 0.0)
        costs[subset] = LogCosts(by_seed + errors * random.standard_normal(seeds), errors)
    weights = _weights()
    return cost_effect(weights, costs), float(np.exp(sum(w * truths[s] for s, w in weights.items())))


EXPERIMENTS: dict[str, Experiment] = {
    "accuracy_delta": accuracy_delta,
    "latency_ratio": latency_ratio,
    "latency_ratio_20_rounds": partial(latency_ratio, rounds=20),
    "single_calls": partial(latency_ratio, calls=(1, 1)),
    "single_calls_20_rounds": partial(latency_ratio, rounds=20, calls=(1, 1)),
    "single_and_5_calls_20_rounds": partial(latency_ratio, rounds=20, calls=(1, 5)),
    "slow_rounds": partial(latency_ratio, slow="rounds"),
    "slow_rounds_20_rounds": partial(latency_ratio, rounds=20, slow="rounds"),
    "slow_runs": partial(latency_ratio, slow="runs"),
    "slow_runs_20_rounds": partial(latency_ratio, rounds=20, slow="runs"),
    "until_precise": until_precise,
    "until_precise_slow_rounds": partial(until_precise, slow="rounds"),
    "shapley_accuracy": shapley_accuracy,
    "one_seed_accuracy": one_seed_accuracy,
    "shapley_latency": shapley_latency,
    "shapley_error": shapley_error,
    "one_seed_error": partial(shapley_error, seeds=1),
    "arms_of_seeds": arms_of_seeds,
    **{name: partial(metric_value, name=name) for name in METRICS},
    **{f"{name}_delta": partial(metric_delta, name=name) for name in METRICS},
}


def drift(random: np.random.Generator, rounds: int, memory: float) -> np.ndarray:
    """A stationary autoregressive series of unit variance, ``(rounds,)``."""
    series, now = np.empty(rounds), random.standard_normal()
    for place in range(rounds):
        series[place] = now
        now = memory * now + np.sqrt(1 - memory**2) * random.standard_normal()
    return series


def _weights() -> dict[Subset, float]:
    weights = shapley_weights(PLAYERS, SUBSETS)
    assert weights is not None
    return weights["recover"]


def coverage(experiment: Experiment, experiments: int, seed: int = 0) -> tuple[float, float]:
    """The share of the given intervals that hold the truth, and the share of experiments that have an interval."""
    found = [experiment(np.random.default_rng([seed, number])) for number in range(experiments)]
    given = [estimate.low <= truth <= estimate.high for estimate, truth in found if estimate.ci]
    return sum(given) / len(given), len(given) / experiments


def main() -> None:
    """Prints the coverage of each kind of interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    arguments = parser.parse_args()
    found = {}
    for name in arguments.only:
        found[name], given = coverage(EXPERIMENTS[name], arguments.experiments, arguments.seed)
        without = f", {100 * (1 - given):.1f}% without an interval" if given < 1 else ""
        print(f"{name:26s} {100 * found[name]:.1f}% of {arguments.experiments}{without}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
