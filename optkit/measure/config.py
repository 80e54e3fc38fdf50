"""What to measure: the fields of the config group ``measure``, checked without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optkit.core.checks import check_choice, check_count, check_distinct, is_number
from optkit.core.errors import UserError
from optkit.core.task import HasPrompts, OfAnyLength, Task

NOW, LATER = "now", "later"
PROMPT_LENGTHS = [128]  # where a recipe names none
BEHIND_PROMPTS = 8  # tokens that are generated before a session goes back to the end of its prompt


@dataclass
class Measure:
    """What to measure, and how long; its fields are the config group ``measure``.

    Attributes:
        batch_sizes: each is compiled, evaluated and timed on its own.
        sequence_lengths: of texts, in tokens, to which they are padded and cut: each is compiled, evaluated and timed
            on its own; None is the task's.
        prompt_lengths: of models that generate, in tokens: reading a prompt and generating behind it are timed at each
            of them; None is 128.
        agreement_blocks: of models that generate: on so many blocks of the split their answers are compared with the
            baseline's, token by token; None compares none.
        seconds: of timing for each variant and batch size, shared by all engines and the baseline; less where all
            ratios are precise sooner.
        precision: timing stops where each ratio to the baseline, on the reference and on the same engine, is known to
            it: half the width of the 95% interval over the ratio. 0.02 is 2%; None spends all the time.
        retries: how often a latency is timed again while other work disturbs the machine; then it is marked.
        memory: whether to open each variant in a fresh process, at the largest batch size, for its peak memory.
        split: what quality is measured on.
        p99_limit_ms: the report names, for each variant and engine, the largest of ``batch_sizes`` whose p99 latency
            stays within it; None names none.
        when: ``now``, or ``later``: the run makes the variants, and ``optkit measure RUN`` measures them, on the
            machine that they are to be timed on. It does not decide which run it is.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    sequence_lengths: list[int] | None = None
    prompt_lengths: list[int] | None = None
    agreement_blocks: int | None = 4
    seconds: float = 5.0
    precision: float | None = 0.02
    retries: int = 1
    memory: bool = True
    split: str = "test"
    p99_limit_ms: float | None = None
    when: str = NOW

    def __post_init__(self) -> None:
        if not _are_counts(self.batch_sizes):
            message = f"{self.batch_sizes} are not batch sizes of at least 1"
            raise UserError(message, key="batch_sizes", value=self.batch_sizes, fix="for example [1,32]")
        for key in ("sequence_lengths", "prompt_lengths"):
            lengths = getattr(self, key)
            if lengths is not None and not _are_counts(lengths):
                raise UserError(f"{lengths} are not lengths in tokens", key=key, fix="for example [64,128]")
            check_distinct(key, lengths or (), "give each length once")
        check_distinct("batch_sizes", self.batch_sizes, "give each batch size once")
        if self.agreement_blocks is not None:
            check_count("agreement_blocks", self.agreement_blocks)
        check_count("retries", self.retries, 0)
        if not is_number(self.seconds) or not 0 < self.seconds <= 3600:
            message = f"{self.seconds!r} is not a time in seconds"
            raise UserError(message, key="seconds", value=self.seconds, fix="above 0, up to 3600")
        if (share := self.precision) is not None and (not is_number(share) or not 0 < share < 1):
            message = f"{share!r} is not a share of a ratio"
            raise UserError(message, key="precision", value=share, fix="0.02 for 2%, or null for all the time there is")
        if (limit := self.p99_limit_ms) is not None and (not is_number(limit) or not 0 < limit < math.inf):
            raise UserError(f"{limit!r} is not a time in ms", key="p99_limit_ms", value=limit, fix="a number above 0")
        check_choice("when", self.when, (NOW, LATER))
        if self.split not in ("test", "validation"):
            raise UserError(f"'{self.split}' is not measured", key="split", value=self.split, fix="test or validation")


def _are_counts(values: object) -> bool:
    """Whether it is a list of whole numbers of at least 1."""
    return isinstance(values, list) and bool(values) and all(isinstance(n, int) and n >= 1 for n in values)


def tasks_to_measure(task: Task, config: Measure) -> list[Task]:
    """The task at each of the sequence lengths, shortest first; the task itself if none is named.

    Raises:
        UserError: lengths for examples that have none, or of prompts for a task without prompts.
    """
    if config.prompt_lengths is not None and not isinstance(task, HasPrompts):
        fix = "leave it out: measure.prompt_lengths=null"
        raise UserError("this task has no prompts that a model continues", key="measure.prompt_lengths", fix=fix)
    if config.sequence_lengths is None:
        return [task]
    if not isinstance(task, OfAnyLength):
        fix = "leave it out: measure.sequence_lengths=null"
        raise UserError("these examples have no length in tokens", key="measure.sequence_lengths", fix=fix)
    return [task.at_length(n) for n in sorted(config.sequence_lengths)]


def prompt_lengths(config: Measure) -> list[int]:
    """The lengths at which generation is timed, shortest first."""
    return sorted(config.prompt_lengths or PROMPT_LENGTHS)


def check_prompts(config: Measure, longest: int | None, key: str = "measure.prompt_lengths") -> None:
    """Raises UserError for prompts that, with a few tokens behind them, are longer than a model takes.

    Args:
        config: what to measure.
        longest: the most tokens that the model takes; None for no limit.
        key: what the user calls the lengths.
    """
    if longest is not None and (most := prompt_lengths(config)[-1]) + BEHIND_PROMPTS > longest:
        message = f"prompts of {most} tokens and {BEHIND_PROMPTS} behind them, and the model takes {longest}"
        raise UserError(message, key=key, value=most, fix=f"at most {longest - BEHIND_PROMPTS}")
