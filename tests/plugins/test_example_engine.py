"""A package of its own brings an engine and its int8 target: installed, listed, run, measured, saved and reloaded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "example_engine"
ALONE = ("~engines.eager", "~engines.inductor")
RECIPE = """
# A test: train, prune, int8 on the engine of another package
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.prune: prune/structured
  - stage@stages.quantize: quantize/static
  - engine@engines.example: example
  - _self_
  - override model: mlp
name: plugin
chain: [train, prune, quantize]
model: {widths: [32]}
task: {image_size: 8, crop: 1, limit: 128}
stages:
  train: {trainer: {epochs: 1}}
  prune: {amount: 0.4}
  quantize: {target: example, batches: 2, min_int8_share: 0.99}
threads: 1
measure: {batch_sizes: [4], seconds: 0.05, retries: 0}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package; built by pip without the network, outside the environment."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "site"


@pytest.fixture(scope="module")
def python(site):
    """Runs Python where the package is installed, or with ``bare`` where it is not."""

    def run(*arguments, cwd=None, bare=False):
        path = [] if bare else [str(site)]
        path += [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)

    return run


@pytest.fixture(scope="module")
def finished(python, tmp_path_factory):
    """The folder of a run on the package's engine."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "plugin.yaml").write_text(RECIPE)
    done = python("-m", "optkit", "run", "plugin.yaml", *ALONE, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next((folder / "runs").glob("plugin-*"))


@pytest.mark.slow
def test_the_engine_is_measured_on_every_variant_and_runs_int8_in_integers(finished):
    records = [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["train", "prune", "quantize"]
    for record in records:
        found = {m["name"]: m for m in record["measurements"] if m["conditions"].get("engine") == "example"}
        # memory is that of a fresh process, which reopened the session and gave the same answers
        assert {"accuracy", "latency", "compile", "peak_memory"} <= set(found)
        assert found["int8_share"]["value"] == (1.0 if record["stage"] == "quantize" else 0.0)
        assert record["environment"]["packages"]["optkit-example-engine"] == "1.2.0"
        assert record["environment"]["engine_packages"] == ["optkit-example-engine", "torch"]
    assert found["engine_sqnr_db"]["value"] > 45


LOADED = """
import sys, torch, optkit
session = optkit.load(sys.argv[1], engine="example", batch_size=3)
x = torch.rand(3, 1, 8, 8)
assert session(x).shape == (3, 10)
assert session.facts()["int8_share"] == 1.0
session.save(sys.argv[2])
again = optkit.load(sys.argv[2])
assert type(again).__module__ == "example_engine"
assert torch.equal(again(x), session(x))
print(torch.equal(optkit.engines.compile(optkit.load(sys.argv[1]), (x,), engine="example")(x), session(x)))
"""


@pytest.fixture(scope="module")
def served(finished, python, tmp_path_factory):
    """The folder of a saved session, opened again."""
    folder = tmp_path_factory.mktemp("served")
    done = python("-c", LOADED, finished / "variants" / "2-quantize", folder)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    return folder


@pytest.mark.slow
def test_a_saved_session_says_which_package_opens_it(served):
    assert json.loads((served / "engine.json").read_text())["package"] == "optkit-example-engine"


BARE = """
import sys, optkit
from optkit.core.errors import UserError
for arguments in ((sys.argv[1],), (sys.argv[2],), (sys.argv[2], "example")):
    try:
        optkit.load(*arguments)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_without_the_package_one_line_names_it(served, finished, python):
    done = python("-c", BARE, served, finished / "variants" / "2-quantize", bare=True)
    came = "'example': it came with the package 'optkit-example-engine', which is not installed here"
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"engine: no engine {came}")
    assert lines[1].startswith(f"target: no int8 target {came}")
    assert lines[2].startswith("engine: no engine 'example' (known: cuda, eager,")


@pytest.mark.slow
def test_doctor_lists_the_engine_and_the_target(python):
    text = " ".join(python("-m", "optkit", "doctor").stdout.split())
    assert "engine example works (package optkit-example-engine 1.2.0)" in text
    assert "int8 target example for example: static (package optkit-example-engine 1.2.0)" in text
    assert "optkit-example-engine 1.2.0" in text


MISSPELT = {
    "+engine@engines.mine=exmaple": "engine: no config 'engine/exmaple' (did you mean 'example'?)",
    "stages.quantize.target=exmaple": "stages.quantize.target: no int8 target 'exmaple' (did you mean 'example'?)",
}


@pytest.mark.parametrize("override", MISSPELT)
def test_misspelt_names_suggest_those_of_packages(python, tmp_path, override):
    (tmp_path / "plugin.yaml").write_text(RECIPE)
    done = python("-m", "optkit", "run", "plugin.yaml", override, cwd=tmp_path)
    assert done.returncode == 2
    assert MISSPELT[override] in done.stderr


def test_the_page_on_engines_shows_this_package():
    page = (PACKAGE.parents[2] / "docs" / "engines.md").read_text().partition("## Write an engine")[2]
    blocks = re.findall(r"```(python|toml)\n(.*?)```", page, re.DOTALL)
    files = {"python": PACKAGE / "example_engine" / "__init__.py", "toml": PACKAGE / "pyproject.toml"}
    assert len(blocks) == 5
    for language, block in blocks:
        assert block in files[language].read_text()
