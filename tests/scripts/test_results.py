import pytest

from scripts.results import Results


def test_rows_are_there_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    Results(path, {"depth": 20}).add({"arm": "l1", "seed": 0})
    again = Results(path, {"depth": 20})
    assert again.rows == [{"arm": "l1", "seed": 0}]
    assert again.has(arm="l1", seed=0)
    assert not again.has(arm="l1", seed=1)


def test_rows_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    Results(path, {"depth": 20})
    with pytest.raises(SystemExit, match=r"other settings.*'depth': 20.*'depth': 56.*name another file"):
        Results(path, {"depth": 56})


def test_a_row_cut_short_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    Results(path, {}).add({"arm": "l1"})
    path.write_text(path.read_text() + '{"arm": "l2"}'[:7])
    results = Results(path, {})
    results.add({"arm": "fpgm"})
    assert [row["arm"] for row in Results(path, {}).rows] == ["l1", "fpgm"]


def test_without_a_file_rows_are_held_only():
    results = Results(None, {})
    results.add({"arm": "l1"})
    assert results.has(arm="l1")
