"""What pruning may be asked for, and the checks of it: of a function's arguments and of a stage's fields alike."""

from __future__ import annotations

from collections.abc import Sequence

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.errors import UserError
from optkit.engines.registry import ENGINES

BUDGETS = ("params", "macs", "latency")
SCOPES = ("global", "local")
SENSITIVITY = "sensitivity"  # the scope of cuts that takes a table
NEED_DATA = ("taylor", "fisher", "activation")
CRITERIA = ("random", "l1", "l2", "bn_scale", "fpgm", *NEED_DATA)
FLOOR = 0.1  # share of each layer's units that stays whatever the scores say, unless another is asked for
ORDERS = ("loss", "position")  # in which blocks go
Keep = int | Sequence[int | str]


def check_arguments(
    amount: float,
    budget: str,
    criterion: str,
    scope: str,
    round_to: int | None,
    floor: float = FLOOR,
    engine: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Raise a UserError for the first argument that cannot be used."""
    check_share("amount", amount)
    check_choice("budget", budget, BUDGETS)
    check_choice("criterion", criterion, CRITERIA)
    check_choice("scope", scope, (*SCOPES, SENSITIVITY))
    if round_to is not None:
        check_count("round_to", round_to)
    check_share("floor", floor)
    for key, value in (("engine", engine), ("threads", threads), ("batch_size", batch_size)):
        if value is not None and budget != "latency":
            raise UserError(
                f"budget '{budget}' needs no {key}", key=key, value=value, fix="budget=latency, or leave it"
            )
    if engine is not None:
        ENGINES.check(engine, "engine")
    for key, value in (("threads", threads), ("batch_size", batch_size)):
        if value is not None:
            check_count(key, value)


def check_depth(amount: float | None, keep: Keep | None, by: str) -> None:
    """Checks arguments as far as they can be without the model. Raises UserError."""
    if (amount is None) == (keep is None):
        found = "neither is" if amount is None else "both are"
        fix = "amount=0.5 with keep=null, or keep=3 with amount=null"
        raise UserError(f"amount or keep must be given, and {found}", key="keep", value=keep, fix=fix)
    if amount is not None:
        check_share("amount", amount)
    check_choice("by", by, ORDERS)
    many = isinstance(keep, (list, tuple))
    if many and not (keep and all(type(k) in (int, str) for k in keep)):
        raise UserError(f"{keep!r} lists no blocks", key="keep", value=keep, fix="places or names: [0, 2, 4]")
    if keep is not None and not many and (type(keep) is not int or keep < 0):
        raise UserError(f"{keep!r} is no number of blocks", key="keep", value=keep, fix="3, or a list: [0, 2, 4]")
