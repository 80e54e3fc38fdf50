import pytest

from scripts.sweep_kills import RECIPE


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a recipe in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path
