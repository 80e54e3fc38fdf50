"""Quantities as people write them: a number with its unit, such as ``50 ms`` or ``0.0425 USD/hour``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from optkit.core.errors import UserError

Units = Mapping[str, float]
SECONDS: Units = {"ms": 1e-3, "s": 1.0, "min": 60.0, "hour": 3600.0, "hours": 3600.0, "day": 86_400.0, "days": 86_400.0}
GIGABYTES: Units = {"MB": 1e-3, "GB": 1.0, "MiB": 2**20 / 1e9, "GiB": 2**30 / 1e9}
RATES: Units = {"/s": 1.0, "/min": 1 / 60, "/hour": 1 / 3600, "/day": 1 / 86_400}
DOLLARS_AN_HOUR: Units = {"USD/hour": 1.0}
DOLLARS_A_GB_SECOND: Units = {"USD/GB-second": 1.0, "USD/GiB-second": 1e9 / 2**30}
DOLLARS_A_REQUEST: Units = {"USD/request": 1.0, "USD/million": 1e-6}
DOLLARS_A_GB: Units = {"USD/GB": 1.0}


def quantity(value: object, units: Units, key: str) -> float:
    """A number with its unit in the unit whose factor is 1.

    Args:
        value: as it was written.
        units: the units that it may have, with their factors.
        key: where it stands, for messages.

    Raises:
        UserError: no number, a number below 0, or a unit that is missing or not one of these.
    """
    example = f"such as 1{_spaced(next(iter(units)))}"
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S.*?)?\s*", str(value))
    if found is None or isinstance(value, bool):
        raise UserError(f"{value!r} is not a quantity", key=key, value=value, fix=example)
    unit = found[2]
    if unit not in units:
        known = ", ".join(units)
        problem = f"'{unit}' is not its unit" if unit else f"{value!r} has no unit"
        raise UserError(problem, key=key, value=value, fix=f"one of {known}, {example}")
    try:
        number = float(found[1])
    except ValueError:
        raise UserError(f"{value!r} is not a quantity", key=key, value=value, fix=example) from None
    if not math.isfinite(number):
        raise UserError(f"{value!r} is too large", key=key, value=value, fix=example)
    return number * units[unit]


def _spaced(unit: str) -> str:
    return unit if unit.startswith("/") else f" {unit}"
