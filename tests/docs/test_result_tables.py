"""A table of figures is written from a ledger, or says when and how it was made."""

import re

from tests.docs.blocks import PAGES, ROOT

TABLE = re.compile(r"((?:^\|.*\n)+)\n?(.*)", re.MULTILINE)
FROM_LEDGER = re.compile(r"<!-- results: .*?<!-- end -->", re.DOTALL)
TYPED = re.compile(
    r"\*(?:The tables were t|T)yped on 2026-\d\d-\d\d \(commits? [0-9a-f]{7}.*no (?:script or )?ledger kept\."
)
FIGURE = re.compile(r"[-+]?\d[\d.,]*(%| |$)")
# tables that were typed from runs whose ledgers are gone; a new table comes from a ledger
TYPED_TABLES = {
    "docs/distillation.md": 4,
    "docs/examples.md": 2,
    "docs/kinds.md": 1,
    "docs/measuring.md": 2,
    "docs/pruning-coverage.md": 3,
    "docs/pruning.md": 8,
    "docs/quantization-coverage.md": 2,
    "docs/quantization.md": 5,
    "docs/transformers.md": 2,
}


def has_figures(table):
    """Whether most cells behind the first column begin with a figure."""
    cells = [cell.strip() for line in table.splitlines()[2:] for cell in line.strip("|").split("|")[1:]]
    filled = [cell for cell in cells if cell]
    return bool(filled) and sum(bool(FIGURE.match(cell)) for cell in filled) > len(filled) / 2


def typed_tables(text):
    """Tables of figures that no script writes, each with the line after it."""
    return [(table, after) for table, after in TABLE.findall(FROM_LEDGER.sub("", text)) if has_figures(table)]


def test_no_further_table_is_typed():
    pages = [page for page in PAGES if page != ROOT / "docs/results/index.md"]
    found = {str(page.relative_to(ROOT)): len(typed_tables(page.read_text())) for page in pages}
    assert {page: count for page, count in found.items() if count} == TYPED_TABLES


def test_a_typed_table_says_when_it_was_made():
    for page in TYPED_TABLES:
        text = (ROOT / page).read_text()
        if "*The tables were typed on" in text:
            assert TYPED.search(text), page
            continue
        assert [table.splitlines()[0] for table, after in typed_tables(text) if not TYPED.match(after)] == [], page
