import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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


def test_the_wheel_says_that_it_is_typed(wheel):
    assert "optkit/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_what_the_report_page_is_made_of(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"optkit/report/page/{name}" for name in ("page.html.j2", "page.css", "page.js")} <= names


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
