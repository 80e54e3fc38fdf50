import csv

import pytest

from optkit.core.errors import UserError
from optkit.tasks import TextFiles
from optkit.tasks.csv_files import as_numbers, read_csv

WORDS = [
    "NA",
    "null",
    "None",
    "nan",
    "N/A",
    "#N/A",
    "NULL",
    "n/a",
    "<NA>",
    "-nan",
    "True",
    "007",
    "1e3",
    " ",
    "2020-01-01",
    "inf",
]


def _read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    table = read_csv([tmp_path / "a.csv"])
    return {name: table.column(name).to_pylist() for name in table.column_names}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_cell_is_the_text_that_pythons_reader_finds(tmp_path, quoting):
    rows = [[word, str(n)] for n, word in enumerate(WORDS)]
    rows += [
        ["two\nlines", "a"],
        ['says "hi"', "b"],
        ["a, b", "c"],
        ["über 🙂", "d"],
        ["x" * 3_000_000, "e"],
        ["tab\t", " f "],
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, quoting=quoting).writerows([["text", "label"], *rows])
    table = read_csv([tmp_path / "a.csv"])
    assert table.column("text").to_pylist() == [row[0] for row in rows]
    assert table.column("label").to_pylist() == [row[1] for row in rows]


def test_only_an_empty_cell_is_missing(tmp_path):
    found = _read(tmp_path, 'text,label\n,1\n"",2\nx,\n')
    assert found == {"text": [None, None, "x"], "label": ["1", "2", None]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_a_byte_order_mark_and_other_line_ends_are_no_part_of_the_text(tmp_path, encoding, line):
    assert _read(tmp_path, f"text,label{line}a,1{line}", encoding) == {"text": ["a"], "label": ["1"]}


def test_quotes_within_a_cell_are_kept(tmp_path):
    assert _read(tmp_path, 'text\nsaid "so" twice\n')["text"] == ['said "so" twice']


def test_columns_of_several_files_are_joined_by_name(tmp_path):
    (tmp_path / "0.csv").write_text("text,label\na,1\n")
    (tmp_path / "1.csv").write_text("label,text,more\n2,b,x\n")
    table = read_csv([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert (table.column("text").to_pylist(), table.column("label").to_pylist()) == (["a", "b"], ["1", "2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label,label\na,1,2\n", "several columns named 'label'"),
        ("text,label\na\nb,2\n", "Expected 2 columns, got 1: a"),
        ("text,label\na,1,2\n", "Expected 2 columns, got 3: a,1,2"),
        ('text,label\n"a,1\n', "Expected 2 columns, got 1"),
        ("", "Empty CSV file"),
        (
            "text;label\na;0\n",
            "no column 'label'.*its only column is 'text;label': write the file with commas in place of ';'",
        ),
        ("text\tlabel\na\t0\n", r"write the file with commas in place of '\\t'"),
    ],
)
def test_broken_files_are_one_line_with_their_name(tmp_path, text, message):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        _ = TextFiles(path=str(tmp_path)).fingerprint
    assert "\n" not in str(caught.value)
    assert "train" in str(caught.value)


def test_another_encoding_is_one_line(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes("text,label\nüber,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot read .*train.csv: .*(UTF8|utf-8)"):
        _ = TextFiles(path=str(tmp_path)).fingerprint


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["0", "-1", "+2", " 3 ", "007"], [0, -1, 2, 3, 7]),
        (["1.0", "2.", "1e3", None], [1.0, 2.0, 1000.0, None]),
        (["nan"], None),
        (["inf"], None),
        (["1_000"], None),
        (["0x1"], None),
        (["1", "a"], None),
        ([], []),
    ],
)
def test_cells_that_are_numbers(cells, numbers):
    assert as_numbers(cells) == numbers


def test_a_class_named_none_is_a_class_and_the_words_for_nothing_are_texts(tmp_path):
    for name in ("train", "test"):
        rows = [[word, "None" if n % 2 else "null"] for n, word in enumerate(WORDS)]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *rows])
    task = TextFiles(path=str(tmp_path), vocab_size=512, max_length=16)
    assert task.classes == ["None", "null"]
    assert task._read[0]["test"].columns == (WORDS,)
    assert task._read[0]["test"].labels.tolist() == [1, 0] * 8
    assert task.facts()["empty_texts"]["test"] == 1  # the one of a blank


def test_a_test_split_whose_cells_are_all_minus_one_has_no_labels(tmp_path):
    for name, label in (("train", "good"), ("validation", "bad"), ("test", "-1")):
        rows = [[f"text {n}", "bad" if name == "train" and n % 2 else label] for n in range(40)]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *rows])
    task = TextFiles(path=str(tmp_path), vocab_size=512, max_length=16)
    assert (task.size("test"), task.classes) == (40, ["bad", "good"])
    assert next(task.batches("test", 1)).targets.tolist() == [0]


def test_a_broken_file_of_several_says_so(tmp_path):
    for name, text in (("train_0", "text,label\na,1\n"), ("train_1", "text,label\na\n"), ("test", "text,label\na,1\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    with pytest.raises(UserError, match="cannot read one of .*train_0.csv and 1 more: CSV parse error: Expected 2"):
        _ = TextFiles(path=str(tmp_path)).fingerprint
