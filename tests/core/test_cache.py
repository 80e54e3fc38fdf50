"""Files and folders that appear whole, for everyone whom the umask lets read."""

import os
import stat

import pytest

from optkit.core.cache import kept, new_folder, read_json, write_json
from optkit.core.errors import UserError


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_who_may_read_what_is_kept_is_as_the_umask_says(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))

    def make(folder):
        (folder / "own").touch(mode=0o600)

    folder = kept("kind", "key", make)
    assert (_mode(folder), _mode(folder / "own")) == (0o750, 0o640)
    write_json(tmp_path / "a.json", {"b": 1}, key="out")
    assert _mode(tmp_path / "a.json") == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", 1, key="out")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object(), key="out")
    assert read_json(tmp_path / "a.json") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_is_removed(tmp_path):
    def fail():
        with new_folder(tmp_path / "a", key="out") as folder:
            (folder / "b").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="out: cannot write to"):
        write_json(tmp_path / "file" / "a.json", 1, key="out")
    with pytest.raises(UserError, match="out: cannot write to"), new_folder(tmp_path / "file" / "a", key="out"):
        pass


def test_a_damaged_file_is_made_anew_and_the_log_says_why(tmp_path, caplog):
    assert read_json(tmp_path / "none.json") is None
    assert not caplog.records
    (tmp_path / "torn.json").write_text("{")
    assert read_json(tmp_path / "torn.json") is None
    assert "torn.json cannot be read, so it is made anew: Expecting property name" in caplog.text
