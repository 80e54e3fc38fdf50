"""Exports on their way to a stand-in of the hub, through the command line as its user types it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.deploy import export, push
from tests.deploy.hub import TOKEN, local_hub

FILES = {"README.md", "export.json", "infer.py", "model.onnx", "prepare.py", "preprocess.json"}


@pytest.fixture
def hub():
    with local_hub() as running:
        yield running


@pytest.fixture
def exported(tmp_path):
    torch.manual_seed(0)
    example = (torch.zeros(2, 3),)
    export(nn.Linear(3, 2).eval(), tmp_path / "served", engine="onnxruntime", example_inputs=example)
    return tmp_path / "served"


def pushed(address, *arguments, token=TOKEN, **environment):
    """What ``optkit push`` says in a process of its own: exit code, output and errors."""
    own = {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": "/nowhere",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
    } | environment
    command = [sys.executable, "-m", "optkit", "push", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | {k: v for k, v in own.items() if v is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_an_export_arrives_whole_and_once(hub, exported):
    store, address = hub
    store.repos["me/model"] = {".gitattributes": b""}
    (exported / "test").mkdir()
    (exported / "test/0.png").write_bytes(b"not to be sent")
    (exported / "credentials.json").write_text("neither")
    code, said, errors = pushed(address, exported, "me/model")
    assert (code, "error" in errors) == (0, False)
    assert "sent 6 files, " in said
    assert f"to {address}/me/model:" in said
    assert "1 test files stay here" in said
    assert "not of the export, and stays here: credentials.json" in said
    assert store.repos["me/model"] == {".gitattributes": b""} | {n: (exported / n).read_bytes() for n in FILES}
    assert store.commits["me/model"] == ["linear for onnxruntime, exported by optkit"]
    code, said, _ = pushed(address, exported, "me/model")
    assert (code, said.startswith("nothing to send")) == (0, True)
    assert len(store.commits["me/model"]) == 1


@pytest.mark.slow
def test_other_files_are_replaced_by_force_alone(hub, exported):
    store, address = hub
    store.repos["me/model"] = {"README.md": b"mine", "model.onnx": b"mine", "notes.txt": b"mine"}
    code, _, errors = pushed(address, exported, "me/model")
    assert code == 2
    assert errors == "error: repo: me/model has another README.md, model.onnx (--force replaces them)\n"
    assert store.repos["me/model"]["README.md"] == b"mine"
    code, said, _ = pushed(address, exported, "me/model", "--force")
    assert code == 0
    assert "README.md  0.001 MB  (replaced)" in said
    assert store.repos["me/model"]["README.md"] == (exported / "README.md").read_bytes()
    assert store.repos["me/model"]["notes.txt"] == b"mine"


@pytest.mark.slow
def test_a_dry_run_asks_nothing(hub, exported):
    store, address = hub
    code, said, errors = pushed(address, exported, "me/model", "--dry-run", token="")
    assert (code, errors, store.asked) == (0, "", [])
    assert "would send 6 files, " in said
    assert all(f"  {name}  " in said for name in FILES)


@pytest.mark.slow
def test_a_repository_is_made_if_asked_for(hub, exported):
    store, address = hub
    code, _, errors = pushed(address, exported, "me/model")
    assert code == 2
    assert (
        errors
        == "error: repo: no repository me/model that this token can see (check the name, or make it with --create)\n"
    )
    assert pushed(address, exported, "me/model", "--create")[0] == 0
    assert set(store.repos["me/model"]) == FILES | {".gitattributes"}
    assert store.private == {"me/model"}


@pytest.mark.slow
def test_mistakes_of_access(hub, exported):
    store, address = hub
    store.repos["me/model"] = {}
    code, _, errors = pushed(address, exported, "me/model", token="")
    assert (code, "no token for the hub (log in with" in errors) == (2, True)
    code, _, errors = pushed(address, exported, "me/model", token="hf_" + "b" * 34)
    assert (code, "the hub does not know this token" in errors) == (2, True)
    store.forbidden = True
    code, _, errors = pushed(address, exported, "me/model")
    assert (code, "this token may not write to me/model" in errors) == (2, True)
    store.forbidden, store.full = False, True
    code, _, errors = pushed(address, exported, "me/model")
    assert (code, "storage limit reached" in errors) == (1, True)
    code, _, errors = pushed("http://127.0.0.1:9", exported, "me/model")
    assert (code, "cannot send to 127.0.0.1:9: " in errors, errors.count("\n")) == (1, True, 1)
    code, _, errors = pushed(address, exported, "me/model", HF_HUB_OFFLINE="1")
    assert (code, "HF_HUB_OFFLINE: the hub is switched off here" in errors) == (2, True)


def test_mistakes_of_the_folder(exported, tmp_path):
    with pytest.raises(UserError, match="nothing is no export"):
        push(tmp_path / "nothing", "me/model")
    with pytest.raises(UserError, match="'model' does not say whose it is"):
        push(exported, "model", dry_run=True)
    with pytest.raises(UserError, match="Repo id must"):
        push(exported, "a/b/c", dry_run=True)
    (exported / "README.md").write_text("my own words")
    assert "README.md" in push(exported, "me/model", dry_run=True).sizes
    (exported / "infer.py").write_text("changed")
    with pytest.raises(UserError, match="infer.py is not as it was exported"):
        push(exported, "me/model", dry_run=True)
    (exported / "infer.py").unlink()
    with pytest.raises(UserError, match=r"lacks infer\.py"):
        push(exported, "me/model", dry_run=True)
    (exported / "export.json").write_text('{"files": {"../../secret": ""}}')
    with pytest.raises(UserError, match="not an export"):
        push(exported, "me/model", dry_run=True)
