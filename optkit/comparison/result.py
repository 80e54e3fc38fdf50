"""What a comparison gives: a table, a data frame, a picture and a verdict."""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.comparison.requests import key, where
from optkit.report.caveats import MARK, mark
from optkit.report.csv_table import flat_rows
from optkit.report.tables import Column, fitted

if TYPE_CHECKING:
    import altair
    import pandas

Row = dict[str, Any]
WIDTH = 100


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models on engines, compared with a reference. It prints as a table.

    Attributes:
        rows: one for each batch size, model and engine; of models that generate also for each prompt length, and for
            ``prefill`` and ``decode``. ``speedup`` and ``score_delta`` are against the row of the same requests with
            ``reference``: the reference on its first engine. ``speedup_same_engine`` is against the
            reference on the same engine. ``caveat`` says why a timing cannot be trusted, ``not_run`` why an engine did
            not run a model.
        reference: the name of the model that the others are compared with.
        percent: whether scores say which examples are right, so that they are shown in percent.
    """

    rows: list[Row]
    reference: str
    percent: bool = False

    def table(self, width: int = WIDTH) -> str:
        """The rows as text, with what qualifies them and the verdict.

        Args:
            width: characters in a line. A narrower table has fewer columns; `to_frame` has all.
        """
        from rich.console import Console

        text = io.StringIO()
        shown = fitted(self._columns(), self.rows, width, "")
        for column in shown.columns[:2]:
            column.justify = "left"
        # plain text, also in a notebook, where rich would display it
        Console(file=text, width=width, force_terminal=False, force_jupyter=False).print(shown)
        lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
        fill = partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)
        return "\n".join([*lines, "", *map(fill, self._notes()), "", *map(fill, self.verdict.splitlines())]) + "\n"

    __repr__ = table

    def to_frame(self) -> pandas.DataFrame:
        """A data frame with every column; an interval is two, ``NAME_low`` and ``NAME_high``."""
        import pandas

        return pandas.DataFrame(flat_rows(self.rows))

    def plot(self) -> altair.TopLevelMixin:
        """An Altair chart of speedups, and of the changes of scores where there are any, with their intervals.

        Raises:
            UserError: the extra ``report`` is not installed.
        """
        from optkit.comparison.chart import chart

        return chart(self.ran, self.against, self.percent)

    @property
    def ran(self) -> list[Row]:
        """The rows that were run."""
        return [row for row in self.rows if not row["not_run"]]

    @property
    def against(self) -> str:
        """What speedups and changes refer to: the reference, and its first engine."""
        return place(next(row for row in self.ran if row["reference"]))

    @property
    def verdict(self) -> str:
        """For each kind of request, what is fastest and how its score changes. Marked timings do not count."""
        lines = [self._sentence(requests) for requests in self._requests()]
        doubts = dict.fromkeys((_lower(where(row)), row["caveat"]) for row in self.ran if row["caveat"])
        if doubts:
            listed = "; ".join(f"{there} ({caveat})" for there, caveat in doubts)
            lines.append(
                f"{MARK} Not counted, for these timings cannot be trusted: {listed}. Compare again when it is quiet."
            )
        return "\n".join(filter(None, lines))

    def _repr_html_(self) -> str:
        columns = self._columns()
        head = "".join(f"<th>{html.escape(header)}</th>" for header, _, _ in columns)
        cells = ("".join(f"<td>{html.escape(cell(row))}</td>" for _, cell, _ in columns) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        lines = [*self._notes(), *self.verdict.splitlines()]
        below = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"

    def _sizes(self) -> list[int]:
        return list(dict.fromkeys(row["batch_size"] for row in self.rows))

    def _requests(self) -> list[tuple[Any, ...]]:
        return list(dict.fromkeys(key(row) for row in self.rows))

    def _columns(self) -> list[Column]:
        """The columns that these rows have."""
        several = len({row["engine"] for row in self.ran}) > 1
        scored = any("score" in row for row in self.ran)
        lengths = {row["prompt_tokens"] for row in self.rows if "prompt_tokens" in row}
        of_int8 = any(row["int8_share"] for row in self.ran)
        points, unit = ("change, points", "score %") if self.percent else ("change", "score")
        score, change = (_percent, _points) if self.percent else (_score, _change)
        return [
            ("model", lambda row: row["model"], 0),
            ("engine", lambda row: row["engine"], 0),
            *([("batch", lambda row: str(row["batch_size"]), 0)] if len(self._sizes()) > 1 else []),
            *([("prompt", lambda row: str(row["prompt_tokens"]), 0)] if len(lengths) > 1 else []),
            *([("workload", lambda row: row["workload"], 0)] if lengths else []),
            ("p50 ms", _shown("latency_p50_ms", _latency), 60),
            *([("tokens/s", _shown("tokens_per_second", _latency), 70)] if lengths else []),
            ("speedup", _shown("speedup", _times, "not run"), 0),
            *([("same engine", _shown("speedup_same_engine", _times), 99)] if several else []),
            *([("int8 %", _shown("int8_share", lambda x: f"{100 * x:.0f}", marked=False), 98)] if of_int8 else []),
            *([(unit, _shown("score", score, marked=False), 0)] if scored else []),
            *([(points, _shown("score_delta", change, marked=False), 50)] if scored else []),
        ]

    def _notes(self) -> list[str]:
        """What the figures mean, and what did not run."""
        (threads,) = {row["threads"] for row in self.rows}
        sizes = self._sizes()
        where = f"{threads} threads" + (f", batch size {sizes[0]}" if len(sizes) == 1 else "")
        changes = "Speedup and change are" if any("score" in row for row in self.ran) else "Speedup is"
        notes = [
            f"{changes} against {self.against}, in the same rounds; brackets are 95% intervals. {where.capitalize()}."
        ]
        failed: dict[str, dict[str, None]] = {}
        for row in self.rows:
            if row["not_run"]:
                failed.setdefault(row["not_run"], {})[place(row)] = None
        return notes + [f"Not run: {', '.join(names)}: {reason}." for reason, names in failed.items()]

    def _sentence(self, requests: tuple[Any, ...]) -> str:
        trusted = [row for row in self.ran if key(row) == requests and not row["caveat"]]
        others = [row for row in trusted if not row["reference"]]
        if not others:
            return ""
        at, best = where(others[0]), max(others, key=lambda row: row["speedup_ci"][0])
        if best["speedup_ci"][0] <= 1:
            return f"{at} nothing is measurably faster than {self.against}."
        text = f"{at} the fastest is {place(best)}: {_shown('speedup', _times)(best)} times as fast as {self.against}."
        if "score_delta" not in best:
            return text
        show, unit = (_points, " points") if self.percent else (_change, "")
        text += f" Its score changes by {_shown('score_delta', show)(best)}{unit}"
        interval = best["score_delta_ci"]
        return text + (", which cannot be told from none." if interval and interval[0] <= 0 <= interval[1] else ".")


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def place(row: Row) -> str:
    """A row's model and engine, in words."""
    return f"{row['model']} on {row['engine']}"


def _shown(name: str, show: Callable[[float], str], absent: str = "-", *, marked: bool = True) -> Callable[[Row], str]:
    """A figure of a row with its interval where it has one, marked where a time cannot be trusted."""

    def cell(row: Row) -> str:
        if row.get(name) is None or (name == "score_delta" and row["reference"]):
            return absent if row["not_run"] else "-"
        low, high = row.get(f"{name}_ci") or (0, 0)
        limits = f" [{show(low)}, {show(high)}]" if high > low and name not in ("latency_p50_ms", "score") else ""
        return show(row[name]) + (mark(row) if marked else "") + limits

    return cell


def _times(value: float) -> str:
    return f"{value:.2f}"


def _latency(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _score(value: float) -> str:
    return f"{value:.4g}"


def _change(value: float) -> str:
    return f"{value:+.3g}"
