import json
import os
import stat
from importlib import metadata

import pytest
import torch

from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.errors import UserError
from optkit.core.store import FolderStore
from optkit.core.variant import Step, Variant
from optkit.models import MLP

SPEC = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [4]}}


@pytest.fixture
def saved(tmp_path):
    module = MLP([1, 8, 8], widths=[4]).eval()
    variant = Variant("abc", None, frozenset({"float"}), SPEC, steps=(Step("s", "train", "t", {"x": 1}),))
    return module, save_artifact(tmp_path, variant, module, (torch.zeros(2, 1, 8, 8),))


def test_a_saved_variant_is_the_same_variant(saved):
    module, artifact = saved
    x = torch.randn(3, 1, 8, 8)
    again = open_artifact(artifact.folder)
    assert again.variant == artifact.variant
    assert torch.equal(again.module()(x), module(x))
    assert again.size_bytes == sum(f.stat().st_size for f in artifact.folder.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_description_is_a_clear_error(saved, text):
    _, artifact = saved
    (artifact.folder / "variant.json").write_text(text)
    with pytest.raises(UserError, match="variant.json"):
        open_artifact(artifact.folder)


@pytest.mark.parametrize("spec", [{"shape": [2], "dtype": "load"}, {"shape": [-1], "dtype": "float32"}, {"shape": [2]}])
def test_damaged_inputs_are_a_clear_error(saved, spec):
    _, artifact = saved
    path = artifact.folder / "variant.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": [spec]}))
    with pytest.raises(UserError, match="variant.json: not a variant"):
        open_artifact(artifact.folder)


def test_no_variant_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no variant at"):
        open_artifact(tmp_path)


def test_the_store_shows_a_variant_whole_or_not_at_all(tmp_path, saved):
    module, artifact = saved
    store = FolderStore(tmp_path / "store")
    assert store.find("abc") is None

    class Broken(torch.nn.Module):
        def state_dict(self, *args, **kwargs):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        store.put(artifact.variant, Broken(), (torch.zeros(1),))
    assert store.find("abc") is None
    assert not list((tmp_path / "store").iterdir())
    (store.workdir("abc") / "training.pt").write_text("x")
    store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    assert store.find("abc") is not None
    assert {p.name for p in (tmp_path / "store").iterdir()} == {".locks", "abc"}


@pytest.mark.parametrize(("umask", "folders", "files"), [(0o002, 0o775, 0o664), (0o077, 0o700, 0o600)])
def test_who_may_read_a_stored_variant_is_as_the_umask_says(tmp_path, saved, umask, folders, files):
    module, artifact = saved
    before = os.umask(umask)
    try:
        stored = FolderStore(tmp_path / "store").put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    finally:
        os.umask(before)
    assert stat.S_IMODE(stored.folder.stat().st_mode) == folders
    assert {stat.S_IMODE(file.stat().st_mode) for file in stored.folder.iterdir()} == {files}


def test_of_two_writers_the_first_wins(tmp_path, saved):
    module, artifact = saved
    store = FolderStore(tmp_path / "store")
    first = store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    before = (first.folder / "weights.safetensors").stat().st_mtime_ns
    store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    assert (first.folder / "weights.safetensors").stat().st_mtime_ns == before


def _saved_elsewhere(artifact, versions, **surgery):
    """The variant as it would be had other versions saved it."""
    path = artifact.folder / "variant.json"
    description = json.loads(path.read_text())
    description["made_with"] |= versions
    description["variant"]["surgeries"] = [surgery] if surgery else []
    path.write_text(json.dumps(description))
    return open_artifact(artifact.folder)


def test_a_variant_says_with_which_versions_it_was_saved(saved):
    _, artifact = saved
    assert artifact.made_with["torch"] == metadata.version("torch")
    assert open_artifact(artifact.folder).made_with == artifact.made_with


BROKEN = {"by": "prune.depth/1", "data": {"kept": {"no_such_part": [0]}, "config": {}}}


@pytest.mark.parametrize("versions", [{"torch": "1.0.0"}, {"torch": "1.0.0", "torchao": None}])
def test_a_replay_that_fails_under_other_versions_names_both(saved, versions):
    with pytest.raises(UserError) as caught:
        _saved_elsewhere(saved[1], versions, **BROKEN).module()
    torchao = {name: version for name, version in saved[1].made_with.items() if name in versions}
    here = ", ".join(f"{name} {version}" for name, version in torchao.items())
    was = ", ".join(f"{name} {version or '(none)'}" for name, version in versions.items())
    assert f"no_such_part`; it was saved with {was}, and this is {here}" in caught.value.message.replace(
        "attribute", ""
    )
    assert "make it again" in caught.value.fix


def test_weights_that_other_versions_would_name_otherwise_name_the_versions(saved):
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, saved[1].folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"it was saved with transformers 4\.0, and this is transformers \d"):
        _saved_elsewhere(saved[1], {"transformers": "4.0"}).module()


def test_a_replay_that_fails_under_the_same_versions_says_what_it_said(saved):
    with pytest.raises(AttributeError, match="no_such_part"):
        _saved_elsewhere(saved[1], {}, **BROKEN).module()


def test_other_versions_alone_are_no_error(saved):
    module, artifact = saved
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(_saved_elsewhere(artifact, {"torch": "1.0.0"}).module()(x), module(x))


def test_a_variant_of_an_optkit_that_wrote_no_versions_opens(saved):
    module, artifact = saved
    path = artifact.folder / "variant.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "made_with"}))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(open_artifact(artifact.folder).module()(x), module(x))


def test_weights_have_the_permissions_of_any_new_file(saved):
    _, artifact = saved
    (artifact.folder / "other").touch()
    modes = {name: stat.S_IMODE((artifact.folder / name).stat().st_mode) for name in ("weights.safetensors", "other")}
    assert modes["weights.safetensors"] == modes["other"]
