import json

import pytest

from optkit.core import kept_code as module
from optkit.core.kept_code import kept_code
from optkit.core.syntax import read_code

CONTENT = b"from own.a import f\nfrom . import b\n__all__ = ['b', 'f']"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    return tmp_path / "code"


def test_a_file_is_parsed_once_for_all_processes(cache, monkeypatch):
    first = kept_code(CONTENT, "own", True)
    assert first == read_code(CONTENT, "own", True)
    monkeypatch.setattr(module, "read_code", None)
    assert kept_code(CONTENT, "own", True) == first


@pytest.mark.parametrize("other", [(CONTENT + b"\n", "own", True), (CONTENT, "theirs", True), (CONTENT, "own", False)])
def test_another_file_or_place_is_read_anew(cache, other):
    kept_code(CONTENT, "own", True)
    assert kept_code(*other) == read_code(*other)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damaged", ["", "{}", "[]", json.dumps({"digest": "x", "imports": [1], "face": None})])
def test_a_damaged_file_of_the_cache_is_made_anew(cache, damaged):
    kept_code(CONTENT, "own", True)
    (file,) = cache.iterdir()
    file.write_text(damaged)
    assert kept_code(CONTENT, "own", True) == read_code(CONTENT, "own", True)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "file"))
    assert kept_code(CONTENT, "own", True) == read_code(CONTENT, "own", True)
