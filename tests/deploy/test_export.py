"""Exports of runs and of models: the files, what they say of themselves, and that they answer as the run recorded."""

import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optkit
from optkit.core import ledger
from optkit.core.artifact import open_artifact
from optkit.core.compat.openvino import core
from optkit.core.errors import StageError, UserError
from optkit.core.records import unpack_values
from optkit.costs.result import FORMAT
from optkit.deploy import export
from optkit.deploy.target import list_files
from optkit.engines import OpenVINO
from optkit.launch import launch
from optkit.models import huggingface
from optkit.pipeline import run
from optkit.quantize import quantize_static
from optkit.recipe.compose import to_recipe
from optkit.recipe.plan import make_plan
from optkit.serving.plan import CHOSEN
from optkit.tasks import Digits
from tests.deploy.alone import run_alone

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.quantize: quantize/static
  - engine@engines.onnxruntime: onnxruntime
  - engine@engines.openvino: openvino
  - _self_
  - override model: small_cnn
  - override task: digits
name: tiny
chain: [train, quantize]
controls: []
task: {image_size: 8}
stages:
  train: {trainer: {epochs: 2, batch_size: 64}}
  quantize: {target: TARGET, batches: 2}
measure: {batch_sizes: [32], seconds: 0.02, memory: false}
"""
ENGINES = ("onnxruntime", "openvino")


def run_of(target, folder, *overrides):
    """A run's folder; of the baseline on both engines, and of int8 on one."""
    path = folder / f"{target}.yaml"
    path.write_text(RECIPE.replace("TARGET", target))
    found = []
    overrides = [f"out={folder}/runs", "~engines.inductor", "threads=1", *overrides]
    launch(str(path), overrides, lambda cfg: found.append(to_recipe(cfg)))
    return run(make_plan(found[0])).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each int8 target; they share the training."""
    folder = tmp_path_factory.mktemp("runs")
    return {target: run_of(target, folder) for target in ENGINES}


def recorded(run, stage, engine):
    """Which test examples the run found right."""
    (record,) = (r for r in ledger.read(run) if r.stage == stage)
    return unpack_values(record.find_primary(engine=engine).raw)


class Two(nn.Module):
    """Two named inputs, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 2)

    def forward(self, left, right):
        both = self.project(left) + self.project(right)
        return {"sum": both, "boxes": both.relu() - 1}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", ["0-train", "1-quantize"])
def test_infer_gives_the_recorded_answers(runs, engine, variant, tmp_path):
    done = export(runs[engine] / "variants" / variant, tmp_path / "out", engine=engine, test_files=True)
    right = recorded(runs[engine], variant[2:], engine)
    assert done.recorded == {
        "metric": "accuracy", "value": right.mean(), "unit": "1", "examples": 540, "split": "test", "batch_size": 32,
    }  # fmt: skip
    said = run_alone(done.folder, "infer.py", "test/test.csv")
    assert said.stdout == f"accuracy {right.mean():.6f} ({right.sum()} of 540)\n", said.stderr
    # each answer for itself, and not only how many are right
    rows = [line.split(",") for line in (done.folder / "test/test.csv").read_text().splitlines()[1:]]
    said = run_alone(done.folder, "infer.py", *(f"test/{file}" for file, _ in rows))
    answers = [line.split(" ") for line in said.stdout.splitlines()]
    assert [file for file, _ in answers] == [f"test/{file}" for file, _ in rows]
    assert [answer == label for (_, answer), (_, label) in zip(answers, rows, strict=True)] == right.tolist()


@pytest.mark.slow
def test_a_run_stands_for_the_last_variant_of_its_chain(runs, tmp_path, caplog):
    caplog.set_level("INFO", logger="optkit")
    done = export(runs["openvino"], tmp_path / "out", engine="openvino")
    about = json.loads((done.folder / "export.json").read_text())
    assert about["name"] == "tiny-1-quantize"
    assert "exporting" in caplog.text
    assert "this run has 0-train, 1-quantize" in caplog.text


@pytest.mark.slow
def test_a_run_that_started_from_a_variant(runs, tmp_path):
    start = ["model=variant", f"model.variant={runs['openvino']}/variants/0-train", "chain=[quantize]"]
    found = run_of("onnxruntime", tmp_path, *start)
    done = export(found, tmp_path / "out", engine="onnxruntime", test_files=True)
    right = recorded(found, "quantize", "onnxruntime")
    said = run_alone(done.folder, "infer.py", "test/test.csv")
    assert said.stdout == f"accuracy {right.mean():.6f} ({right.sum()} of 540)\n", said.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "inductor"])
def test_packages_of_torch(runs, engine, tmp_path):
    done = export(runs["openvino"] / "variants/0-train", tmp_path / "out", engine=engine, test_files=True)
    right = recorded(runs["openvino"], "train", "eager")
    said = run_alone(done.folder, "infer.py", "test/test.csv", refused=("optkit", "transformers"))
    assert said.stdout == f"accuracy {right.mean():.6f} ({right.sum()} of 540)\n", said.stderr
    held = {"classes": "", "preprocess": ""}
    torch.export.load(done.folder / "model.pt2", extra_files=held)
    assert json.loads(held["classes"]) == [str(n) for n in range(10)]
    assert "may run code" in (done.folder / "README.md").read_text()


@pytest.mark.slow
def test_the_files_say_what_they_need(runs, tmp_path):
    import onnxruntime

    variant = runs["onnxruntime"] / "variants/0-train"
    done = {engine: export(variant, tmp_path / engine, engine=engine).folder for engine in ENGINES}
    session = onnxruntime.InferenceSession(done["onnxruntime"] / "model.onnx")
    model = core().read_model(done["openvino"] / "model.xml")
    rules = {engine: json.loads((folder / "preprocess.json").read_text()) for engine, folder in done.items()}
    assert rules["onnxruntime"] == rules["openvino"]
    assert rules["openvino"]["inputs"] == [
        {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    ]  # fmt: skip
    assert rules["openvino"]["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == rules["openvino"]["classes"]
    assert json.loads(held["preprocess"])["mean"] == rules["openvino"]["mean"]
    assert json.loads(model.get_rt_info(["model_info", "classes"]).astype(str)) == rules["openvino"]["classes"]
    assert json.loads(model.get_rt_info(["model_info", "preprocess"]).astype(str))["color"] == "L"
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    ours = session.run(["logits"], {"pixel_values": images})[0]
    theirs = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"pixel_values": images})["logits"]
    assert np.allclose(ours, theirs, atol=1e-4)
    assert ours.shape == (3, 10)


@pytest.mark.parametrize("engine", [*ENGINES, "torch"])
def test_a_model_without_a_task(engine, tmp_path):
    model = Two().eval()
    done = export(model, tmp_path / "out", engine=engine, example_inputs=(torch.randn(2, 4), torch.randn(2, 4)))
    rules = json.loads((done.folder / "preprocess.json").read_text())
    assert [put["name"] for put in rules["inputs"]] == ["left", "right"]
    assert [put["name"] for put in rules["outputs"]] == ["sum", "boxes"]
    assert "How files become these inputs is not known" in (done.folder / "README.md").read_text()
    given = {name: torch.randn(5, 4) for name in ("right", "left")}
    np.savez(tmp_path / "in.npz", **{name: x.numpy() for name, x in given.items()})
    refused = ("optkit",) if engine == "torch" else ("optkit", "torch")
    said = run_alone(done.folder, "infer.py", tmp_path / "in.npz", tmp_path / "out.npz", refused=refused)
    assert said.returncode == 0, said.stderr
    with torch.no_grad(), np.load(tmp_path / "out.npz") as found:
        wanted = model(**given)
        assert set(found) == set(wanted)
        for name, x in wanted.items():
            assert np.allclose(found[name], x.numpy(), atol=1e-5)


@pytest.mark.parametrize("engine", [*ENGINES, "torch"])
def test_files_hold_no_example_inputs_and_no_paths(engine, tmp_path):
    examples = tuple(torch.full((2, 4), 1234.5) for _ in range(2))
    folder = export(Two().eval(), tmp_path, engine=engine, example_inputs=examples).folder
    if engine == "torch":
        with zipfile.ZipFile(folder / "model.pt2") as package:
            content = b"".join(package.read(name) for name in package.namelist())
    else:
        content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert np.float32(1234.5).tobytes() * 4 not in content
    assert str(Path(__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_a_quantized_model_keeps_its_answers(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    images = torch.randn(16, 1, 8, 8)
    int8 = quantize_static(model, (images,), [(images,)], target="onnxruntime")
    done = export(int8, tmp_path / "out", engine="onnxruntime", example_inputs=(images[:2],))
    session = onnxruntime.InferenceSession(done.folder / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - int8.module(images).numpy()).max() < 0.05


@pytest.mark.slow
def test_an_int8_package_runs_int8_kernels(tmp_path, monkeypatch):
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    int8 = quantize_static(model, (images,), [(images,)], target="inductor")
    done = export(int8, tmp_path / "out", engine="inductor", example_inputs=(images[:2],))
    np.savez(tmp_path / "in.npz", input=images.numpy())
    for name, value in {"TORCH_LOGS": "output_code", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}.items():
        monkeypatch.setenv(name, value)
    said = run_alone(done.folder, "infer.py", tmp_path / "in.npz", tmp_path / "out.npz", refused=("optkit",))
    assert said.returncode == 0, said.stderr
    assert "qconv" in said.stderr
    assert "qlinear" in said.stderr
    with torch.no_grad(), np.load(tmp_path / "out.npz") as found:
        assert np.abs(found["logits"] - int8.module(images).numpy()).max() < 0.05


def test_pictures_without_classes_give_arrays(tmp_path):
    from PIL import Image

    rules = {
        "kind": "image", "color": "RGB", "resize": {"stretch": [6, 10], "filter": "bilinear"}, "size": [6, 10],
        "mean": [0.5] * 3, "std": [0.25] * 3, "classes": None,
    }  # fmt: skip
    model = nn.Conv2d(3, 2, 1).eval()
    example = (torch.zeros(2, 3, 6, 10),)
    done = export(model, tmp_path / "out", engine="onnxruntime", example_inputs=example, preprocessing=rules)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "one.png")
    said = run_alone(done.folder, "infer.py", tmp_path / "one.png", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    small = np.asarray(image.resize((10, 6), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)
    with torch.no_grad(), np.load(tmp_path / "one.npz") as found:
        wanted = model(torch.from_numpy((small / 255 - 0.5) / 0.25)[None])
        assert np.allclose(found["logits"], wanted.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_folder_for_from_pretrained(tmp_path):
    from transformers import AutoModelForImageClassification

    config = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    model = huggingface(config=config, inputs=["pixel_values"], num_classes=10, in_channels=1, input_shape=[1, 8, 8])
    task = Digits(image_size=8, limit=64)
    done = export(model.eval(), tmp_path / "out", engine="huggingface", task=task, test_files=True)
    loaded = AutoModelForImageClassification.from_pretrained(done.folder).eval()
    assert loaded.config.id2label == {n: str(n) for n in range(10)}
    (batch,) = task.batches("test", 64)
    with torch.no_grad():
        right = (loaded(*batch.inputs).logits.argmax(-1) == batch.targets).sum()
    said = run_alone(done.folder, "infer.py", "test/test.csv", refused=("optkit",))
    assert said.stdout == f"accuracy {int(right) / 64:.6f} ({int(right)} of 64)\n", said.stderr


SHAPES = """
import runpy
import sys
sys.argv = sys.argv[1:]
found = runpy.run_path("infer.py", run_name="__main__")
print({full: model.inputs[0].get_partial_shape().to_string() for full, model in found["compiled"].items()})
"""


def test_openvino_compiles_full_batches_for_their_shape(tmp_path):
    task = Digits(image_size=8, limit=40)
    folder = export(linear_digits(), tmp_path, engine="openvino", task=task, test_files=True).folder
    done = run_alone(folder, "-c", SHAPES, "test/test.csv")
    assert "True: '[32,1,8,8]'" in done.stdout, done.stderr
    assert "False: '[?,1,8,8]'" in done.stdout


def linear_digits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def test_names_of_classes_that_need_care(tmp_path):
    classes = ['a "quoted", name', "<b>&amp;", "漢字 🙂", "line\nbreak", ""]
    rules = {"kind": None, "classes": classes}
    model, example = nn.Linear(3, 5).eval(), (torch.zeros(2, 3),)
    for engine in ENGINES:
        export(model, tmp_path / engine, engine=engine, example_inputs=example, preprocessing=rules)
    held = core().read_model(tmp_path / "openvino/model.xml").get_rt_info(["model_info", "classes"])
    assert json.loads(held.astype(str)) == classes
    text = (tmp_path / "onnxruntime/README.md").read_text()
    assert "&lt;b>" in text
    assert "<b>" not in text.replace("&lt;b>", "")


def linear(folder, **options):
    torch.manual_seed(0)
    return export(nn.Linear(3, 2).eval(), folder, engine="onnxruntime", example_inputs=(torch.zeros(2, 3),), **options)


def test_where_an_export_may_be_written(tmp_path):
    linear(tmp_path / "out")
    (tmp_path / "out/mine.txt").write_text("kept")
    linear(tmp_path / "out")  # the same variant, again
    assert (tmp_path / "out/mine.txt").read_text() == "kept"
    example = (torch.zeros(2, 3),)
    with pytest.raises(UserError, match="holds another export: linear for onnxruntime"):
        export(nn.Linear(3, 2).eval(), tmp_path / "out", engine="openvino", example_inputs=example)
    export(nn.Linear(3, 2).eval(), tmp_path / "out", engine="openvino", example_inputs=example, force=True)
    assert "model.onnx" not in list_files(tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "kept"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    with pytest.raises(UserError, match="full is not empty, and no export"):
        linear(tmp_path / "full")
    assert list_files(tmp_path / "full") == ["mine.txt"]
    linear(tmp_path / "full", force=True)
    assert (tmp_path / "full/mine.txt").read_text() == "kept"
    with pytest.raises(UserError, match="mine.txt is a file"):
        linear(tmp_path / "full/mine.txt")
    (tmp_path / "empty").mkdir()
    assert linear(tmp_path / "empty").files == ("README.md", "infer.py", "model.onnx", "prepare.py", "preprocess.json")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fails(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    linear(tmp_path / "old")
    before = {name: (tmp_path / "old" / name).read_bytes() for name in list_files(tmp_path / "old")}
    monkeypatch.setattr("optkit.deploy.exporting.scripts", fails)
    for folder in ("new", "old"):
        with pytest.raises(StageError, match="No space left on device"):
            linear(tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert {name: (tmp_path / "old" / name).read_bytes() for name in list_files(tmp_path / "old")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    assert [path.name for path in (tmp_path / "old").iterdir() if path.name.startswith(".")] == []


def test_mistakes(tmp_path, monkeypatch):
    to, example = tmp_path / "out", (torch.zeros(2, 3),)
    with pytest.raises(UserError, match="no variant at"):
        export(tmp_path / "nothing", to, engine="onnxruntime")
    with pytest.raises(UserError, match="no export for 'onxruntime'") as found:
        export(nn.Linear(3, 2), to, engine="onxruntime", example_inputs=example)
    assert found.value.fix == "did you mean 'onnxruntime'?"
    with pytest.raises(UserError, match="exported by example inputs"):
        export(nn.Linear(3, 2), to, engine="torch")
    with pytest.raises(UserError, match="a int is no model"):
        export(3, to, engine="torch", example_inputs=example)
    with pytest.raises(UserError, match="it is no model of transformers"):
        export(nn.Linear(3, 2), to, engine="huggingface", example_inputs=example)
    with pytest.raises(UserError, match="the task is not known"):
        linear(to, test_files=True)
    images = torch.randn(4, 1, 8, 8)
    int8 = quantize_static(nn.Conv2d(1, 4, 3).eval(), (images,), [(images,)], target="openvino")
    for engine, reason in {"onnxruntime": "annotated for openvino", "torch": "in float"}.items():
        with pytest.raises(UserError, match=reason) as found:
            export(int8, to, engine=engine, example_inputs=(images,))
        assert found.value.fix == "or export it for openvino"
    monkeypatch.setattr("optkit.core.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"openvino, onnx, onnxscript not installed"):
        export(nn.Linear(3, 2), to, engine=OpenVINO(), example_inputs=example)
    assert not to.exists()


@pytest.mark.slow
def test_mistakes_with_runs(runs, tmp_path):
    folder, to = runs["onnxruntime"], tmp_path / "out"
    with pytest.raises(UserError, match="other data than those"):
        export(folder, to, engine="onnxruntime", overrides=["task.limit=20"])
    with pytest.raises(UserError, match="annotated for onnxruntime"):
        export(folder, to, engine="openvino")
    lone = tmp_path / "lone"
    subprocess.run(["cp", "-r", folder / "variants/1-quantize", lone], check=True)
    with pytest.raises(UserError, match="no recipe beside this variant"):
        export(lone, to, engine="onnxruntime", overrides=["task.limit=20"])
    assert not to.exists()
    export(lone, to, engine="onnxruntime")
    assert json.loads((to / "preprocess.json").read_text())["inputs"][0]["shape"] == ["batch", 1, 8, 8]


@pytest.mark.slow
def test_the_command(runs, tmp_path, command_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command_here("export", runs["openvino"], "--engine", "openvino", "--to", "served", "--test-files")
    assert "recorded accuracy: " in done.stdout
    assert "try it: cd served && python infer.py test/test.csv" in done.stdout
    done = command_here("export", runs["openvino"], "--engine", "onnxruntime", "--to", "other")
    assert "annotated for openvino" in str(done.exception)
    assert not (tmp_path / "other").exists()


def test_the_name_in_optkit():
    assert optkit.export is export
    assert Path(str(optkit.deploy.__file__)).parent.name == "deploy"


@pytest.mark.parametrize("of", [".", "variants/1-quantize"])
def test_a_repository_gets_the_numbers_of_the_runs_cheapest_deployment(runs, tmp_path, command_here, of):
    run = runs["openvino"]
    deployment = dict.fromkeys(CHOSEN) | {
        "engine": "openvino", "variant": open_artifact(run / "variants/1-quantize").variant.id, "policy": "fixed",
        "dollars_a_million": 1.0, "max_batch": 4, "max_wait_ms": 3.0, "replicas": 2, "threads": 2,
    }  # fmt: skip
    (run / "cost.json").write_text(json.dumps({"format": FORMAT, "deployments": [deployment]}))
    done = command_here("export", run / of, "--engine", "openvino", "--to", tmp_path / "to", "--repository", "ovms")
    (run / "cost.json").unlink()
    assert done.exit_code == 0, done.exception
    config = json.loads((tmp_path / "to/config.json").read_text())["model_config_list"][0]["config"]
    assert config["target_device"] == "BATCH:CPU(4)"
    assert config["plugin_config"]["AUTO_BATCH_TIMEOUT"] == 3
