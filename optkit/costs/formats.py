"""Files of traffic: CSV of timestamps or of counts, access logs, and Prometheus range exports."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.costs.synthetic import spread
from optkit.costs.traffic import Times, Tokens, Traffic

TIME = ("timestamp", "time", "@timestamp", "ts", "datetime", "date", "time_iso8601", "msec")
COUNT = ("count", "requests", "num_requests")
PROMPT = ("prompt_tokens", "contexttokens", "input_tokens", "request_tokens")
OUTPUT = ("output_tokens", "generatedtokens", "completion_tokens", "response_tokens")
COMMON = re.compile(r"^\S+ \S+ .*?\[(\d{2}/\w{3}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\] ")
MONTHS = dict(zip("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), range(1, 13), strict=True))
SECOND = 1.0
LATEST_S = 1e11  # the year 5138; larger numbers are milliseconds or less
WHOLE = 1e-6  # times that far from whole seconds are of a log that counts in seconds


def read_traffic(path: Path, seed: int) -> Traffic:
    """The traffic in a file, whose format is told from its first bytes.

    Times are seconds or ISO 8601; without a time zone they are UTC. Where a file counts requests in minutes, or gives
    times in whole seconds, requests are spread at random within them.

    Raises:
        UserError: no such file, a line that cannot be read, times out of order, or a count that is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"cannot read {path}: {reason}", key="traffic", value=str(path)) from error
    start = text.lstrip()[:1]
    if not start:
        raise UserError("an empty file", key=str(path), fix="give a log or a CSV file of requests")
    if start in "{[":
        data = _one_json(text)
        return _prometheus(data, path, seed) if data is not None else _json_lines(text, path, seed)
    return _common(text, path, seed) if COMMON.match(text.lstrip()) else _csv(text, path, seed)


def _csv(text: str, path: Path, seed: int) -> Traffic:
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader)]
    time, count = _column(header, TIME), _column(header, COUNT)
    if time is None:
        fix = f"name its column of times one of {', '.join(TIME)}"
        raise UserError("no column of times", key=f"{path}:1", value=",".join(header), fix=fix)
    rows = [row for row in reader if row]
    if not rows:
        raise UserError("no requests", key=str(path), fix="give a log or a CSV file of requests")
    try:
        times = _seconds([row[time] for row in rows], str(path), 2)
        if count is not None:
            return _counted(times, _numbers(rows, count, path), path, seed)
        places = [_column(header, names) for names in (PROMPT, OUTPUT)]
        tokens = [None if place is None else _tokens([row[place] for row in rows], path, 2) for place in places]
    except IndexError:
        line = next(n for n, row in enumerate(rows, 2) if len(row) < len(header))
        raise UserError("fewer columns than the header", key=f"{path}:{line}", fix="complete the line") from None
    _check_order(times, path, 2)
    return _of_times(times, path, seed, *tokens)


def _common(text: str, path: Path, seed: int) -> Traffic:
    """An access log in the common or combined format. Its lines come as requests end, so they are sorted."""
    times = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found = COMMON.match(line)
            if found is None:
                raise UserError("not a line of an access log", key=f"{path}:{number}", value=line[:80])
            try:
                times.append(_of_log(found[1]))
            except (KeyError, ValueError):
                raise UserError(f"{found[1]} is not a time", key=f"{path}:{number}", value=line[:80]) from None
    return _of_times(np.sort(np.array(times)), path, seed)


def _of_log(text: str) -> float:
    """Seconds of a time such as ``10/Oct/2000:13:55:36 -0700``."""
    clock = [int(text[a:b]) for a, b in ((7, 11), (0, 2), (12, 14), (15, 17), (18, 20))]
    zone = (int(text[22:24]) * 3600 + int(text[24:26]) * 60) * (-1 if text[21] == "-" else 1)
    year, day, hour, minute, second = clock
    return datetime(year, MONTHS[text[3:6]], day, hour, minute, second, tzinfo=UTC).timestamp() - zone


def _json_lines(text: str, path: Path, seed: int) -> Traffic:
    """An access log of JSON lines, sorted as one in the common format is."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                entry = json.loads(line)
                entries.append({str(key).lower(): value for key, value in entry.items()})
            except (ValueError, AttributeError):
                raise UserError("not a JSON object", key=f"{path}:{number}", value=line[:80]) from None
    key = _column(list(entries[0]), TIME)
    if key is None:
        fix = f"name it one of {', '.join(TIME)}"
        raise UserError("no key for the time", key=f"{path}:1", value=",".join(entries[0]), fix=fix)
    name = list(entries[0])[key]
    if missing := [n for n, entry in enumerate(entries, 1) if name not in entry]:
        raise UserError(f"no '{name}'", key=f"{path}:{missing[0]}", fix="complete the line")
    times = _seconds([entry[name] for entry in entries], str(path), 1)
    order = np.argsort(times, kind="stable")
    names = [next((n for n in known if all(n in entry for entry in entries)), None) for known in (PROMPT, OUTPUT)]
    tokens = [None if n is None else _tokens([entry[n] for entry in entries], path, 1)[order] for n in names]
    return _of_times(times[order], path, seed, *tokens)


def _prometheus(data: Any, path: Path, seed: int) -> Traffic:
    """The answer of ``/api/v1/query_range`` to a query for requests a second; several series are added."""
    try:
        series = data["data"]["result"]
        names = [one["metric"].get("__name__", "") for one in series]
        points = [one["values"] for one in series]
        times = np.array([float(t) for t, _ in points[0]])
        rates = np.sum([[float(value) for _, value in one] for one in points], axis=0)
        same = all([float(t) for t, _ in one] == times.tolist() for one in points)
    except (KeyError, TypeError, ValueError, IndexError):
        fix = "export /api/v1/query_range, resultType matrix"
        raise UserError("not a Prometheus range export", key=str(path), fix=fix) from None
    if counters := [name for name in names if name]:
        fix = f"export sum(rate({counters[0]}[1m]))"
        raise UserError(f"{counters[0]} is a counter, not requests a second", key=str(path), fix=fix)
    if not same:
        raise UserError("its series have different times", key=str(path), fix="export their sum")
    step = _step(times, lambda place: str(path))
    if bad := np.flatnonzero(~np.isfinite(rates) | (rates < 0)).tolist():
        where = datetime.fromtimestamp(times[bad[0]], UTC).isoformat()
        raise UserError(f"no rate at {where}", key=str(path), fix="export a range without gaps")
    counts = np.random.default_rng(seed).poisson(rates * step)
    return _filled(counts, times - times[0], step, path, seed)


def _counted(times: Times, counts: Tokens, path: Path, seed: int) -> Traffic:
    """Requests counted in steps of equal length."""
    if bad := np.flatnonzero(counts < 0).tolist():
        raise UserError(f"a count of {counts[bad[0]]}", key=f"{path}:{bad[0] + 2}", fix="0 or more")
    _check_order(times, path, 2)
    return _filled(counts, times - times[0], _step(times, lambda place: f"{path}:{place + 3}"), path, seed)


def _step(times: Times, where: Callable[[int], str]) -> float:
    """The time from count to count, which is the same throughout; ``where`` names the place behind a count."""
    if times.size < 2:
        raise UserError("fewer than two counts", key=where(0), fix="give a longer range")
    steps = np.diff(times)
    step = float(np.quantile(steps, 0.5, method="lower"))
    if step <= 0:
        raise UserError("counts at the same time", key=where(0), fix="add them up")
    if bad := np.flatnonzero(np.abs(steps - step) > 0.01 * step).tolist():
        at = datetime.fromtimestamp(times[bad[0]], UTC).isoformat()
        message = f"a gap: {steps[bad[0]]:g} s behind {at}, where counts are {step:g} s apart"
        raise UserError(message, key=where(bad[0]), fix="add what is missing, with 0 where nothing came")
    return step


def _filled(counts: NDArray[np.int64], starts: Times, step: float, path: Path, seed: int) -> Traffic:
    if not counts.sum():
        raise UserError("no requests", key=str(path), fix="give a log or a CSV file of requests")
    return Traffic(path.name, spread(counts, starts, step, seed), starts.size * step)


def _of_times(
    times: Times, path: Path, seed: int, prompt: Tokens | None = None, output: Tokens | None = None
) -> Traffic:
    if times.size < 2 or times[-1] == times[0]:
        raise UserError("fewer than two times", key=str(path), fix="give a longer log")
    if np.all(np.abs(times - np.round(times)) < WHOLE):
        starts, counts = np.unique(np.round(times), return_counts=True)
        return Traffic(
            path.name,
            spread(counts, starts - starts[0], SECOND, seed),
            float(starts[-1] - starts[0]) + SECOND,
            prompt,
            output,
        )
    lasts = float(times[-1] - times[0])
    return Traffic(path.name, times - times[0], lasts * times.size / (times.size - 1), prompt, output)


def _check_order(times: Times, path: Path, first: int) -> None:
    if bad := np.flatnonzero(np.diff(times) < 0).tolist():
        at = datetime.fromtimestamp(times[bad[0] + 1], UTC).isoformat()
        raise UserError(f"{at} comes after a later time", key=f"{path}:{bad[0] + 1 + first}", fix="sort it by time")


def _seconds(values: Sequence[Any], where: str, first: int) -> Times:
    """Seconds since 1970 of numbers or of ISO 8601 times."""
    read = _finite if values and _is_number(values[0]) else _iso
    found = np.array(list(_each(values, read, where, first)), np.float64)
    if late := np.flatnonzero(found > LATEST_S).tolist():
        value, fix = values[late[0]], "divide it by 1000, if it is in milliseconds"
        raise UserError(f"{value} is no time in seconds", key=f"{where}:{late[0] + first}", value=value, fix=fix)
    return found


def _each(values: Sequence[Any], read: Callable[[Any], float], where: str, first: int) -> Iterable[float]:
    for number, value in enumerate(values, first):
        try:
            yield read(value)
        except (TypeError, ValueError, AttributeError, OverflowError):
            fix = "seconds, or ISO 8601 such as 2026-11-01T12:00:00"
            raise UserError(f"{value!r} is not a time", key=f"{where}:{number}", value=value, fix=fix) from None


def _iso(text: str) -> float:
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _numbers(rows: Sequence[Sequence[str]], column: int, path: Path) -> Tokens:
    return _whole([row[column] for row in rows], path, 2)


def _tokens(values: Sequence[Any], path: Path, first: int) -> NDArray[np.int64]:
    found = _whole(values, path, first)
    if bad := np.flatnonzero(found < 0).tolist():
        raise UserError(f"{found[bad[0]]} tokens", key=f"{path}:{bad[0] + first}", fix="0 or more")
    return found


def _whole(values: Sequence[Any], path: Path, first: int) -> NDArray[np.int64]:
    """Whole numbers; raises UserError, with the line, for anything else."""
    found = []
    for number, value in enumerate(values, first):
        try:
            found.append(int(float(value)))
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{value!r} is not a whole number", key=f"{path}:{number}", value=value) from None
    return np.array(found, np.int64)


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((place for place, name in enumerate(header) if name in names), None)


def _one_json(text: str) -> Any:
    """A file that is one JSON value with data in it; None for a log of JSON lines."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if not isinstance(data, dict) or "data" in data else None
