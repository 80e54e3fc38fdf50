"""The values that a key may take, written in Hydra's sweep syntax: ``choice``, ``range``, ``interval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from optkit.core.checks import is_number
from optkit.core.errors import UserError

NEARLY = 1e-6  # of a step
DIGITS = 12  # a sum of decimal steps is the number that was meant
LOG = "log"  # the tag of an interval that is to be searched on a logarithmic scale
FIX = "write choice(a, b), range(1, 9), interval(0.1, 0.7) or tag(log, interval(1e-4, 1e-2))"


@dataclass(frozen=True)
class Choice:
    """One of several values, each as it is written in an override."""

    texts: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are to be tried out to know that all are possible: each of them."""
        return self.texts

    def like(self, value: Any) -> str | None:
        """The text that means a value; None for another value."""
        return next((text for text in self.texts if yaml.safe_load(text) == value), None)


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included.

    Attributes:
        step: between two of them; None for any number.
        log: whether they are searched on a logarithmic scale.
        whole: whether they are whole numbers.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are to be tried out to know that all are possible: the smallest and the largest."""
        return self.text(self.low), self.text(self.high)

    def text(self, value: float) -> str:
        """A value as it is written in an override, to four digits."""
        return str(int(value)) if self.whole else f"{value:.4g}"

    def at(self, share: float) -> float:
        """The value at a share of the way from the smallest to the largest, on their scale."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        step = 1.0 if self.whole and self.step is None else self.step
        return value if step is None else round(self.low + round((value - self.low) / step) * step, DIGITS)

    def like(self, value: Any) -> float | None:
        """A value that is one of them; None for another."""
        if not is_number(value) or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return None
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return float(value) if abs(steps - round(steps)) < NEARLY else None


Values = Choice | Span


def read_values(key: str, text: str) -> Values:
    """The values that a text in Hydra's sweep syntax stands for.

    ``choice(a, b)`` or ``a,b`` is one of several, ``range(START, STOP, STEP)`` a number short of STOP, and
    ``interval(LOW, HIGH)`` any number between the two, with ``int(interval(...))`` a whole one.
    ``tag(log, interval(...))`` searches on a logarithmic scale.

    Args:
        key: whose values they are.
        text: in that syntax.

    Raises:
        UserError: another syntax, or no values.
    """
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise UserError(f"'{text}' is not in Hydra's sweep syntax", key=key, value=text, fix=FIX) from error
    found = override.value()
    tags: set[str] = getattr(found, "tags", set())
    if wrong := sorted(tags - ({LOG} if isinstance(found, IntervalSweep) else set())):
        raise UserError(f"'{wrong[0]}' is no tag of it", key=key, value=text, fix="tag(log, interval(LOW, HIGH))")
    if isinstance(found, ChoiceSweep):
        return Choice(tuple(override.sweep_string_iterator()))
    if isinstance(found, RangeSweep):
        return _of_range(key, text, found)
    if isinstance(found, IntervalSweep):
        return _of_interval(key, text, found)
    raise UserError(f"'{text}' is one value", key=key, value=text, fix=FIX)


def stage_of(key: str) -> str | None:
    """The stage that an override's key is about, such as ``prune`` of ``stages.prune.amount``; None if of none."""
    override: Override = OverridesParser.create().parse_override(f"{key}=0")
    path = override.package or override.key_or_group
    parts = path.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


def _of_range(key: str, text: str, found: RangeSweep) -> Span:
    values = list(found.range())
    if not values or found.step < 0:
        raise UserError(f"'{text}' is no range of rising numbers", key=key, value=text, fix=FIX)
    whole = all(isinstance(value, int) for value in values)
    return Span(round(values[0], DIGITS), round(values[-1], DIGITS), found.step, whole=whole)


def _of_interval(key: str, text: str, found: IntervalSweep) -> Span:
    low, high = _number(found.start), _number(found.end)
    log = LOG in found.tags
    if not low < high or (log and low <= 0):
        fix = "the smaller end first, above 0 for a logarithmic scale"
        raise UserError(f"'{text}' is no interval", key=key, value=text, fix=fix)
    return Span(low, high, log=log, whole=isinstance(found.start, int) and isinstance(found.end, int))


def _number(value: Any) -> float:
    assert isinstance(value, (int, float)), value  # Hydra's grammar
    return value
