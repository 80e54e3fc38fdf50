import ast
import textwrap
from pathlib import Path

import pytest

from optkit.core import syntax
from optkit.core.syntax import ALL, read_code, tree_digest

CODE = '''
"""What this does."""
import math

class Net:
    """A network."""

    width: int = 3
    "what an attribute is for"

    def forward(self, x, *rest, scale=1.5):
        """Runs it."""
        # why
        return f"{x:.{self.width}f}{''}" + "a" "b", math.pi * (x + 0x10), [y for y in rest if y is not None]
'''


def digest(text):
    return tree_digest(ast.parse(textwrap.dedent(text)))


SAME = {
    "a comment": ("# why", "# why not"),
    "a comment less": ("        # why\n", ""),
    "the module's docstring": ('"""What this does."""', '"""What it does."""'),
    "a class's docstring less": ('    """A network."""\n', ""),
    "a function's docstring": ("Runs it.", "Runs."),
    "a string where a comment could stand": ('    "what an attribute is for"\n', ""),
    "line breaks": ("x, *rest, scale=1.5", "x,\n        *rest,\n        scale=1.5,\n    "),
    "quotes": ('"a" "b"', "'ab'"),
    "how a number is written": ("0x10", "16"),
    "parentheses": ("(x + 0x10)", "((x + 0x10))"),
}
OTHER = {
    "a constant": ("1.5", "1.6"),
    "the kind of a constant": ("= 3", "= 3.0"),
    "None for an empty string": ("is not None", 'is not ""'),
    "a name": ("math.pi", "math.e"),
    "a string": ('"a"', '"c"'),
    "an annotation, which decides what a dataclass is": ("width: int", "width: float"),
    "the order of statements": ("import math\n", "import os\nimport math\n"),
    "an operator": ("x + 0x10", "x - 0x10"),
    "what is in the parentheses": ("math.pi * (x + 0x10)", "math.pi * x + 0x10"),
}


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_what_changes_no_meaning_changes_no_digest(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(("old", "new"), OTHER.values(), ids=OTHER)
def test_what_changes_the_meaning_changes_the_digest(old, new):
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_the_digest_is_the_same_on_all_versions_of_python():
    # as Python 3.11, 3.12 and 3.13 compute it
    assert digest(CODE) == "7acd3d146c8147023f4fc87835e120ee18afb447e84f13fc80cfc532d7510fc0"


def test_a_field_that_a_newer_python_adds_and_old_code_leaves_empty_changes_nothing(monkeypatch):
    before = digest(CODE)
    monkeypatch.setattr(ast.FunctionDef, "_fields", (*ast.FunctionDef._fields, "effects", "effect"))
    monkeypatch.setattr(ast.FunctionDef, "effects", [], raising=False)
    monkeypatch.setattr(ast.FunctionDef, "effect", None, raising=False)
    assert digest(CODE) == before


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("print(Net.__doc__)", True),
        ("parser(description=__doc__)", True),
        ("getattr(Net, '__doc__')", True),
        ("from inspect import getdoc as text", True),
        ("inspect.getsource(f)", True),
        ("# of its __doc__", False),
        ("names = ('__doc__',)", False),
        ("ast.get_docstring(node)", False),
    ],
)
def test_code_that_reads_docstrings_is_told_from_code_that_names_them(text, reads):
    assert read_code(text.encode(), "own", False).reads_docs is reads


def test_the_code_that_looks_for_it_does_not_read_any():
    assert not read_code(Path(syntax.__file__).read_bytes(), "optkit.core", False).reads_docs


FACES = {
    "nothing": ("", {}),
    "names in __all__": (
        "from own.a import f\nfrom .b import g as h\n__all__ = ['f', 'h']",
        {"f": ("own.a", "f"), "h": ("own.b", "g")},
    ),
    "a module in __all__": ("from . import a\n__all__ = ['a']", {"a": ("own", "a")}),
    "a name that a function uses": (
        "from importlib import import_module\ndef __getattr__(name): return import_module(name)",
        {"import_module": ("importlib", "import_module")},
    ),
    "names for type checkers": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from own.a import f\n__all__ = ['f']",
        {"TYPE_CHECKING": ("typing", "TYPE_CHECKING"), "f": ("own.a", "f")},
    ),
    "literals": ("'''Doc.'''\nfrom __future__ import annotations\nVERSION: str = '1'\nSIZES = [1, -2]", None),
    "an import for what it does": ("from . import registry", "more"),
    "one that __all__ does not hold": ("from own.a import f, g\n__all__ = ['f']", "more"),
    "a call": ("import torch\ntorch.set_num_threads(1)", "more"),
    "a table of names": ("_HOMES = {**dict.fromkeys(('f', 'g'), 'own.a'), 'h': tuple([1])}", None),
    "a table that is computed": ("import os\nHOMES = dict.fromkeys(os.listdir())", "more"),
    "a computed value": ("import os\nHOME = os.environ['HOME']", "more"),
    "an attribute of another module": ("import torch\ntorch.relu = None", "more"),
    "a decorated function": ("from own.a import register\n@register\ndef f(): ...", "more"),
    "a class": ("class Net: ...", "more"),
    "a star": ("from own.a import *\n__all__ = ['f']", "more"),
}


@pytest.mark.parametrize(("text", "face"), FACES.values(), ids=FACES)
def test_a_package_that_only_binds_names_is_told_from_one_that_does_more(text, face):
    found = read_code(text.encode(), "own", True).face
    if face == "more":
        assert found is None
    elif face is None:
        assert found is not None
    else:
        assert found == face


def test_an_import_asks_for_a_name_or_for_all_of_a_module():
    text = (
        "import a.b.c\nimport d.e as f\nfrom .g import h\nif TYPE_CHECKING:\n    import never\nelse:\n    import ever"
    )
    asked = {("a", ALL), ("a.b", ALL), ("a.b.c", ALL), ("d.e", ALL), ("own.g", "h"), ("ever", ALL)}
    assert set(read_code(text.encode(), "own", False).imports) == asked
