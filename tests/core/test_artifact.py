import json
import os
import stat

import pytest
import torch

from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.errors import UserError
from optkit.core.store import StageStore
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
    store = StageStore(tmp_path / "store")
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
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["abc"]


@pytest.mark.parametrize(("umask", "folders", "files"), [(0o002, 0o775, 0o664), (0o077, 0o700, 0o600)])
def test_who_may_read_a_stored_variant_is_as_the_umask_says(tmp_path, saved, umask, folders, files):
    module, artifact = saved
    before = os.umask(umask)
    try:
        stored = StageStore(tmp_path / "store").put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    finally:
        os.umask(before)
    assert stat.S_IMODE(stored.folder.stat().st_mode) == folders
    assert {stat.S_IMODE(file.stat().st_mode) for file in stored.folder.iterdir()} == {files}


def test_of_two_writers_the_first_wins(tmp_path, saved):
    module, artifact = saved
    store = StageStore(tmp_path / "store")
    first = store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    before = (first.folder / "weights.safetensors").stat().st_mtime_ns
    store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    assert (first.folder / "weights.safetensors").stat().st_mtime_ns == before
