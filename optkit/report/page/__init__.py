"""The page: one file that opens offline, holds every chart and every figure, and is computed from ledgers alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from optkit import __version__
from optkit.report.page.content import Section
from optkit.report.page.runs import open_runs
from optkit.report.page.sections import sections
from optkit.report.page.summary import about, shown, side_by_side, title, warnings

__all__ = ["render_page"]

HERE = Path(__file__).parent


def render_page(folders: Sequence[Path], p99_limit: float | None = None) -> str:
    """One HTML page of one or more runs; ``p99_limit`` (ms) instead of the one that each run was made with.

    Whatever a ledger says is data: it is escaped where it is text, and the page's content security policy lets no
    script run but its own, and nothing be fetched.

    Raises:
        UserError: a folder that holds no ledger, or an empty one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    runs = open_runs(folders, p99_limit)
    made = sections(runs)
    scripts = [_inline(_vega()), _inline((HERE / "page.js").read_text())]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        version=__version__,
        title=title(runs),
        about=about(runs),
        runs=[shown(run) for run in runs],
        side_by_side=side_by_side(runs),
        warnings=warnings(runs),
        sections=made,
        charts=_json(_charts(made)),
        css=Markup((HERE / "page.css").read_text()),
        vega=Markup(scripts[0]),
        script=Markup(scripts[1]),
        script_hashes=Markup(" ".join(map(_hash, scripts))),
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, the versions that Altair draws for."""
    from vl_convert import javascript_bundle

    return javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _charts(made: Sequence[Section]) -> dict[str, Any]:
    """Specifications by the id that the template gives each chart."""
    return {
        f"{section.id}-{outer}-{inner}": figure.chart
        for section in made
        for outer, group in enumerate(section.groups)
        for inner, figure in enumerate(group.figures)
        if figure.chart is not None
    }


def _json(data: Any) -> Any:
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(data, allow_nan=False, separators=(",", ":"))


def _inline(script: str) -> str:
    """A script that can stand in a page: nothing in it ends its element."""
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
