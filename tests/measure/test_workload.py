"""What is timed: a request of a workload, and in what it is counted."""

import torch

from optkit.core.workload import FORWARD, Request, Workload
from optkit.measure.config import Measure
from optkit.measure.latency import measure_latency


class TwoCalls(Workload):
    """Two calls of the model on each example, counted in calls."""

    name = "twice"
    unit = "calls"

    def inputs(self, task, batch_size):
        return task.example(batch_size)

    def request(self, session, inputs):
        return Request(lambda: (session(*inputs), session(*inputs)))

    def count(self, inputs):
        return 2 * len(inputs[0])


def _measure(workload):
    calls = []

    def session(x):
        calls.append(len(x))
        return x

    config = Measure(seconds=0.001, retries=0)
    found = measure_latency({"a": session}, (torch.zeros(4, 3),), config, 0, [], {"a": {}}, workload)["a"]
    timed = found.n + found.conditions["rounds"]  # and an untimed one a round
    return found.conditions, len(calls), timed


def test_a_forward_pass_is_counted_in_examples():
    conditions, calls, timed = _measure(FORWARD)
    assert (conditions["workload"], conditions["count"], conditions["unit"]) == ("forward", 4, "examples")
    assert calls >= timed


def test_another_workload_is_what_is_timed():
    conditions, calls, timed = _measure(TwoCalls())
    assert (conditions["workload"], conditions["count"], conditions["unit"]) == ("twice", 8, "calls")
    assert calls >= 2 * timed
