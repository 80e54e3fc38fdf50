"""What a session is compiled for, judged on and timed in: the cases of a task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

from optkit.core.generation import Generator
from optkit.core.setting import Setting
from optkit.core.task import HasPrompts, Task
from optkit.core.workload import FORWARD, Decode, ForwardPass, Prefill, Workload
from optkit.measure.config import Measure, prompt_lengths, tasks_to_measure

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.core.engine import Session

S = TypeVar("S", bound="Session")
COMPILED_TOKENS = 32  # sessions of a model that generates are free in the number of tokens
JUDGED_TOKENS = 2048  # answered at a time; the logits of more would take gigabytes


@dataclass(frozen=True)
class Timing:
    """One workload at one batch size.

    Attributes:
        batch_size: of its requests.
        workload: what a request is.
        setting: the same, as records name it.
    """

    batch_size: int
    workload: Workload
    setting: Setting

    def of(self, sessions: Mapping[str, S]) -> dict[str, S]:
        """The sessions that it times: those that generate generate, all others make forward passes."""
        return {n: s for n, s in sessions.items() if isinstance(s, Generator) == self.workload.generates}


@dataclass(frozen=True)
class Case:
    """What one session of each engine is measured in.

    Attributes:
        task: at the length of its examples.
        compiled_for: sessions are compiled for requests of this size and workload.
        judged_by: the size of the batches in which the split is answered.
        conditions: the parts of a setting under which quality holds; none where it holds in all.
        timings: what is timed.
    """

    task: Task
    compiled_for: tuple[int, Workload]
    judged_by: int
    conditions: dict[str, Any]
    timings: tuple[Timing, ...]

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs that sessions are compiled for."""
        size, workload = self.compiled_for
        return workload.inputs(self.task, size)

    def within(self, settings: Collection[Setting] | None) -> Case:
        """The same, timed in these settings only; in all for None."""
        return (
            self if settings is None else replace(self, timings=tuple(t for t in self.timings if t.setting in settings))
        )


def cases_of(task: Task, config: Measure) -> list[Case]:
    """The cases of a task, shortest examples and smallest batches as configured.

    A session is compiled for one batch size and one length of texts, in which it is judged and timed. A session of a
    model that generates serves all of them: it is compiled and judged once, and timed in reading prompts and in
    generating behind them.

    Raises:
        UserError: lengths that the task's examples do not have.
    """
    tasks = tasks_to_measure(task, config)
    if isinstance(task, HasPrompts):
        return [_of_prompts(task, config)]
    return [
        Case(t, (size, FORWARD), size, here, (Timing(size, FORWARD, Setting.of(here)),))
        for t, size in product(tasks, config.batch_sizes)
        for here in [{"batch_size": size} | t.conditions()]
    ]


def settings_of(task: Task, config: Measure) -> set[Setting]:
    """The settings in which a task is measured."""
    return {timing.setting for case in cases_of(task, config) for timing in case.timings}


def _of_prompts(task: Any, config: Measure) -> Case:
    workloads = (Prefill, Decode, ForwardPass)
    timings = [
        Timing(size, workload, Setting.of({"batch_size": size} | task.conditions() | workload.conditions()))
        for kind, length, size in product(workloads, prompt_lengths(config), config.batch_sizes)
        for workload in [kind(length)]
    ]
    tokens = next(iter(task.batches(config.split, 1))).inputs[0]  # (1, T), or (1, C, T) of choices
    longest = tokens[0].numel()
    judged_by = max(1, JUDGED_TOKENS // longest)
    return Case(task, (2, ForwardPass(COMPILED_TOKENS)), judged_by, {}, tuple(timings))
