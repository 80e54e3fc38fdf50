"""The time for turning texts into a model's inputs, without the model."""

from __future__ import annotations

import time

import numpy as np

from optkit.core.records import Measurement
from optkit.core.statistics import median
from optkit.core.task import OfAnyLength, Task
from optkit.core.turns import timing_turn

CALLS = 50


def measure_tokenization(task: Task, batch_size: int, threads: int) -> list[Measurement]:
    """Milliseconds an example for tokenizing and padding batches of train texts; nothing for tasks without texts.

    The tokenizer has threads of its own, as many as the machine has cores.
    """
    if not isinstance(task, OfAnyLength):
        return []
    times = np.empty((CALLS, 1))
    with timing_turn("timing a tokenizer"):
        task.encode(0, batch_size)
        for call in range(CALLS):
            start = time.perf_counter_ns()
            task.encode(call * batch_size, batch_size)
            times[call] = (time.perf_counter_ns() - start) / 1e6 / batch_size
    found = median(times)
    conditions = {"batch_size": batch_size, "threads": threads} | task.conditions()
    return [Measurement("tokenization", found.value, "ms", found.ci, CALLS, conditions, np.round(times, 6).tolist())]
