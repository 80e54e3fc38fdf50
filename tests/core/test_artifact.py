import json

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


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "builtins.eval"])
def test_a_file_cannot_name_code_outside_optkit(saved, target):
    _, artifact = saved
    path = artifact.folder / "variant.json"
    data = json.loads(path.read_text())
    data["variant"]["model"] = {"target": target, "params": {}}
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="would run code of the package"):
        open_artifact(artifact.folder).module()


def test_a_surgery_cannot_name_code_outside_optkit(saved):
    _, artifact = saved
    path = artifact.folder / "variant.json"
    data = json.loads(path.read_text())
    data["variant"]["surgeries"] = [{"by": "shutil.rmtree", "data": {}}]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="would run code of the package 'shutil'"):
        open_artifact(artifact.folder).module()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_description_is_a_clear_error(saved, text):
    _, artifact = saved
    (artifact.folder / "variant.json").write_text(text)
    with pytest.raises(UserError, match="variant.json"):
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


def test_of_two_writers_the_first_wins(tmp_path, saved):
    module, artifact = saved
    store = StageStore(tmp_path / "store")
    first = store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    before = (first.folder / "weights.safetensors").stat().st_mtime_ns
    store.put(artifact.variant, module, (torch.zeros(2, 1, 8, 8),))
    assert (first.folder / "weights.safetensors").stat().st_mtime_ns == before
