"""A pickle that would run code, in the place of every file that optkit reads: it never runs.

`SITES` is the list of these files. `test_no_other_code_reads_files_that_may_hold_code` finds new readers.
"""

import ast
import io
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import optkit
from optkit.cli import cli
from optkit.core import ledger
from optkit.core.cache import read_json
from optkit.core.errors import UserError
from optkit.core.locks import exclusive
from optkit.core.store import FolderStore
from optkit.core.store.lease import read_lease
from optkit.launch import launch
from optkit.models import MLP
from tests.conftest import make_record
from tests.core.store.conftest import EXAMPLE, host, model, variant

ROOT = Path(optkit.__file__).parent
MARKER = "it-ran"  # in the current folder


class Poison:
    def __reduce__(self):
        return open, (MARKER, "w")


def _saved_by(save):
    buffer = io.BytesIO()
    save(Poison(), buffer)
    return buffer.getvalue()


POISONS = {
    "pickle": pickle.dumps(Poison()),
    "torch.save": _saved_by(torch.save),
    "torch.save of before 1.6": _saved_by(lambda x, file: torch.save(x, file, _use_new_zipfile_serialization=False)),
    "an array of objects": _saved_by(lambda x, file: np.save(file, np.array([x], dtype=object), allow_pickle=True)),
    "YAML": f"!!python/object/apply:builtins.open [{MARKER}, w]\n".encode(),
}


def entry(folder):
    store = FolderStore(folder / "store")
    store.put(variant(), model(), EXAMPLE)
    return sorted((folder / "store/id").iterdir()), lambda: FolderStore(folder / "store").find("id").module()


def entry_of_an_earlier_version(folder):
    files, read = entry(folder)
    files.remove(folder / "store/id/entry.json")
    (folder / "store/id/entry.json").unlink()
    return files, read


def shared_entry(folder):
    url = (folder / "shared").as_uri()
    host(url, folder / "a").put(variant(), model(), EXAMPLE)

    def read():
        shutil.rmtree(folder / "b", ignore_errors=True)
        return host(url, folder / "b").find("id").module()

    return [path for path in (folder / "shared").rglob("*") if path.is_file()], read


def lease(folder):
    shared = host((folder / "shared").as_uri(), folder / "a")
    path = folder / "shared/leases/id.json"
    with shared.making("id", "making"):
        text = path.read_bytes()
    path.write_bytes(text)

    def read():
        assert read_lease(shared.remote.fs, str(path)) is not None

    return [path], read


def variant_of_a_run(folder):
    optkit.core.artifact.save_artifact(folder, variant(), model(), EXAMPLE)
    return [folder / "variant.json", folder / "weights.safetensors"], lambda: optkit.load(folder)


def probe(folder):
    from optkit.core.probe import PROBE, PROBE_FILE, load_probe, save_probe

    graph = torch.fx.symbolic_trace(model())
    graph.meta[PROBE] = EXAMPLE
    save_probe(graph, folder)
    return [folder / PROBE_FILE], lambda: load_probe(graph, folder)


def lock_owner(folder):
    with exclusive(folder / "lock", "testing"):
        text = (folder / "lock.json").read_bytes()
    (folder / "lock.json").write_bytes(text)
    return [folder / "lock.json"], lambda: _some(optkit.core.locks._owner(folder / "lock"))


def training_state(folder):
    from optkit.training.checkpoint import load_state, save_state

    save_state(folder, {"weights": torch.zeros(4), "step": 1})
    return [folder / "training.pt"], lambda: _some(load_state(folder))


def run_folder(folder):
    ledger.Ledger(folder / "ledger.jsonl").append(make_record())
    (folder / "recipe.yaml").write_text("name: x\n")
    (folder / "ablation.json").write_text('{"format": 2}')

    def read():
        from optkit.report.page.runs import _ablation
        from optkit.report.recipes import flat_recipe

        assert ledger.read(folder)
        assert flat_recipe(folder)
        assert _ablation(folder)

    return [folder / "ledger.jsonl", folder / "recipe.yaml", folder / "ablation.json"], read


def recipe(folder):
    path = folder / "mine.yaml"
    path.write_bytes((ROOT.parent / "recipes/quickstart.yaml").read_bytes())
    return [path], lambda: launch(str(path), ["~engines.inductor"], lambda cfg: None)


def documents(folder):
    from optkit.core.document import Document
    from optkit.deploy.target import read_about

    Document.what, Document.format = "document", "1"
    Document().save(folder / "sensitivity.json")
    about = {"format": optkit.deploy.target.FORMAT, "variant": "v", "engine": "torch", "name": "n", "files": {}}
    (folder / "export.json").write_text(json.dumps(about))

    def read():
        Document.load(folder / "sensitivity.json")
        read_about(folder)

    return [folder / "sensitivity.json", folder / "export.json"], read


def json_of_the_cache(folder):
    """Peaks, latencies of blocks, code that was read, checks of files, what trackers have: all by `read_json`."""
    (folder / "a.json").write_text("{}")
    return [folder / "a.json"], lambda: _some(read_json(folder / "a.json"))


def recorded_logits(folder):
    from optkit.distill.recorded import RecordedOutputs
    from optkit.tasks import Digits

    task, teacher = Digits(image_size=8, crop=1, limit=64), MLP([1, 8, 8], widths=[4]).eval()

    def read():
        RecordedOutputs(task, teacher, 1, 16, 0, lambda batch: teacher(*batch.inputs).detach(), "fp32").begin(0)

    read()
    return list(_cache().rglob("outputs.safetensors")), read


def tokens(folder):
    from optkit.tasks.texts import Texts
    from optkit.tasks.tokens import KEPT, tokenize_once, trained_tokenizer

    texts = Texts((["a warm film", "dull"],), np.array([0, 1]))

    def read():
        split = tokenize_once(texts, trained_tokenizer(texts, 300), 8, "texts")
        return [getattr(split, name)[0] for name in KEPT]

    read()
    files = [path for kind in ("tokens", "tokenizers") for path in (_cache() / kind).rglob("*") if path.is_file()]
    return [path for path in files if path.name not in UNREAD], read


def decoded_images(folder):
    from PIL import Image

    from optkit.tasks.decode import decode_once

    Image.new("RGB", (8, 8)).save(folder / "a.png")

    def cached():
        return decode_once("key", [folder / "a.png"], 8, "train")[0]

    cached()
    return list((_cache() / "images").rglob("*.npy")), cached


def images(folder):
    from PIL import Image

    from optkit.tasks.decode import LazyImages

    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return [folder / "a.png"], lambda: LazyImages([folder / "a.png"], 8, "train", np.array([0]))[np.array([0])]


def texts_of_docstrings(folder):
    from optkit.tasks import Docstrings, docstrings

    rows = {split: {"texts": ["a", "b"], "labels": [0, 1]} for split in ("train", "test")}
    with mock.patch.object(docstrings, "_sample_to", lambda new: (new / "texts.json").write_text(json.dumps(rows))):
        Docstrings().read()
    return list((_cache() / "docstrings").rglob("texts.json")), lambda: Docstrings().read()


def tables(folder):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"x": 1.0, "label": 0}, {"x": 2.0, "label": 1}])
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(folder / "saved"))
    for kind, write in (("parquet", rows.to_parquet), ("csv", rows.to_csv), ("json", rows.to_json)):
        (folder / kind).mkdir()
        write(str(folder / kind / f"train.{kind}"))
        shutil.copy(folder / kind / f"train.{kind}", folder / kind / f"test.{kind}")

    def read():
        from optkit.tasks.split_files import SUFFIXES, read_folder

        for at in ("saved", "parquet", "csv", "json"):
            assert (
                sum(len(table.cells("x", "x", split)) for split, table in read_folder(folder / at, SUFFIXES).items())
                == 4
            )

    files = [path for at in ("parquet", "csv", "json") for path in (folder / at).iterdir()]
    return [*files, *(folder / "saved").rglob("*.arrow"), *(folder / "saved").rglob("*.json")], read


def checkpoints(folder):
    from safetensors.torch import save_file

    from optkit.models.weights import load_weights

    torch.save(model().state_dict(), folder / "a.pt")
    save_file(model().state_dict(), folder / "a.safetensors")
    files = [folder / "a.pt", folder / "a.safetensors"]
    return files, lambda: [load_weights(model(1), file) for file in files]


def model_folder(folder):
    from transformers import BertConfig, BertForSequenceClassification

    from optkit.models import huggingface

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    net = BertForSequenceClassification(config)
    net.save_pretrained(folder / "safe")
    net.save_pretrained(folder / "old")
    (folder / "old/model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "old/pytorch_model.bin")
    files = [folder / "safe/model.safetensors", folder / "safe/config.json", folder / "old/pytorch_model.bin"]
    return files, lambda: [huggingface(pretrained=str(folder / at), num_classes=2) for at in ("safe", "old")]


def downloads_of_torchvision(folder):
    from torchvision import models

    os.environ["TORCH_HOME"] = str(folder)
    file = folder / "hub/checkpoints" / models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(models.squeezenet1_1().state_dict(), file)
    return [file], lambda: optkit.models.torchvision("squeezenet1_1", 1000, "DEFAULT")


def blocks_of_a_rounding(folder):
    from optkit.quantize.weights.blocks import read_tensors, write_tensors

    write_tensors(folder / "block-00000.safetensors", {"0": torch.zeros(2)})
    return [folder / "block-00000.safetensors"], lambda: read_tensors(folder / "block-00000.safetensors")


def session_of_eager(folder):
    session = optkit.engines.Eager().compile(model(), variant(), EXAMPLE)
    session.save(folder)
    return [path for path in folder.iterdir() if path.is_file()], lambda: optkit.load(folder)


def session_of_onnxruntime(folder):
    pytest.importorskip("onnxruntime")
    optkit.engines.ONNXRuntime().compile(model(), variant(), EXAMPLE).save(folder)
    return [path for path in folder.iterdir() if path.name not in ("weights.safetensors", MARKER)], lambda: optkit.load(
        folder
    )


def session_of_openvino(folder):
    pytest.importorskip("openvino")
    optkit.engines.OpenVINO().compile(model(), variant(), EXAMPLE).save(folder)
    return [path for path in folder.iterdir() if path.suffix in (".xml", ".bin", ".json")], lambda: optkit.load(folder)


SITES = [
    entry, entry_of_an_earlier_version, shared_entry, lease, variant_of_a_run, probe, lock_owner, training_state, run_folder,
    recipe, documents, json_of_the_cache, recorded_logits, tokens, decoded_images, images, texts_of_docstrings, tables,
    checkpoints, model_folder, downloads_of_torchvision, blocks_of_a_rounding, session_of_eager, session_of_onnxruntime,
    session_of_openvino,
]  # fmt: skip
UNREAD = {"special_tokens_map.json"}


def _cache():
    return Path(os.environ["OPTKIT_CACHE"])


def _some(found):
    assert found is not None


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("kind", [*POISONS][:4])
def test_the_poison_works(kind):
    loaders = {"pickle": pickle.load, "an array of objects": lambda file: np.load(file, allow_pickle=True)}
    load = loaders.get(kind, lambda file: torch.load(file, weights_only=False))
    load(io.BytesIO(POISONS[kind]))
    assert Path(MARKER).exists()


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_no_poison_runs(site, tmp_path, caplog):
    (tmp_path / "files").mkdir()
    files, read = site(tmp_path / "files")
    read()
    assert files
    for file in files:
        whole = file.read_bytes()
        for kind, poison in POISONS.items():
            file.write_bytes(poison)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                failed = _fails(read)
            assert not Path(MARKER).exists(), f"{kind} in {file.name} ran"
            assert failed or caplog.records, f"{kind} in {file.name} was not read"
            file.parent.mkdir(parents=True, exist_ok=True)  # a damaged entry was set aside
            file.write_bytes(whole)
            _put_back(file)


def _fails(read):
    try:
        read()
    except Exception:  # noqa: BLE001 - whatever it says, it did not run
        return True
    return False


def _put_back(file):
    """An entry that was set aside is an entry again."""
    aside = file.parent.with_name(f"{file.parent.name}.damaged")
    if aside.is_dir():
        for other in aside.iterdir():
            if not (file.parent / other.name).exists():
                shutil.copy(other, file.parent / other.name)
        shutil.rmtree(aside)
    manifest = file.parent / "damaged.json"
    if manifest.exists():
        manifest.replace(file.parent / "entry.json") if file.name != "entry.json" else manifest.unlink()


def test_hydras_pickles_of_a_config_are_refused(tmp_path):
    (tmp_path / "config.pickle").write_bytes(POISONS["pickle"])
    for arguments in (["--experimental-rerun", "config.pickle"], [f"--experimental-rerun={tmp_path}/config.pickle"]):
        with pytest.raises(UserError, match="--experimental-rerun: would run what is in a pickle"):
            cli(["run", "quickstart", *arguments], standalone_mode=False)
    assert not Path(MARKER).exists()


def test_a_training_checkpoint_with_a_flipped_bit_is_not_continued(tmp_path, caplog):
    from optkit.training.checkpoint import load_state, save_state

    save_state(tmp_path, {"weights": torch.zeros(1000)})
    data = bytearray((tmp_path / "training.pt").read_bytes())
    data[data.find(bytes(3000)) + 1500] ^= 1
    (tmp_path / "training.pt").write_bytes(data)
    assert load_state(tmp_path) is None
    assert "have changed" in caplog.text


# functions that may run what is in a file, and the argument that makes them read data alone
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
UNSAFE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.jit.load", "torch.export.load", "torch.package.PackageImporter", "pandas.read_pickle", "pd.read_pickle",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "np.lib.format.read_array",
}  # fmt: skip


def unsafe_readers(source):
    """The calls in a source text that may run what is in a file, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {
                word.arg: ast.literal_eval(word.value) for word in node.keywords if isinstance(word.value, ast.Constant)
            }
            argument, value = SAFE.get(name, ("", None))
            if name in UNSAFE or (argument and given.get(argument) is not value):
                found.append((name, node.lineno))
    return found


def test_no_other_code_reads_files_that_may_hold_code():
    assert unsafe_readers("import torch\ntorch.load(x)\nnp.load(x, allow_pickle=True)\npickle.load(x)") == [
        ("torch.load", 2), ("np.load", 3), ("pickle.load", 4),
    ]  # fmt: skip
    found = {
        str(path.relative_to(ROOT)): readers
        for path in ROOT.rglob("*.py")
        if (readers := unsafe_readers(path.read_text()))
    }
    assert found == {}
