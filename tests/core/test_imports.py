import importlib
import json
import logging
import sys
import textwrap

import pytest

from optkit.core import imports
from optkit.core.errors import UserError
from optkit.core.imports import digest, imported_sources
from optkit.core.instantiate import locate
from optkit.core.source_digest import code_of, code_of_module

OWN = "own_of_the_test"


def package(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / OWN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes files of a package and forgets what was imported of it, as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] in (OWN, "sibling_of_the_test")]:
            del sys.modules[name]

    def write(**files):
        package(tmp_path, {f"{name.replace('_in_', '/')}.py": text for name, text in files.items()})
        forget()
        return tmp_path

    yield write
    forget()


STATEMENTS = {
    "from . import": "from . import losses",
    "from .module import": "from .losses import kd",
    "import package.module": f"import {OWN}.losses",
    "import as": f"import {OWN}.losses as criterion",
    "from package import": f"from {OWN} import losses",
    "star": "from .losses import *",
    "in a function": "def apply():\n    from . import losses",
    "in a method": "class Stage:\n    def apply(self):\n        from .losses import kd",
    "under a condition": "try:\n    import no_such_package\nexcept ImportError:\n    from . import losses",
    "with a name that is no module": "from . import losses, VERSION",
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_every_kind_of_import_is_followed_to_the_helpers_helper(own, statement):
    files = {
        "__init__": "VERSION = 1",
        "stage": statement,
        "losses": "from .inner import softly",
        "inner": "softly = 1",
    }
    own(**files, unrelated="x = 1")
    before = code_of_module(f"{OWN}.stage")
    own(unrelated="x = 2")
    assert code_of_module(f"{OWN}.stage") == before
    own(inner="softly = 2")
    assert code_of_module(f"{OWN}.stage") != before
    names = {f"{OWN}.{name}" for name in ("stage", "losses", "inner")}
    assert set(imported_sources(f"{OWN}.stage").files) - {OWN} == names
    assert OWN not in sys.modules  # nothing was run


def test_what_only_type_checkers_import_is_left_out(own):
    own(__init__="", stage="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import losses", losses="")
    assert set(imported_sources(f"{OWN}.stage").files) == {f"{OWN}.stage"}


FACE = """
from .losses import kd as distill, other
from .heavy import everything
from . import tools

__all__ = ["distill", "everything", "other", "tools"]
VERSION = 1
"""
ALL_OF_IT = {"", "losses", "heavy", "tools"}


@pytest.mark.parametrize(
    ("statement", "reached"),
    [
        ("from . import distill", {"losses"}),
        ("from . import everything", {"heavy"}),
        ("from . import tools", {"tools"}),
        ("from .losses import kd", {"losses"}),
        ("from . import aside", {"aside"}),
        (f"from {OWN} import distill, aside", {"losses", "aside"}),
        (f"import {OWN}.aside as own_aside", {"aside"}),
        ("from . import VERSION", ALL_OF_IT),
        ("from . import no_such_name", ALL_OF_IT),
        ("from . import *", ALL_OF_IT),
        (f"import {OWN}", ALL_OF_IT),
        (f"import {OWN}.aside", {*ALL_OF_IT, "aside"}),
    ],
)
def test_a_name_that_a_package_passes_on_is_the_code_of_the_module_that_it_comes_from(own, statement, reached):
    own(__init__=FACE, stage=statement, losses="kd = other = 1", heavy="everything = 1", tools="", aside="")
    expected = {f"{OWN}.{name}" if name else OWN for name in {"stage", *reached}}
    assert set(imported_sources(f"{OWN}.stage").files) == expected


LAZY = """
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .losses import kd
    from .heavy import everything

__all__ = ["everything", "kd"]
_HOMES = dict.fromkeys(("kd", "everything"), "somewhere")

def __getattr__(name):
    return getattr(import_module(_HOMES[name]), name)
"""


@pytest.mark.parametrize("more", ["", "print()"])
def test_a_name_that_a_package_imports_when_it_is_asked_for_is_followed(own, more):
    own(__init__=LAZY + more, stage="from . import kd", losses="from . import tools", heavy="", tools="")
    files = set(imported_sources(f"{OWN}.stage").files)
    assert files == {f"{OWN}.{name}" for name in ("stage", "losses", "tools")} | (
        {OWN, f"{OWN}.heavy"} if more else set()
    )


def test_a_package_that_does_more_than_pass_names_on_counts_with_all_that_it_imports(own):
    own(__init__=FACE + "print()", stage="from . import tools", losses="", heavy="", tools="")
    expected = {OWN, *(f"{OWN}.{name}" for name in ("stage", "losses", "heavy", "tools"))}
    assert set(imported_sources(f"{OWN}.stage").files) == expected


def test_comments_and_docstrings_count_where_a_module_reads_docstrings(own):
    def code(stage, text):
        own(__init__="", stage=stage, losses=f"def kd():\n    '{text}'\n    return 1  # {text}")
        return code_of_module(f"{OWN}.stage")

    plain, reads = "from .losses import kd", "from .losses import kd\nTEXT = kd.__doc__"
    assert code(plain, "one") == code(plain, "two")
    assert code(reads, "one") != code(reads, "two")


def test_modules_that_are_left_out_are_not_followed(own):
    own(__init__="", stage="from . import registry", registry="from . import losses", losses="")
    found = imported_sources(f"{OWN}.stage", without={f"{OWN}.registry"})
    assert set(found.files) == {f"{OWN}.stage"}


def test_packages_within_packages_run_all_that_is_around_them(own):
    own(
        __init__="from . import registry",
        registry="",
        left_out="",
        top="",
        a_in___init__="",
        a_in_stage="from ..b import helper\nfrom .. import top\nfrom ...too_far import x",
        b_in___init__="from .helper import f",
        b_in_helper="f = 1",
    )
    files = imported_sources(f"{OWN}.a.stage").files
    names = ("registry", "a.stage", "b", "b.helper", "top")
    assert set(files) == {OWN, *(f"{OWN}.{name}" for name in names)}


def test_modules_that_import_each_other_are_read_once(own):
    own(__init__="", stage="from . import losses", losses="from . import stage\nimport sys, os.path")
    assert set(imported_sources(f"{OWN}.stage").files) == {f"{OWN}.stage", f"{OWN}.losses"}


def test_a_single_file_imports_its_siblings(own):
    folder = own()
    (folder / f"{OWN}.py").write_text("import sibling_of_the_test")
    (folder / "sibling_of_the_test.py").write_text("x = 1")
    assert set(imported_sources(OWN).files) == {OWN, "sibling_of_the_test"}


def test_a_namespace_package_has_no_file_and_is_followed(own):
    folder = own(stage=f"from {OWN} import losses", losses="")
    found = imported_sources(f"{OWN}.stage")
    assert found.files == {f"{OWN}.{name}": digest(folder / OWN / f"{name}.py") for name in ("stage", "losses")}
    assert found.packages == {}


def test_a_module_that_is_moved_with_its_package_is_the_same(own, tmp_path, monkeypatch):
    own(__init__="", stage="from . import losses", losses="")
    before = code_of_module(f"{OWN}.stage")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / OWN).rename(tmp_path / "elsewhere" / OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert code_of_module(f"{OWN}.stage") == before


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Puts the metadata of an installed distribution that gives the package into a folder on the path."""
    folder = tmp_path / "installed"
    monkeypatch.syspath_prepend(str(folder))
    caches = (imports._distributions, imports._installed)

    def install(version, kind="dist-info"):
        info = folder / f"{OWN}.{kind}"
        info.mkdir(parents=True, exist_ok=True)
        (info / ("METADATA" if kind == "dist-info" else "PKG-INFO")).write_text(
            f"Metadata-Version: 2.1\nName: {OWN}\nVersion: {version}\n"
        )
        (info / "top_level.txt").write_text(OWN)
        if kind == "dist-info":
            (info / "RECORD").write_text("")
        importlib.invalidate_caches()
        for cached in caches:
            cached.cache_clear()
        return folder

    yield install
    for cached in caches:
        cached.cache_clear()


def test_an_installed_package_counts_by_its_version_alone(tmp_path, distribution, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package(distribution("1.0"), {"__init__.py": "", "losses.py": "x = 1"})
    (tmp_path / "sibling_of_the_test.py").write_text(f"import {OWN}.losses")
    before = imported_sources("sibling_of_the_test")
    assert set(before.files) == {"sibling_of_the_test"}
    assert before.packages == {OWN: "1.0"}
    package(distribution("1.0"), {"losses.py": "x = 2"})
    assert imported_sources("sibling_of_the_test") == before
    distribution("1.1")
    assert imported_sources("sibling_of_the_test").packages == {OWN: "1.1"}


@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_an_editable_package_is_source(own, distribution, kind):
    folder = distribution("1.0", kind)
    if kind == "egg-info":  # as beside the sources of a checkout
        package(folder, {"__init__.py": "", "losses.py": ""})
    else:  # metadata in one folder, sources in another
        own(__init__="", losses="")
    assert set(imported_sources(f"{OWN}.losses").files) == {f"{OWN}.losses"}


def test_a_package_that_is_not_there_counts_as_missing_until_it_is(own):
    folder = own(__init__="", stage="try:\n    import sibling_of_the_test\nexcept ImportError:\n    pass")
    before = imported_sources(f"{OWN}.stage")
    assert before.packages == {"sibling_of_the_test": None}
    (folder / "sibling_of_the_test.py").write_text("")
    importlib.invalidate_caches()
    assert "sibling_of_the_test" in imported_sources(f"{OWN}.stage").files


def test_python_itself_and_its_library_are_left_out(own):
    own(
        __init__="import sys, json, os.path, zlib, _io\nfrom collections import abc\nfrom __future__ import annotations"
    )
    assert imported_sources(OWN).packages == {}
    assert set(imported_sources(OWN).files) == {OWN}


def test_what_is_installed_here_has_the_version_of_its_distribution(own):
    own(__init__="import sklearn.metrics, torch, PIL.Image")
    versions = {"sklearn": "scikit-learn", "torch": "torch", "PIL": "pillow"}
    found = imported_sources(OWN).packages
    assert found == {name: importlib.metadata.version(of) for name, of in versions.items()}


def test_an_edit_does_not_change_what_a_process_has_loaded(own):
    folder = own(__init__="", stage="from . import losses", losses="x = 1")
    stage = importlib.import_module(f"{OWN}.stage")
    before = code_of_module(stage.__name__)
    (folder / OWN / "losses.py").write_text("x = 22")
    assert code_of_module(stage.__name__) == before
    importlib.reload(sys.modules[f"{OWN}.losses"])
    assert code_of_module(stage.__name__) != before


def test_a_file_that_is_no_python_is_named_and_counts_by_its_bytes(own, caplog):
    own(__init__="", stage="def apply():\n    from . import losses", losses="x = 1\nx = (")
    with caplog.at_level(logging.WARNING):
        before = code_of_module(f"{OWN}.stage")
    assert "losses.py, line 2, is not valid Python" in caplog.text
    own(losses="x = 1\nx = [")
    assert code_of_module(f"{OWN}.stage") != before


def test_a_syntax_error_in_what_a_target_imports_is_one_line(own):
    own(__init__="", stage="from . import losses", losses="x = 1\nx = (")
    with pytest.raises(
        UserError, match=rf"stages.x: cannot import '{OWN}.stage.Mine': .*losses.py, line 2: "
    ) as caught:
        locate(f"{OWN}.stage.Mine", "stages.x")
    assert "\n" not in str(caught.value)


def test_a_class_has_the_code_of_its_module_and_a_script_that_of_its_siblings(own, monkeypatch):
    folder = own(__init__="", net="class Net: ...")
    net = importlib.import_module(f"{OWN}.net").Net
    assert code_of(net) == code_of_module(f"{OWN}.net")
    script = folder / "script.py"
    script.write_text(f"from {OWN} import net")
    main = type(sys)("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert set(imported_sources("__main__").files) == {"__main__", f"{OWN}.net"}
    json.dumps(code_of(type("Typed", (), {"__module__": "__main__"})))
