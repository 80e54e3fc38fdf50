"""How often the 95% intervals hold the truth, over simulated experiments whose truth is known.

    python scripts/statistics_coverage.py [--experiments 1000]

Five kinds of experiment, drawn anew each time: a difference of accuracies on shared test examples; a ratio of latencies
timed in turn on a machine whose mood drifts (an autoregressive noise that rounds share, and one of each side's own);
Shapley values of accuracy, with random seeds and examples; effects on accuracy of one seed, Shapley values or of the
whole chain, of variants of which some answer almost alike; Shapley values of a latency. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import chain, combinations

import numpy as np
from scipy.stats import norm

from optkit.core.statistics import Estimate, paired_difference, ratio_of_medians
from optkit.study.effects import LogCosts, accuracy_effect, cost_effect
from optkit.study.game import Subset, shapley_weights

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


def latency_ratio(random: np.random.Generator) -> tuple[Estimate, float]:
    """30 to 200 rounds of 5 calls; noise of 3 to 15% that both sides share, and 1 to 5% of their own, with memory."""
    rounds, memory, truth = int(random.integers(30, 200)), random.uniform(0, 0.7), random.uniform(0.5, 4)
    mood = drift(random, rounds, memory) * random.uniform(0.03, 0.15)
    sides = []
    for level in (truth, 1.0):
        own = drift(random, rounds, memory) * random.uniform(0.01, 0.05)
        calls = random.uniform(0.005, 0.03) * random.standard_normal((rounds, 5))
        sides.append(level * np.exp((mood + own)[:, None] + calls))
    return ratio_of_medians(sides[0], sides[1], int(random.integers(1 << 30))), truth


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
    return accuracy_effect(weights, correct), float(truth)


def one_seed_accuracy(random: np.random.Generator) -> tuple[Estimate, float]:
    """300 to 3,000 examples, one seed, whose luck is part of the truth: variants that answer alike but for a noise."""
    n, hard, apart = int(random.integers(300, 3000)), 1.5, np.exp(random.uniform(-4.5, 0))
    strength = {s: 2 + apart * random.uniform(-0.8, 0.4) * len(s) for s in SUBSETS}
    examples = hard * random.standard_normal(n)
    correct = {s: (strength[s] + examples + apart * random.standard_normal(n) > 0)[None] for s in SUBSETS}
    weights = _weights() if random.random() < 0.5 else {frozenset(PLAYERS): 1.0, frozenset(): -1.0}
    spread = np.hypot(apart, hard)
    return accuracy_effect(weights, correct), float(sum(w * norm.cdf(strength[s] / spread) for s, w in weights.items()))


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
    "shapley_accuracy": shapley_accuracy,
    "one_seed_accuracy": one_seed_accuracy,
    "shapley_latency": shapley_latency,
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


def coverage(experiment: Experiment, experiments: int, seed: int = 0) -> float:
    """The share of experiments whose interval holds the truth."""
    inside = 0
    for number in range(experiments):
        found, truth = experiment(np.random.default_rng([seed, number]))
        inside += found.low <= truth <= found.high
    return inside / experiments


def main() -> None:
    """Prints the coverage of each kind of interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {}
    for name, experiment in EXPERIMENTS.items():
        found[name] = coverage(experiment, arguments.experiments, arguments.seed)
        print(f"{name:20s} {100 * found[name]:.1f}% of {arguments.experiments}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
