"""The options of pruning, and their checks: functions, stages and recipes take them from here, without torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.errors import UserError
from optkit.core.instantiate import NAMED, is_dotted, own_part
from optkit.engines.registry import ENGINES

BUDGETS = ("params", "macs", "latency")
SCOPES = ("global", "local")
SENSITIVITY = "sensitivity"  # the scope of cuts that takes a table
NEED_DATA = ("taylor", "fisher", "activation")
CRITERIA = ("random", "l1", "l2", "bn_scale", "fpgm", *NEED_DATA)
HEADS, FEED_FORWARD, RESIDUAL = "heads", "feed_forward", "residual"
PARTS = (HEADS, FEED_FORWARD, RESIDUAL)
FLOOR = 0.1  # share of each layer's units that stays whatever the scores say, unless another is asked for
MAGNITUDE, RANDOM, WANDA, SPARSEGPT = "magnitude", "random", "wanda", "sparsegpt"
MASKED_BY_DATA = (WANDA, SPARSEGPT)
MASK_CRITERIA = (MAGNITUDE, RANDOM, *MASKED_BY_DATA)  # of masks
ORDERS = ("loss", "influence", "position", "deepest", "random")  # in which blocks go
Keep = int | Sequence[int | str]


def check_criterion(criterion: Any) -> None:
    """Raises UserError unless it is one of ``CRITERIA``, the dotted path of one's own, or a function."""
    if not callable(criterion):
        own_part(criterion, CRITERIA, "criterion")


def reads_data(criterion: Any) -> bool:
    """Whether a criterion may look at data: one's own may."""
    return criterion in NEED_DATA or callable(criterion) or is_dotted(criterion)


def criterion_name(criterion: Any) -> str:
    """Its name in facts and tables; of a function its dotted path."""
    return f"{criterion.__module__}.{criterion.__qualname__}" if inspect.isroutine(criterion) else str(criterion)


@dataclass(frozen=True)
class CutOptions:
    """How much is cut, and by which rule.

    Attributes:
        amount: share of the budget to remove, in (0, 1).
        budget: what the amount is a share of: ``"params"``, ``"macs"`` (multiply-accumulates on the example inputs) or
            ``"latency"`` (on them, too).
        criterion: what makes a channel important: one of ``CRITERIA``, or your own by its dotted path: a
            function ``f(model, batches, loss_fn)`` that gives scores of single weights, by parameter name. From Python
            it may be the function itself.
        scope: ``"global"`` ranks all layers together, ``"local"`` cuts the same share of each, ``"sensitivity"`` cuts
            where the measured harm is least for what is saved (:func:`order_by_harm`).
        round_to: keep sizes at multiples of this where the layer allows; None is 8 for latency (kernels are slower
            between) and 1 otherwise.
        floor: share of each layer's channels that always stays, in (0, 1).
        protect: patterns (as in :mod:`fnmatch`) of module names whose parameters stay whole.
        parts: of ``PARTS``, those that are cut, None for all: ``"heads"`` of attention (where several query heads share
            a key and value head, all of them together), ``"residual"``, the width of the stream that the blocks of a
            model read and write, and ``"feed_forward"``, every other width.
        uniform: cut corresponding layers of all blocks to the same width, which a model's own config can say. How wide
            each kind of layer stays follows from the mean scores of its layers.
        engine: where latency counts, ``"eager"`` (None) or another of ``optkit.engines.ENGINES``; for latency only.
        threads: torch threads while timing, None for as many as are set; for latency only.

    Raises:
        UserError: an option that is not one of its values, or out of its range.
    """

    amount: float
    _: KW_ONLY
    budget: str = "params"
    criterion: Any = field(default="l2", metadata=NAMED)
    scope: str = "global"
    round_to: int | None = None
    floor: float = FLOOR
    protect: Sequence[str] = ()
    parts: Sequence[str] | None = None
    uniform: bool = False
    engine: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_share("amount", self.amount)
        check_choice("budget", self.budget, BUDGETS)
        check_criterion(self.criterion)
        check_choice("scope", self.scope, (*SCOPES, SENSITIVITY))
        if self.round_to is not None:
            check_count("round_to", self.round_to)
        check_share("floor", self.floor)
        if self.parts is not None:
            for part in self.parts or (None,):
                check_choice("parts", part, PARTS)
        self.check_timing("engine", "threads")
        if self.engine is not None:
            ENGINES.check(self.engine, "engine")

    def check_timing(self, *keys: str) -> None:
        """Raises a UserError if an option for latency is set for another budget, or is a number below 1."""
        for key in keys:
            value = getattr(self, key)
            if value is not None and self.budget != "latency":
                message = f"budget '{self.budget}' needs no {key}"
                raise UserError(message, key=key, value=value, fix="budget=latency, or leave it")
            if value is not None and key != "engine":
                check_count(key, value)

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of `prune_structured`."""
        return {f.name: getattr(self, f.name) for f in fields(CutOptions)}


def check_depth(amount: float | None, keep: Keep | None, by: str) -> None:
    """Checks arguments as far as they can be without the model. Raises UserError."""
    if (amount is None) == (keep is None):
        found = "neither is" if amount is None else "both are"
        fix = "amount=0.5 with keep=null, or keep=3 with amount=null"
        raise UserError(f"amount or keep must be given, and {found}", key="keep", value=keep, fix=fix)
    if amount is not None:
        check_share("amount", amount)
    check_choice("by", by, ORDERS)
    if isinstance(keep, (list, tuple)):
        if not (keep and all(type(k) in (int, str) for k in keep)):
            raise UserError(f"{keep!r} lists no blocks", key="keep", value=keep, fix="places or names: [0, 2, 4]")
    elif keep is not None and (type(keep) is not int or keep < 0):
        raise UserError(f"{keep!r} is no number of blocks", key="keep", value=keep, fix="3, or a list: [0, 2, 4]")
