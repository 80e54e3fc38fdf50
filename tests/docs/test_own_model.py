"""The example of an own model works from an empty folder, and the page shows what it holds."""

import shutil
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, blocks

EXAMPLE = ROOT / "docs/examples/own_model"
PARTS = [
    "stages.prune.criterion=mypkg.parts.criterion",
    "stages.recover.losses=[mypkg.parts.loss]",
    "stages.recover.trainer.optimizer=mypkg.parts.SignSGD",
    "stages.recover.trainer.schedule=mypkg.parts.schedule",
    "task.transform=mypkg.parts.augment",
]
QUICK = ["debug=smoke", "~engines.inductor", "measure.seconds=0.02", "measure.memory=false", "measure.retries=0"]
# a console script has its own folder in the place of the current one
CONSOLE = "import sys; sys.path[0] = sys.prefix; from optkit.cli import main; sys.argv[0] = 'optkit'; main()"


def test_the_page_shows_the_files():
    held = "".join(path.read_text() for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".yaml"))
    for block in blocks(ROOT / "docs/own-model.md"):
        if block.language in ("python", "yaml"):
            for part in block.text.split("\n\n\n"):
                assert part.strip() in held, block.line


@pytest.mark.slow
def test_the_example_runs_from_an_empty_folder(tmp_path, optkit_command):
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    made = subprocess.run([sys.executable, "make_files.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr

    def run(*arguments):
        command = [sys.executable, "-c", CONSOLE, "run", "own.yaml", *arguments, *QUICK]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run(*PARTS)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "runs").glob("own-*")
    assert sorted(path.name for path in (folder / "variants").iterdir()) == [
        "0-model",
        "1-prune",
        "2-recover",
        "3-quantize",
    ]
    start = f"model.variant={folder}/variants/1-prune"
    again = run(start, "model.trust=[mypkg]", "chain=[recover]")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "1 recover" in again.stdout
    refused = run(start)
    assert refused.returncode == 2
    assert "would run code of the package 'mypkg' (if you trust it, add 'mypkg.Net' to model.trust)" in refused.stderr
