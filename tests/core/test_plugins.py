"""Plug-ins by name: declared by packages, imported when they are asked for, and clear about what is wrong."""

import importlib
import sys

import pytest

from optkit.core.errors import UserError
from optkit.core.plugins import Plugins

GROUP = "optkit.things"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts packages on the path, each a module and the metadata that an installer would write."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(package, code, **entry_points):
        (tmp_path / f"{package}.py").write_text(code)
        folder = tmp_path / f"{package}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        del sys.modules[name]


def things():
    """A registry of numbers; the bundled one is pi."""
    return Plugins(GROUP, "thing", {"pi": "math:pi"}, lambda _, x: None if isinstance(x, float) else "it is no float")


def test_without_any_package_there_are_the_bundled_ones():
    assert dict(things()) == {"pi": 3.141592653589793}
    assert (things().package("pi"), things().added()) == ("optkit", [])


def test_names_are_known_without_an_import(install):
    install("thing_one", "VALUE = 1.0", one="thing_one:VALUE")
    found = things()
    assert (list(found), found.added()) == (["pi", "one"], ["one"])
    assert (found.source("one"), found.path("one")) == ("thing_one 1.2", "thing_one.VALUE")
    assert "thing_one" not in sys.modules
    assert found["one"] == 1.0
    assert "thing_one" in sys.modules


BROKEN = {
    "import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    "raise RuntimeError('no licence')": "RuntimeError: no licence",
    "VALU = 1.0": "AttributeError: module 'thing_broken' has no attribute 'VALUE'",
    "def f(:": "SyntaxError: invalid syntax (thing_broken.py, line 1)",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_package_that_cannot_be_imported_is_one_line_when_it_is_asked_for(install, code):
    install("thing_broken", code, broken="thing_broken:VALUE")
    found = things()
    assert found["pi"]
    with pytest.raises(UserError) as caught:
        found.find("broken", "stages.x.thing")
    assert caught.value.message == f"the thing 'broken' of thing_broken 1.2 cannot be imported: {BROKEN[code]}"


def test_a_thing_that_breaks_the_contract_is_refused(install):
    install("thing_text", "VALUE = 'text'", text="thing_text:VALUE")
    with pytest.raises(UserError, match="the thing 'text' of thing_text 1.2 cannot be used: it is no float"):
        things()["text"]


def test_two_packages_with_one_name_are_told(install):
    install("thing_one", "VALUE = 1.0", one="thing_one:VALUE", pi="thing_one:VALUE")
    install("thing_two", "VALUE = 2.0", one="thing_two:VALUE")
    with pytest.raises(UserError, match="several packages offer the thing 'one': .*thing_(one|two) 1.2, thing_"):
        things()["one"]
    with pytest.raises(UserError, match="several packages offer the thing 'pi': optkit, thing_one 1.2"):
        things()["pi"]


def test_an_unknown_name_suggests_those_of_packages(install):
    install("thing_one", "VALUE = 1.0", one="thing_one:VALUE")
    with pytest.raises(UserError, match=r"stages.x: no thing 'onne' \(did you mean 'one'\?\)"):
        things().find("onne", "stages.x")
    with pytest.raises(KeyError):
        things()["onne"]
    for odd in (None, ["one"], 1):
        assert odd not in things()
        with pytest.raises(UserError, match="no thing"):
            things().find(odd, "stages.x")


def test_a_name_of_a_package_that_is_gone_names_the_package():
    with pytest.raises(UserError, match="no thing 'one': it came with the package 'thing-one', which is not installed"):
        things().find("one", "file.json", "thing-one")
