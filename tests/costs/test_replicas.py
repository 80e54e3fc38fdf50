"""What a ledger says of a replica, and what it does not say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optkit.core.errors import UserError
from optkit.core.records import Measurement
from optkit.costs.replicas import at_speed, check_tokens, replicas_of
from optkit.costs.service import BatchTimes, TokenTimes
from optkit.costs.traffic import Traffic
from tests.costs.runs import chain, variant

RUN = Path("runs/r 1")


def test_a_replica_has_the_figures_of_its_engine():
    first, *_, last = replicas_of(RUN, chain(energy={1: 0.2, 8: 0.9}))
    assert (first.name, last.name) == ("0 train on eager", "3 quantize on eager")
    assert (first.threads, first.memory_gb, first.load_s, first.bytes_in, first.bytes_out) == (2, 1.0, 2.0, 1000, 10)
    assert first.service.sizes == [1, 8]
    assert first.service.mean(None, 1) == pytest.approx(0.010, rel=0.002)
    assert first.service.mean(None, 8) == pytest.approx(0.040, rel=0.002)
    # 3 of one request, 2 of 4: 0.2 + 3 / 7 of 0.7 joules each
    assert first.energy(np.array([0, 3, 0, 0, 2])) == pytest.approx(3 * 0.2 + 2 * 0.5)
    assert replicas_of(RUN, chain())[0].energy(np.array([0, 3])) is None


def test_times_are_those_at_the_speed_that_the_machine_had_for_the_baseline():
    """It was half as fast while the second variant was timed, which the baseline in the same rounds says."""
    first, *_ = chain()
    slow = variant(1, "prune", "prune", 550, {1: 8.0, 8: 20.0}, drift=2.0)
    baseline, pruned = replicas_of(RUN, [first, slow])
    assert baseline.service.mean(None, 8) == pytest.approx(0.040, rel=0.002)
    assert pruned.service.mean(None, 1) == pytest.approx(0.008, rel=0.01)
    assert pruned.service.mean(None, 8) == pytest.approx(0.020, rel=0.01)
    alone = replicas_of(RUN, [slow])  # without the baseline's record nothing is known
    assert alone[0].service.mean(None, 8) == pytest.approx(0.040, rel=0.01)


def test_a_batch_between_two_measured_sizes_lies_between_their_quantiles():
    service = BatchTimes.of_samples({1: np.array([1.0, 3.0]), 5: np.array([5.0, 9.0])})
    assert service.of_size(2) == pytest.approx(0.75 * service.of_size(1) + 0.25 * service.of_size(5))
    assert service.of_size(5)[[0, -1]] == pytest.approx([5, 9], abs=0.01)
    filled = replace(service, filled=True)
    assert np.array_equal(filled.of_size(2), filled.of_size(5))


def test_the_ends_of_the_medians_intervals_scale_the_times():
    (replica, *_) = replicas_of(RUN, chain())
    low, high = replica.service.scaled(0), replica.service.scaled(1)
    for size in (1, 8):
        ratios = [end.mean(None, size) / replica.service.mean(None, size) for end in (low, high)]
        assert 0.98 < ratios[0] < 1 < ratios[1] < 1.02


def test_faster_cores_serve_and_load_faster():
    (replica, *_) = replicas_of(RUN, chain())
    twice = at_speed(replica, 2.0)
    assert twice.service.mean(None, 1) == pytest.approx(replica.service.mean(None, 1) / 2)
    assert twice.cold_start_s(30.0) == 31.0


def test_what_was_not_measured_is_named_with_the_command_that_measures_it():
    at_8 = [variant(0, "train", "train", 950, {8: 40.0, 32: 90.0})]
    with pytest.raises(UserError) as error:
        replicas_of(RUN, at_8)
    assert str(error.value) == (
        "runs/r 1: 0 train on eager was timed at batch 8, 32 only, and a request may come alone "
        "(optkit measure 'runs/r 1' 'measure.batch_sizes=[1,8,32]')"
    )
    without = replace(at_8[0], measurements=[m for m in chain()[0].measurements if m.name != "peak_memory"])
    with pytest.raises(UserError, match="the memory of 0 train on eager was not measured"):
        replicas_of(RUN, [without])
    with pytest.raises(UserError, match="the load time of 0 train on eager was not measured .*--policy fixed"):
        replicas_of(RUN, chain(load=None))[0].cold_start_s(0.0)


def of_tokens():
    """Prefill 1 ms a token and 2 ms at batch 2; a token 10 ms, 20 ms behind 100 tokens, half as much more at batch 2."""
    record = variant(0, "model", "model", 950, {1: 1.0})
    found = []
    for size in (1, 2):
        for length in (10, 100):
            for workload, ms in (
                ("prefill", size * length),
                ("decode", (10 + 10 * (length == 100)) * (1 + (size == 2) / 2)),
            ):
                here = {
                    "engine": "eager",
                    "batch_size": size,
                    "threads": 2,
                    "workload": workload,
                    "sequence_length": length,
                }
                together = {"of": "variant", "interleaved": f"{size}-{length}-{workload}"}
                found.append(
                    Measurement("latency", ms, "ms", None, 150, here | together, np.full((30, 5), float(ms)).tolist())
                )
    others = [m for m in record.measurements if m.name not in ("latency", "energy")]
    return replace(record, measurements=[*others, *found])


def tokens(*pairs):
    prompts, outputs = np.array(pairs).T
    return Traffic("tokens", np.arange(len(pairs), dtype=float), 100.0, prompts, outputs)


def test_a_batch_of_prompts_takes_its_longest_prompt_and_its_longest_answer():
    (replica,) = replicas_of(RUN, [of_tokens()])
    assert isinstance(replica.service, TokenTimes)
    assert (replica.service.sizes, replica.service.lengths) == ([1, 2], [10, 100])
    time = replica.service.bind(tokens((10, 1), (100, 1), (50, 11), (4, 2)), 2, 0)
    assert time(0, 1) == pytest.approx(0.010)
    assert time(1, 1) == pytest.approx(0.100)
    # 55 mean of the prompt and half of the answer: a token takes 10 + 45 / 90 * 10 = 15 ms
    assert time(2, 1) == pytest.approx(0.050 + 10 * 0.015)
    # of two: 100 tokens of prompt; then none, as the first token comes with them
    assert time(0, 2) == pytest.approx(0.200)
    # of two: 50 tokens of prompt, and ten times 22.5 ms
    assert time(2, 2) == pytest.approx(0.100 + 10 * 0.0225)
    # shorter than the shortest: as that
    assert time(3, 1) == pytest.approx(0.010 + 0.010)
    assert replica.service.mean(tokens((10, 1), (100, 1)), 1) == pytest.approx(0.055)


def test_longer_prompts_than_were_timed_are_refused_with_the_command():
    (replica,) = replicas_of(RUN, [of_tokens()])
    assert replica.service.longest(tokens((10, 1), (90, 20))) == 100
    # of a batch the longest prompt and the longest answer may be of different requests
    assert replica.service.longest(tokens((10, 100), (90, 2))) == 140
    check_tokens(replica, 100)
    with pytest.raises(UserError, match=r"up to 100 tokens, and traffic has 101 .*prompt_lengths=\[10,100,200\]"):
        check_tokens(replica, 101)
    with pytest.raises(UserError, match="a language model needs the tokens of each request"):
        replica.service.longest(Traffic("plain", np.arange(2.0), 10.0))
