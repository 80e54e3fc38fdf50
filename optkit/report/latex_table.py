"""Rows as a LaTeX table in the style of booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from optkit.report.rows import Row
from optkit.report.tables import cells


def latex_table(rows: Sequence[Row]) -> str:
    r"""A ``tabular`` of every column; the document needs ``\usepackage{booktabs}``."""
    import pandas

    headers, body = cells(rows)
    words = {"stage", "engine"}
    style = pandas.DataFrame(body, columns=headers).style.hide(axis="index")
    style = style.format(escape="latex").format_index(escape="latex", axis=1)
    align = "".join("l" if header in words else "r" for header in headers)
    return str(style.to_latex(hrules=True, column_format=align))
