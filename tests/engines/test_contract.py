"""What every engine says of itself; no other module asks for an engine's name."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import optkit
from optkit import engines
from optkit.core.compat.versions import version_of
from optkit.core.engine import Engine, made_for, no_engine, packages_of
from optkit.core.errors import UserError
from optkit.core.variant import Variant
from optkit.engines import ENGINES, Eager, Inductor, compile
from optkit.engines.registry import BUNDLED, is_registered, reference_engine
from optkit.models import MLP
from optkit.quantize import INT8_TARGETS

ROOT = Path(optkit.__file__).parent


def test_names_are_known_without_torch():
    code = "import sys; from optkit.engines import ENGINES; print(*ENGINES, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*ENGINES, "False"]


@pytest.mark.parametrize("name", BUNDLED)
def test_an_engine_keeps_the_contract(name):
    kind = ENGINES[name]
    assert (kind.name, no_engine(kind)) == (name, None)
    assert (ENGINES.package(name), is_registered(kind())) == ("optkit", True)
    assert kind.packages
    assert kind.precisions[0] == getattr(kind(), "precision", "fp32")
    torch.device(kind.device)
    if kind.int8_target is not None:
        assert INT8_TARGETS[kind.int8_target].engine == name
        assert kind().unsupported(made_for(kind.int8_target)) is None
    assert kind().unsupported(made_for("another")) is not None


def test_the_reference_is_eager():
    assert reference_engine() == Eager()


def test_every_public_name_is_there():
    for name in engines.__all__:
        assert getattr(engines, name) is not None
    assert not hasattr(engines, "NoSuchEngine")


def test_trials_call_the_same_kernels_from_python():
    assert Inductor(precision="bf16").for_trials() == Inductor(precision="bf16", cpp_wrapper=False)
    assert Eager().for_trials() == Eager()


@dataclass
class Unregistered(Eager):
    """An engine that a recipe names by its path."""

    answer: int = 0

    name: ClassVar[str] = "unregistered"

    def compile(self, module, variant, example):
        found = super().compile(module, variant, example)
        found.engine = self
        return found


@dataclass
class Absent(Eager):
    packages: ClassVar[tuple[str, ...]] = ("torch", "no-such-package")


@dataclass
class Nameless(Engine):
    def compile(self, module, variant, example): ...


@dataclass
class Idle(Engine):
    name: ClassVar[str] = "idle"


def test_what_is_no_engine_is_told():
    assert no_engine(Unregistered) is None
    assert no_engine(Nameless) == "its class has no 'name'"
    assert no_engine(Idle) == "its class has no 'compile'"
    for other in (MLP, 1, Eager()):
        assert no_engine(other) == "it is no class that inherits optkit.engines.Engine"


def test_packages_of_engines_are_what_must_be_installed():
    assert packages_of([Absent(), Eager]) == ("no-such-package", "torch")
    assert version_of("no-such-package") is None
    assert Absent().unavailable() == "no-such-package not installed (pip install no-such-package)"


def test_an_engine_that_no_package_declares_reopens_if_it_is_trusted(tmp_path, mlp):
    x = torch.rand(2, 1, 8, 8)
    spec = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}}
    session = Unregistered(answer=42).compile(mlp, Variant("v", None, frozenset({"float"}), spec), (x,))
    session.save(tmp_path)
    target = f"{__name__}.Unregistered"
    assert json.loads((tmp_path / "engine.json").read_text())["target"] == target
    with pytest.raises(UserError, match="would run code of the package 'tests'"):
        optkit.load(tmp_path)
    again = optkit.load(tmp_path, trust=[target])
    assert again.engine == Unregistered(answer=42)
    assert torch.equal(again(x), session(x))
    damaged = json.loads((tmp_path / "engine.json").read_text()) | {"target": f"{__name__}.NoEngine"}
    (tmp_path / "engine.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match="is no engine"):
        optkit.load(tmp_path, trust=[__name__])


class NoEngine:
    pass


def test_a_session_follows_torch_where_it_shares_its_threads(mlp):
    before = torch.get_num_threads()
    try:
        compile(mlp, (torch.rand(1, 1, 8, 8),), engine=Eager(), threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# where bundled engines and targets are named: their tables, their files, and the packages that older records depend on
# an export writes files for programs that are not optkit, each in a way of its own
EXPORTS = {
    "commands/export.py",
    "deploy/card.py",
    "deploy/exporting.py",
    "deploy/formats.py",
    "deploy/language_script.py",
    "deploy/script.py",
}
HOMES = {
    *EXPORTS,
    "engines/__init__.py",
    "engines/inductor_generation.py",
    "engines/onnxruntime_generation.py",
    "engines/openvino_generation.py",
    "engines/registry.py",
    "quantize/graph/targets/registry.py",
    *(f"{value.partition(':')[0].removeprefix('optkit.').replace('.', '/')}.py" for value in BUNDLED.values()),
}
OLDER_RECORDS = ("core/environment.py", "ENGINE_PACKAGES")
OPTIONS = {field.name for kind in ENGINES.values() for field in fields(kind)}
CLASSES = {kind.__name__ for kind in ENGINES.values()}


def _names_in(node):
    """The names of bundled engines that a node of a syntax tree holds as members or operands."""
    held = []
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        held = node.elts
    elif isinstance(node, ast.Dict):
        held = node.keys
    elif isinstance(node, ast.Subscript):
        held = [node.slice]
    elif isinstance(node, ast.MatchValue):
        held = [node.value]
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        # where something runs, which is no engine
        of_device = any(isinstance(x, ast.Attribute) and x.attr in ("type", "device") for x in operands)
        held = [] if of_device else operands
    return [x.value for x in held if isinstance(x, ast.Constant) and x.value in BUNDLED]


def offences(source):
    """Where a module tests the name, the class or an option of a bundled engine."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [(node.lineno, name) for name in _names_in(node)]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optkit.engines"):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name in CLASSES]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            option = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            found += [(node.lineno, option)] if option in OPTIONS else []
    return found


def test_no_other_module_tests_an_engine():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name in HOMES:
            continue
        source = path.read_text()
        if name == OLDER_RECORDS[0]:
            source = "\n".join(line for line in source.splitlines() if not line.startswith(OLDER_RECORDS[1]))
        found += [f"{name}:{line} {what}" for line, what in offences(source)]
    assert found == []


OFFENCES = [
    'engine.name == "inductor"',
    'engine.name in ("eager", "onnxruntime")',
    'ENGINES["openvino"]',
    'TARGETS = {"cuda": 1}',
    'match engine.name:\n    case "eager": ...',
    "from optkit.engines import Inductor",
    "from optkit.engines.cuda import CUDA",
    'hasattr(engine, "cpp_wrapper")',
]


@pytest.mark.parametrize("source", OFFENCES)
def test_the_test_of_names_finds(source):
    assert len(offences(source)) >= 1


def test_the_test_of_names_lets_pass():
    assert (
        offences('def f(target="inductor"): return x.device.type == "cuda", ENGINES[name], engine.name == name') == []
    )
