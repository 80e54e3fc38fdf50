"""What a run's manifest says of its inputs, of the user's code, and of the processes that worked on it."""

import json
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from optkit.core import environment
from optkit.core.errors import StageError, UserError
from optkit.core.git import git
from optkit.core.interruption import Interruption
from optkit.core.manifest import MANIFEST, changes, read_manifest
from optkit.core.version import version
from optkit.engines import Eager
from optkit.recipe import manifest as writer
from optkit.recipe.inputs import fingerprints, split_inputs
from optkit.recipe.manifest import describe, recorded
from optkit.recipe.recipe import Recipe
from optkit.training import Train
from tests.docs.blocks import ROOT

MODEL = {"_target_": "optkit.models.MLP", "widths": [4]}


class MyTrain(Train):
    """A stage of the user's own."""


@pytest.fixture
def recipe(digits, tmp_path):
    weights = tmp_path / "net.safetensors"
    save_file({"w": torch.zeros(2)}, weights)
    config = {
        "name": "small",
        "out": str(tmp_path / "runs"),
        "store": None,
        "model": MODEL | {"checkpoint": str(weights)},
        "task": {"_target_": "optkit.tasks.Digits", "limit": 256},
        "stages": {"train": {"_target_": "optkit.training.Train"}},
        "tracker": {"uri": "http://me:hunter2@host", "api_key": "hunter2"},
    }
    return Recipe(
        name="small", model=config["model"], task=digits, chain=["train"], stages={"train": Train()},
        engines={"eager": Eager()}, reference=Eager(), threads=1, text=yaml.safe_dump(config),
        overrides=["task.token=hunter2", "seed=3"],
    )  # fmt: skip


@pytest.fixture
def work(recipe, tmp_path):
    """Runs a block as a process that works on the run; gives the manifest after it."""
    folder = tmp_path / "run"
    folder.mkdir()

    def work(error=None):
        begins = {"run": "small-1", "seeds": {"recipe": 0}}
        with suppress(type(error)) if error else nullcontext(), recorded(folder, recipe, 1, (), begins):
            if error is not None:
                raise error
        return read_manifest(folder)

    return work


def test_paths_stand_apart_with_what_lies_there(recipe, tmp_path):
    found = describe(recipe, 1, ())
    checkpoint = found["inputs"]["model.checkpoint"]
    assert checkpoint["path"] == str(tmp_path / "net.safetensors")
    assert len(checkpoint["sha256"]) == 64
    assert found["recipe"]["model"]["checkpoint"] == {"$input": "model.checkpoint"}
    assert found["inputs"]["task"] == {"fingerprint": recipe.task.fingerprint}
    assert str(tmp_path) not in json.dumps(found["recipe"])
    assert "out" not in found["recipe"]


def test_another_checkpoint_at_the_same_path_is_a_change(recipe, tmp_path):
    before = describe(recipe, 1, ())
    save_file({"w": torch.ones(2)}, tmp_path / "net.safetensors")
    (change,) = changes(before, describe(recipe, 1, ()))
    assert (change.kind, change.what) == ("data", "model.checkpoint")


def test_the_same_checkpoint_at_another_path_is_no_change(recipe, tmp_path):
    before = describe(recipe, 1, ())
    moved = (tmp_path / "net.safetensors").rename(tmp_path / "moved.safetensors")
    text = recipe.text.replace(str(tmp_path / "net.safetensors"), str(moved))
    assert changes(before, describe(replace(recipe, text=text), 1, ())) == []


def test_absolute_paths_in_keys_that_declare_none_stand_apart_too(digits, tmp_path):
    (tmp_path / "labels.txt").write_text("a")
    config = {"name": "x", "model": {}, "debug": {"labels": str(tmp_path / "labels.txt"), "text": "/not/there"}}
    rest, paths = split_inputs(config)
    assert rest["debug"] == {"labels": {"$input": "debug.labels"}, "text": "/not/there"}
    assert fingerprints(paths, digits)["debug.labels"]["sha256"]


def test_own_code_has_its_commit_and_a_digest(recipe):
    found = describe(replace(recipe, stages={"train": MyTrain()}), 1, ())["code"]
    own = found[__name__]
    assert own["file"] == "tests/recipe/test_manifest.py"
    assert own["commit"] == git(ROOT, "rev-parse", "HEAD")
    assert len(own["source"]) == 64
    assert set(own) == {"source", "commit", "dirty", "file"}


def test_a_manifest_names_versions_machine_and_seeds(work):
    found = work()
    assert found["optkit"]["version"] == version()
    assert found["environment"]["machine"] == environment.machine()
    assert found["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "hydra-core"} <= set(found["installed"])
    assert found["seeds"] == {"recipe": 0}


def test_no_secret_is_in_a_manifest(work, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "-m", "optkit", "tracker.uri=ftp://me:hunter2@host"])
    work()
    text = json.dumps(work(StageError("cannot reach http://me:hunter2@host")))
    assert "hunter2" not in text
    assert "tracker.uri=ftp://host" in text
    assert '"python"' in text


ENDS = {
    "well": (None, "finished"),
    "by a failure": (StageError("the loss became nan"), "failed"),
    "by a signal": (Interruption(15), "interrupted"),
    "by Ctrl-C in Python": (KeyboardInterrupt(), "interrupted"),
}


@pytest.mark.parametrize(("error", "state"), ENDS.values(), ids=ENDS)
def test_each_process_says_how_it_ended(work, error, state):
    (invocation,) = work(error)["invocations"]
    assert invocation["state"] == state
    assert invocation["ended"] >= invocation["started"]
    assert invocation.get("why") == ("the loss became nan" if state == "failed" else None)


def test_a_process_that_goes_on_with_other_versions_says_so(work, monkeypatch):
    first = work(Interruption(15))
    monkeypatch.setattr(writer, "distributions", lambda: first["installed"] | {"torch": "9.9.9"})
    second = work()
    assert second["installed"] == first["installed"]
    one, two = second["invocations"]
    assert "differs" not in one
    differs = {"kind": "package", "what": "torch", "before": first["installed"]["torch"], "now": "9.9.9"}
    assert two["differs"] == [differs]


def test_a_process_that_is_killed_stays_running(recipe, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with recorded(folder, recipe, 1, (), {"run": "small-1"}):
        assert read_manifest(folder)["invocations"][0]["state"] == "running"


def test_an_older_run_gets_no_manifest_when_it_is_measured_again(recipe, tmp_path):
    with recorded(tmp_path, recipe, 1, ()):
        pass
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', "\x00\xff"])
def test_what_is_no_manifest_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert error.value.key == str(tmp_path / MANIFEST)
    assert error.value.fix
