import json
from dataclasses import replace

import pytest

from optkit.core.ledger import Ledger
from optkit.report.rows import rows
from scripts import result_tables
from scripts.results import Results
from tests.report.runs import chain

MACHINE = {
    "cpu": {"name": "A Processor", "isa": ["avx2", "sse"]},
    "packages": {"torch": "2.14.1"},
    "threads": 2,
    "platform": "Linux-6.1-host",
}


def run_of(tmp_path, change=lambda record: record):
    """A run folder with a chain of four variants."""
    folder = tmp_path / "runs" / "quickstart-1"
    folder.mkdir(parents=True)
    for record in chain():
        Ledger(folder / "ledger.jsonl").append(change(replace(record, recipe="quickstart", environment=MACHINE)))
    return folder


@pytest.fixture
def root(tmp_path):
    """A repository with a README that includes two tables."""
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    wide = "<!-- results: quickstart wide -->\n<!-- end -->"
    (root / "README.md").write_text(f"# A\n\n<!-- results: quickstart -->\nold\n<!-- end -->\n\nb\n\n{wide}\n")
    return root


def test_documents_are_what_the_ledgers_say():
    assert result_tables.main(["--check"]) == 0


def test_the_readme_fits_in_120_lines_and_has_one_table_of_four_columns():
    text = (result_tables.ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    (header,) = [
        line for line, below in zip(text.splitlines(), text.splitlines()[1:], strict=False) if below.startswith("|--")
    ]
    assert header.count("|") == 5


def test_a_run_is_added_and_shown(root, tmp_path):
    result_tables.main(["add", str(run_of(tmp_path))], root)
    ledgers = root / result_tables.LEDGERS
    assert (ledgers / "quickstart.txt").read_text() == "optkit run quickstart\n"
    first = json.loads((ledgers / "quickstart.jsonl").read_text().splitlines()[0])
    assert first["environment"]["platform"] == "Linux"
    readme = (root / "README.md").read_text()
    assert "old" not in readme
    assert "| 0 train, eager | 95.0 | 1.00" in readme
    assert "| 3 quantize, inductor | 94.7 | 4.0" in readme
    assert "2 threads on A Processor (avx2); torch 2.14.1." in readme
    assert readme.count("| 2 recover | eager | 8 |") == 1  # the wide table
    index = (root / "docs/results/index.md").read_text()
    assert "```sh\noptkit run quickstart\n```" in index
    assert (root / "docs/results/quickstart.svg").is_file()
    assert result_tables.main(["--check"], root) == 0
    (root / "README.md").write_text(readme.replace("94.7", "99.9"))
    assert result_tables.main(["--check"], root) == 1


def test_times_that_cannot_be_trusted_are_left_out():
    found = [row | {"machine": "m", "caveat": "busy" if row["step"] == 3 else None} for row in rows(chain())]
    brief = result_tables.brief_table(found)
    assert "| 3 quantize, inductor | 94.7 | † |" in brief
    assert "| 2 recover, inductor | 94.8 | " in brief
    assert "† Left out" in brief
    assert "| 3 quantize | inductor | 8 | 94.7 [0.0, 100.0] | -0.3" in result_tables.wide_table(found)
    assert "| - | - | - |" in result_tables.wide_table(found)


def test_a_path_of_this_machine_is_not_kept(root, tmp_path):
    run = run_of(tmp_path, lambda record: replace(record, params={"teacher": "/home/me/run"}))
    with pytest.raises(SystemExit, match="names a path of this machine"):
        result_tables.main(["add", str(run)], root)


def test_rows_of_an_experiment_have_the_table_of_their_script(root, tmp_path):
    path = tmp_path / "cuts.jsonl"
    row = {"model": "resnet20", "engine": "eager", "amount": 0.3, "asked": 0.7, "refused": "too small"}
    Results(path, {"threads": 2}, "prune_latency_budget").add(row)
    (root / "README.md").write_text("<!-- results: cuts -->\n<!-- end -->\n")
    result_tables.main(["add", str(path), "--command", "python scripts/prune_latency_budget.py"], root)
    assert "| resnet20 | eager | | | 70% | refused: too small |" in (root / "README.md").read_text()
    head, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(head) | {"script": "os"}) + "\n" + rest)
    with pytest.raises(SystemExit, match="of no script that makes a table"):
        result_tables.main(["add", str(path)], root)


def test_a_table_without_a_ledger_is_an_error(root):
    with pytest.raises(SystemExit, match="there is no ledger"):
        result_tables.filled("<!-- results: other -->\n<!-- end -->", root / result_tables.LEDGERS)
