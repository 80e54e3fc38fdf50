"""Traffic as it is named on the command line: a kind or a file, and options behind a colon.

``poisson:rate=10/s``, ``daily:rate=1000000/day,peak=2``, ``access.log``, ``trace.csv:repeat=168,rate=20/s``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from optkit.core.errors import UserError, did_you_mean
from optkit.costs.formats import read_traffic
from optkit.costs.synthetic import bursty, daily, poisson, weekly
from optkit.costs.traffic import HOUR, Traffic
from optkit.costs.units import RATES, quantity

KEY = "traffic"
DEFAULTS: dict[str, dict[str, float]] = {
    "poisson": {"hours": 24},
    "bursty": {"hours": 24, "burst": 5, "share": 0.1, "length": 60},
    "daily": {"hours": 24, "peak": 2},
    "weekly": {"hours": 168, "peak": 2, "weekend": 0.5},
}
MAKERS: dict[str, Callable[..., Traffic]] = {"poisson": poisson, "bursty": bursty, "daily": daily, "weekly": weekly}
COMMON = ("rate", "seed", "prompt_tokens", "output_tokens")
OF_FILE = ("repeat", *COMMON)
MOST = 50_000_000  # requests, which take a few GB


def parse_traffic(spec: str) -> Traffic:
    """The traffic that a specification names.

    Kinds and their options: ``poisson``; ``bursty`` (``burst`` times the mean rate in a ``share`` of the time, for
    ``length`` seconds); ``daily`` (``peak`` times the mean rate at 14:00); ``weekly`` (``peak``, and ``weekend``: a
    weekend day's share of a working day). All take ``rate`` (with its unit) and ``hours``. A file takes ``rate``, to
    which it is scaled, and ``repeat``. All take ``seed``, and ``prompt_tokens`` with ``output_tokens``.

    Raises:
        UserError: no such kind or file, an option that it does not have, or a value out of range.
    """
    name, options = _split(spec)
    if name in MAKERS:
        return _made(name, options)
    if not Path(name).is_file():
        fix = f"{did_you_mean(name, MAKERS)} Or give a file"
        raise UserError(f"no traffic '{name}'", key=KEY, value=spec, fix=fix)
    _check(options, OF_FILE)
    seed = _whole(options, "seed", 0)
    found = read_traffic(Path(name), seed)
    repeat = _whole(options, "repeat", 1)
    _check_size(len(found) * repeat)
    if repeat > 1:
        found = found.repeated(repeat)
    if "rate" in options:
        rate = quantity(options["rate"], RATES, f"{KEY}.rate")
        _check_size(rate * found.seconds)
        found = found.scaled(rate, seed)
    return _with_tokens(found, options)


def _split(spec: str) -> tuple[str, dict[str, str]]:
    if Path(spec).is_file():
        return spec, {}
    name, _, rest = spec.partition(":") if spec.partition(":")[0] in MAKERS else _last_colon(spec)
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"'{part}' is no option", key=KEY, value=spec, fix="such as poisson:rate=10/s,hours=24")
        options[key.strip()] = value.strip()
    return name, options


def _last_colon(spec: str) -> tuple[str, str, str]:
    name, colon, rest = spec.rpartition(":")
    return (name, colon, rest) if colon and "=" in rest else (spec, "", "")


def _made(name: str, options: Mapping[str, str]) -> Traffic:
    defaults = DEFAULTS[name]
    _check(options, (*COMMON, *defaults))
    if "rate" not in options:
        raise UserError("no rate", key=f"{KEY}.rate", fix=f"{name}:rate=10/s")
    rate = quantity(options["rate"], RATES, f"{KEY}.rate")
    values = {key: _number(options, key, default) for key, default in defaults.items()}
    seconds = values.pop("hours") * HOUR
    _check_size(rate * seconds)
    found = MAKERS[name](rate, seconds, _whole(options, "seed", 0), **values)
    return _with_tokens(found, options)


def _with_tokens(traffic: Traffic, options: Mapping[str, str]) -> Traffic:
    if not len(traffic):
        raise UserError("no request comes", key=KEY, fix="a higher rate, or a longer time")
    given = [key for key in ("prompt_tokens", "output_tokens") if key in options]
    if len(given) == 1:
        raise UserError(f"{given[0]} alone", key=KEY, fix="give prompt_tokens and output_tokens")
    if given:
        return traffic.with_tokens(_whole(options, "prompt_tokens", 1), _whole(options, "output_tokens", 1))
    return traffic


def _check(options: Mapping[str, str], known: tuple[str, ...]) -> None:
    for key in options:
        if key not in known:
            raise UserError(f"no option '{key}'", key=KEY, value=key, fix=did_you_mean(key, known))


def _check_size(requests: float) -> None:
    if requests > MOST:
        raise UserError(f"{requests:,.0f} requests", key=KEY, fix=f"at most {MOST:,}: a lower rate or a shorter time")


def _number(options: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(options.get(key, default))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"'{options[key]}' is not a number above 0", key=f"{KEY}.{key}", value=options[key])
    return value


def _whole(options: Mapping[str, str], key: str, default: int) -> int:
    text = options.get(key, str(default))
    if not text.isdecimal() or (key != "seed" and int(text) == 0):
        raise UserError(f"'{text}' is not a whole number", key=f"{KEY}.{key}", value=text, fix="1 or more")
    return int(text)
