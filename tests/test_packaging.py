import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from optkit.core.extras import EXTRAS
from optkit.core.version import version_of_source
from optkit.engines import ONNXRuntime, OpenVINO

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {
    "vl_convert": "vl-convert-python", "mlflow": "mlflow-skinny", "submitit": "hydra-submitit-launcher",
    "grpc_reflection": "grpcio-reflection",
}  # fmt: skip
OPTIONAL = {**EXTRAS, **{engine.name: engine.packages for engine in (ONNXRuntime, OpenVINO)}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_recipes_and_conf(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "recipes"):
        files = {f"optkit/{f.relative_to(ROOT)}" for f in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert files <= names


def test_the_wheel_has_the_version_that_the_code_says(wheel):
    said = Parser().parsestr(_metadata(wheel))
    assert Version(said["Version"]) == Version(version_of_source(ROOT))
    assert wheel.name.startswith(f"optkit-{said['Version']}-")


def _metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    return archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))).decode()


def test_the_wheel_says_that_it_is_typed(wheel):
    assert "optkit/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_what_the_report_page_is_made_of(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"optkit/report/page/{name}" for name in ("page.html.j2", "page.css", "page.js")} <= names


@pytest.mark.slow
def test_a_recipe_runs_from_the_wheel_outside_the_repository(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["run", "quickstart", "debug=smoke", "chain=[train,prune]", "~engines.inductor", "threads=1",
                 "measure.batch_sizes=[8]", "measure.seconds=0.05", "measure.memory=false"]  # fmt: skip
    code = "import optkit, sys; assert 'site' in optkit.__file__, optkit.__file__; from optkit.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 prune" in done.stdout


def test_every_extra_names_what_pyproject_installs():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in OPTIONAL.items():
        names = {Requirement(one).name.lower().replace("_", "-") for one in declared[extra]}
        assert len(modules) == len(names)
        for module in modules:
            word = DISTRIBUTIONS.get(module, module.replace("_", "-"))
            assert word in names


HIDING = """
import sys
import tomllib
HIDDEN = set(sys.argv.pop(1).split(","))
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
LIBRARY = """
import torch
from torch import nn
from optkit.prune import prune_structured
from optkit.quantize import quantize_static
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
images = torch.rand(2, 3, 8, 8)
pruned = prune_structured(model, (images,), amount=0.4)
assert quantize_static(pruned.module, (images,), [(images,)]).module(images).shape == (2, 4)
"""


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """Runs code where no package of an extra can be imported; gives the process, in a folder that stays."""
    folder = tmp_path_factory.mktemp("bare")
    hidden = ",".join(
        {module for modules in OPTIONAL.values() for module in modules} - {"jinja2"}
    )  # torch needs jinja2

    def run(code, *arguments):
        command = [sys.executable, "-c", HIDING + code, hidden, *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_without_extras_the_library_prunes_and_quantizes(without_extras):
    done = without_extras(LIBRARY)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_extras_a_recipe_runs_and_what_is_missing_names_its_extra(without_extras):
    def optkit(*arguments):
        return without_extras("from optkit.cli import main; main()", *arguments)

    done = optkit("run", "quickstart", "debug=smoke", "chain=[train,prune]", "~engines.inductor", "threads=1", "name=bare",
                  "measure.batch_sizes=[8]", "measure.seconds=0.05", "measure.memory=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'no pictures: altair, vl_convert not installed (pip install "optkit[report]")' in done.stderr
    folder = next(line for line in done.stdout.splitlines() if line.startswith("run folder: ")).split(": ")[1]
    assert "1 prune" in optkit("report", folder).stdout
    for arguments, said in {
        (
            "report",
            folder,
            "--format",
            "html",
        ): 'no page: altair, vl_convert not installed (pip install "optkit[report]")',
        ("search", "quickstart"): 'no search: optuna not installed (pip install "optkit[search]")',
        ("run", "quickstart", "tracker=mlflow"): '(pip install "optkit[mlflow]")',
        ("run", "quickstart", "+engine@engines.openvino=openvino"): '(pip install "optkit[openvino]")',
    }.items():
        done = optkit(*arguments)
        assert done.returncode == 2
        assert said in done.stderr
