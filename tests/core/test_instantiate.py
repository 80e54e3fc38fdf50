import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import NAMED, build, named_paths, own_part


def test_nodes_are_built_inside_out():
    stage = build(
        {"_target_": "optkit.training.Train", "trainer": {"_target_": "optkit.training.Trainer", "epochs": 3}}, "s"
    )
    assert stage.trainer.epochs == 3


def test_a_spec_stays_a_spec():
    teacher = {"_target_": "optkit.models.MLP", "widths": [8]}
    stage = build({"_target_": "optkit.distill.Distillation", "teacher": teacher}, "s")
    assert stage.teacher == teacher


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"amount": 1}, r"stages\.x: no _target_"),
        ({"_target_": "optkit.nothing.X"}, r"no module 'optkit\.nothing'"),
        ({"_target_": "optkit.training.Trian"}, "did you mean 'Train'"),
        ({"_target_": "optkit.prune.MagnitudePruning", "amuont": 0.5}, r"stages\.x\.amuont.*did you mean 'amount'"),
        ({"_target_": "optkit.prune.MagnitudePruning", "amount": 1.5}, r"stages\.x\.amount: 1.5 is not a share"),
        (
            {"_target_": "optkit.training.Train", "trainer": {"_target_": "optkit.training.Trainer", "lr": -1}},
            r"stages\.x\.trainer\.lr: -1 is out of range",
        ),
    ],
)
def test_mistakes_name_the_full_key(node, message):
    with pytest.raises(UserError, match=message):
        build(node, "stages.x")


def test_own_code_that_fails_is_one_line():
    node = {"_target_": "shutil.copyfile", "src": "nothing.csv", "dst": "x"}
    with pytest.raises(UserError, match=r"task.train: shutil.copyfile fails: FileNotFoundError: .*'nothing.csv'"):
        build(node, "task.train")


def test_far_off_names_list_what_is_known():
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"


FILES = {
    "__init__": "number = 3\ndef score(): ...\n",
    "absent": "import not_installed_anywhere\n",
    "fails": "x = 1\ny = 1 / 0\n",
    "syntax": "def f(:\n",
}


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    folder = tmp_path / "own_parts"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "own_parts"]:
        del sys.modules[name]


def test_a_part_is_a_built_in_or_what_a_dotted_path_names(own_package):
    assert own_part("l2", ["l1", "l2"], "s.criterion") is None
    assert own_part("own_parts.score", ["l1"], "s.criterion").__name__ == "score"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("l1x", "s.criterion: no criterion 'l1x' (did you mean 'l1'?)"),
        ("zzz", "s.criterion: no criterion 'zzz' (known: l1; or the dotted path of your own, mypackage.name)"),
        ("own_prts.score", "s.criterion: no module 'own_prts' (did you mean 'own_parts'?)"),
        ("own_parts.fail.f", "s.criterion: no module 'own_parts.fail' (did you mean 'own_parts.fails'?)"),
        (
            "far_off.f",
            "s.criterion: no module 'far_off' (start optkit in the folder that holds 'far_off', or install it)",
        ),
        ("own_parts.scor", "s.criterion: 'own_parts' has no 'scor' (did you mean 'score'?)"),
        (
            "own_parts.number",
            "s.criterion: 'own_parts.number' is of type int, which cannot be called (name a function)",
        ),
    ],
)
def test_a_wrong_part_is_one_line(own_package, path, message):
    with pytest.raises(UserError) as caught:
        own_part(path, ["l1"], "s.criterion")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("path", "line", "reason"),
    [
        ("absent", 1, "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("fails", 2, "ZeroDivisionError: division by zero"),
        ("syntax", 1, "invalid syntax"),
    ],
)
def test_an_error_of_ones_own_code_is_shown_with_its_place(own_package, path, line, reason):
    with pytest.raises(UserError) as caught:
        own_part(f"own_parts.{path}.f", [], "s.criterion")
    file = own_package / f"{path}.py"
    assert f"cannot import 'own_parts.{path}.f': {file}, line {line}: {reason}" in str(caught.value)


def test_fields_that_name_parts_are_found_in_texts_lists_and_keys():
    @dataclass
    class Stage:
        one: str = field(default="a.b", metadata=NAMED)
        several: Any = field(default=("kd", "a.c"), metadata=NAMED)
        weighed: Any = field(default_factory=lambda: {"a.d": 1.0, "kd": 2.0}, metadata=NAMED)
        other: str = "x.y"

    assert named_paths(Stage()) == ["a.b", "a.c", "a.d"]
    assert named_paths("a.b") == []


def test_a_text_for_a_path_becomes_one():
    made = build({"_target_": f"{__name__}._given", "root": "/a", "either": "/b"}, "task")
    assert made == (Path("/a"), None, "/b")


def _given(root: Path, mask: "Path | None" = None, either: "str | Path" = ""):
    return root, mask, either
