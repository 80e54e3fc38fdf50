"""A run is run anew from a copy of its folder, and every record is compared with the new one."""

import json
import os
import shutil
import socket
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import optkit
from optkit.core import installed, ledger
from optkit.core.errors import UserError
from optkit.core.manifest import MANIFEST, read_manifest
from optkit.recipe import manifest as writer
from optkit.report.reproduced import DIFFERS, EQUAL
from optkit.reproduction import _home, reproduce

RECIPE = """
# A test: a table of numbers
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.mask: prune/magnitude
  - _self_
  - override model: mlp
  - override task: imagefolder
name: moving
chain: [train, mask]
model: {widths: [8]}
task: {path: images, image_size: 8, crop: 1, validation_share: 0.2}
stages: {train: {trainer: {epochs: 1, batch_size: 8}}}
threads: 1
measure: {batch_sizes: [4], seconds: 0.02, retries: 0, memory: false}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, a recipe and a finished run of it, whose store is gone; made once."""
    from PIL import Image

    home = tmp_path_factory.mktemp("first")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 16)):
        for label, name in enumerate(("cat", "dog")):
            folder = home / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 246, (10, 12, 3)) + 10 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    (home / "moving.yaml").write_text(RECIPE)
    os.environ["OPTKIT_TEST_TOKEN"] = "s3cret-of-the-environment"
    try:
        run = optkit.run(home / "moving.yaml", f"out={home}/runs", "~engines.inductor").folder
    finally:
        del os.environ["OPTKIT_TEST_TOKEN"]
    shutil.rmtree(home / "runs/store")
    return home, run


@pytest.fixture
def moved(made, tmp_path, monkeypatch):
    """The run and its data in another place, and nothing where they were; gives the run's folder."""
    home, run = made
    shutil.copytree(home / "images", tmp_path / "data")
    folder = shutil.copytree(run, tmp_path / "copied")
    hidden = home.with_name("hidden")
    home.rename(hidden)
    monkeypatch.chdir(tmp_path)
    yield folder
    hidden.rename(home)


def test_a_moved_run_is_reproduced_to_the_last_answer(moved):
    before = (moved / "ledger.jsonl").read_bytes()
    done = reproduce(moved, "task.path=data")
    assert done.equal
    verdicts = {(one.variant, one.what, one.engine): one.verdict for one in done.comparison.compared}
    for variant in ("baseline", "mask"):
        assert verdicts[variant, "accuracy", "eager"] == EQUAL
        assert verdicts[variant, "answers", "eager"] == EQUAL
        assert verdicts[variant, "weights", None] == EQUAL
        assert verdicts[variant, "macs", None] == EQUAL
    assert (moved / "ledger.jsonl").read_bytes() == before
    assert [change for change in done.comparison.changes if change.kind in ("recipe", "data", "package")] == []
    assert "reproduced: all answers of 4 measurements" in repr(done)
    # all was made anew
    assert len(list((done.folder / "store").glob("[0-9a-f]*"))) == 3
    assert {r.variant for r in ledger.read(done.run)} == {r.variant for r in ledger.read(moved)}


def test_data_that_are_not_there_are_named_before_any_work(moved):
    with pytest.raises(UserError, match="which is not here") as error:
        reproduce(moved)
    assert error.value.key == "task.path"
    assert "task.path=PATH" in error.value.fix
    assert not (moved.parent / "runs").exists()


def test_changed_data_are_refused_with_their_key(moved):
    (moved.parent / "data/train/cat/0.png").unlink()
    with pytest.raises(
        UserError, match=r"not what the run read \(task: fingerprint \w{12} > fingerprint \w{12}\)"
    ) as error:
        reproduce(moved, "task.path=data")
    assert error.value.key == "task"
    assert not (moved.parent / "runs").exists()
    done = reproduce(moved, "task.path=data", any_data=True)
    assert [change.what for change in done.comparison.changes if change.kind == "data"] == ["task"]


def test_another_seed_and_other_versions_are_named_and_end_with_3(moved, monkeypatch, command_here):
    here = installed.distributions()
    monkeypatch.setattr(writer, "distributions", lambda: here | {"torch": "9.9.9"})
    done = command_here("reproduce", moved, "task.path=data", "seed=1", "--out", "again", "--quiet")
    assert done.return_value == 3
    assert f"changed: package torch: {here['torch']} > 9.9.9" in done.stdout
    assert "changed: recipe seed: 0 > 1" in done.stdout
    recorded = json.loads((moved.parent / "again/reproduction.json").read_text())
    assert (recorded["state"], recorded["equal"]) == ("done", False)
    assert {"kind": "recipe", "what": "seed", "before": 0, "now": 1} in recorded["changes"]
    assert {"kind": "package", "what": "torch", "before": here["torch"], "now": "9.9.9"} in recorded["changes"]
    weights = [one for one in recorded["compared"] if one["what"] == "weights" and one["variant"] == "baseline"]
    assert [one["verdict"] for one in weights] == [DIFFERS]
    with pytest.raises(UserError, match="holds something else"):
        reproduce(moved, "task.path=data", out="again")


def test_an_interrupted_reproduction_goes_on_and_a_finished_one_is_kept(moved, monkeypatch, command_here):
    class Stop(BaseException): ...

    def stop(*arguments):
        raise Stop

    monkeypatch.setattr("optkit.report.reproduced.compare_runs", stop)
    with pytest.raises(Stop):
        reproduce(moved, "task.path=data")
    monkeypatch.undo()
    monkeypatch.chdir(moved.parent)
    (first,) = (moved.parent / "runs").iterdir()
    made = {path: path.stat().st_mtime_ns for path in (first / "store").iterdir()}
    done = command_here("reproduce", moved, "task.path=data", "--format", "json", "--quiet")
    found = json.loads(done.stdout)
    assert (done.exception, found["equal"]) == (None, True)
    assert Path(found["run"]).parent.resolve() == first
    assert {path: path.stat().st_mtime_ns for path in (first / "store").iterdir()} == made
    # the next one starts over
    assert _home(moved, None).name == f"{first.name}-2"


def test_a_run_without_a_manifest_is_reproduced_by_its_ledger(moved):
    (moved / MANIFEST).unlink()
    (moved.parent / "data/train/cat/0.png").unlink()
    with pytest.raises(UserError, match="not what the run read"):
        reproduce(moved, "task.path=data")


def test_what_is_no_override_is_refused(moved):
    for wrong in ("-m", "out=elsewhere", "store=/tmp/x", "tracker=mlflow"):
        with pytest.raises(UserError):
            reproduce(moved, wrong)


def test_the_manifest_holds_what_the_run_follows_from(made):
    home, run = made
    found = read_manifest(run)
    assert found["inputs"]["task.path"]["path"] == str(home / "images")
    assert found["recipe"]["task"]["path"] == {"$input": "task.path"}
    assert str(home) not in json.dumps(
        {key: value for key, value in found.items() if key not in ("inputs", "invocations")}
    )
    assert found["inputs"]["task"]["fingerprint"] == ledger.read(run)[0].data["fingerprint"]
    assert found["optkit"]["version"] == optkit.__version__
    assert found["installed"]["torch"].split(" ")[0] == metadata.version("torch")
    assert found["seeds"]["recipe"] == 0
    assert set(found["seeds"]) == {"recipe", "0-train", "1-mask"}
    (invocation,) = found["invocations"]
    assert invocation["state"] == "finished"
    assert "~engines.inductor" in invocation["overrides"]
    assert "differs" not in invocation


def test_the_manifest_holds_no_environment_variable_and_no_host_name(made):
    text = (made[1] / MANIFEST).read_text()
    assert "s3cret-of-the-environment" not in text
    assert "OPTKIT_TEST_TOKEN" not in text
    assert f'"{socket.gethostname()}"' not in text
