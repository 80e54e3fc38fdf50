"""Every code block of README and docs works: Python runs, commands and recipes compose."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
import yaml

from optkit.cli import cli
from optkit.commands.run import RUN_FLAGS
from optkit.core.artifact import save_artifact
from optkit.core.variant import Variant
from optkit.launch import launch
from optkit.models import MLP
from optkit.recipe.compose import to_recipe
from tests.docs.blocks import PAGES, ROOT, Block, all_blocks

BLOCKS = all_blocks()
LANGUAGES = {"python", "sh", "toml", "yaml", "text"}
# a new reason is a decision: a block that does not run may be wrong
NOT_RUN = [
    ("docs/cost.md", "python", "needs the folder of a run"),
    ("docs/engines.md", "sh", "needs a package of yours"),
    ("docs/getting-started.md", "python", "needs the folder of a run"),
    ("docs/language-models.md", "python", "needs a language model"),
    ("docs/language-models.md", "python", "needs lm-eval and the folder of a run"),
    ("docs/recipes.md", "sh", "needs a package of yours"),
]
COMPOSED = ("run", "measure", "ablate", "sensitivity")
# runs the blocks of each page in a namespace and a folder of its own; a traceback names the page and its line
RUNNER = """
import json, os, sys
for page, folder, parts in json.load(sys.stdin):
    os.chdir(folder)
    space = {"__name__": "__main__"}
    for line, text in parts:
        exec(compile("\\n" * (line - 1) + text, page, "exec"), space)
"""
LONG = ["README.md", "docs/getting-started.md", "docs/python.md"]  # each compiles and times; the others share a process


def of_language(language: str) -> dict[str, list[Block]]:
    """Blocks that are to run, by page."""
    found = defaultdict(list)
    for block in BLOCKS:
        if block.language == language and block.reason is None:
            found[block.page].append(block)
    return dict(found)


def test_every_block_says_its_language():
    assert [(b.page, b.line) for b in BLOCKS if b.language not in LANGUAGES] == []


def test_no_command_hides_outside_a_fence():
    for page in PAGES:
        outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert re.findall(r"^    (?:optkit|python) .*", outside, re.MULTILINE) == [], page


def test_blocks_that_do_not_run_are_these():
    assert [(b.page, b.language, b.reason) for b in BLOCKS if b.reason is not None] == NOT_RUN


@pytest.mark.slow
@pytest.mark.parametrize(
    "pages", [*([page] for page in LONG), [page for page in of_language("python") if page not in LONG]]
)
def test_python_runs(pages, tmp_path, image_folder):
    given = []
    for page in pages:
        folder = tmp_path / page.replace("/", "-")
        shutil.copytree(image_folder, folder / "CIFAR-10-images")
        copy_examples(folder)
        given.append((page, str(folder), [(block.line, block.text) for block in of_language("python")[page]]))
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def copy_examples(folder):
    """Puts the scripts of docs/examples into a folder."""
    for script in (ROOT / "docs/examples").glob("*.py"):
        shutil.copy(script, folder)


def _save_variants(run):
    """What the variants of a run are to a recipe: a small float model in each folder."""
    model, example = MLP(input_shape=[1, 8, 8], widths=[4], num_classes=2), (torch.zeros(2, 1, 8, 8),)
    params = {"input_shape": [1, 8, 8], "widths": [4], "num_classes": 2}
    for name in ("0-model", "1-prune", "2-recover"):
        folder = run / "variants" / name
        folder.mkdir(parents=True)
        spec = {"target": "optkit.models.MLP", "params": params}
        save_artifact(folder, Variant(name, None, frozenset({"float"}), spec), model, example)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The files that docs/examples/scenes.py makes."""
    folder = tmp_path_factory.mktemp("generated")
    for options in (["scenes"], ["shapes", "--retrieval"]):
        subprocess.run([sys.executable, ROOT / "docs/examples/scenes.py", *options], cwd=folder, check=True)
    return folder


@pytest.fixture
def workspace(image_folder, generated, tmp_path, monkeypatch):
    """A folder that has what the placeholders of commands stand for, and the files of the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    copy_examples(tmp_path)
    importlib.import_module("own_data").make_files()
    for examples in ("own_model", "kinds"):
        shutil.copytree(ROOT / "docs/examples" / examples, tmp_path, dirs_exist_ok=True)
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "net.pt").touch()
    _save_variants(tmp_path / "RUN")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("DIR/train.parquet", "DIR/test.parquet", "MODEL_DIR/config.json", "FILE"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in ("scenes", "shapes"):
        (tmp_path / name).symlink_to(generated / name)
    return tmp_path


def compose(recipe: str, arguments: list[str]) -> list:
    """The recipes that a command builds, checked, without any work."""
    found = []
    flagless = [argument for argument in arguments if argument not in RUN_FLAGS]
    launch(recipe, flagless, lambda cfg: found.append(to_recipe(cfg)), dry_run=True)
    return found


@pytest.mark.parametrize("page", of_language("yaml"))
def test_recipes_compose(page, workspace):
    for block in of_language("yaml")[page]:
        recipe = yaml.safe_load(block.text)
        path = workspace / f"{recipe['name']}.yaml"
        path.write_text(block.text)
        task = recipe.get("task", {})
        given = task.get("path") if isinstance(task, dict) else None
        folder = [f"task.path={workspace / 'images'}"] if given and not (workspace / given).exists() else []
        (built,) = compose(str(path), folder)
        assert built.name == recipe["name"]
        assert built.chain == recipe["chain"]


def commands(block: Block) -> list[list[str]]:
    """The words of the block's optkit commands."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w for w in words if w and w[0] == "optkit"]


@pytest.mark.slow
@pytest.mark.parametrize("page", of_language("sh"))
def test_commands_compose(page, workspace):
    for block in of_language("yaml").get(page, []):
        (workspace / f"{yaml.safe_load(block.text)['name']}.yaml").write_text(
            block.text.replace("/data/images", "images")
        )
    for block in of_language("sh")[page]:
        for _, name, *rest in commands(block):
            for folder in (workspace / word for word in rest if word.startswith(("RUN", "runs/"))):
                folder.mkdir(parents=True, exist_ok=True)
            command = cli.commands[name]
            context = command.make_context(name, list(rest))
            if name in COMPOSED and "--help" not in rest:  # tests/test_cli.py asks a recipe for it
                recipe, arguments = context.params.get("recipe"), list(context.params["arguments"])
                of_files = any(argument.startswith("task.path") for argument in arguments)
                if recipe in (None, "RECIPE"):  # `optkit measure` reads the recipe of a run
                    recipe = "resnet20_cifar10" if of_files else "quickstart"
                composed = compose(recipe, arguments)
                assert composed or "--cfg" in arguments, (page, block.line)


def test_scripts_in_commands_are_there():
    for block in BLOCKS:
        if block.language == "sh":
            for path in re.findall(r"scripts/\w+\.(?:py|sh)", block.text):
                assert (ROOT / path).is_file(), (block.page, path)
