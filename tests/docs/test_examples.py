"""The scripts and recipes of docs/examples run from an empty folder."""

import os
import shutil
import subprocess
import sys

import pytest

from optkit.core.ledger import read
from tests.docs.blocks import ROOT

SCRIPTS = ["own_data", "own_metric"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_and_recipe_run(name, tmp_path):
    for file in (ROOT / "docs/examples").glob("own_*.*"):
        shutil.copy(file, tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    small = ["stages.train.trainer.epochs=2", "measure.seconds=0.05", "measure.memory=false", "measure.retries=0"]
    small.append("~engines.inductor")
    for command in ([f"{name}.py"], ["-m", "optkit", "run", f"{name}.yaml", *small]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    (ledger,) = tmp_path.glob("runs/*/ledger.jsonl")
    assert len(read(ledger.parent)) >= 2
