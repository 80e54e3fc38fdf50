import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optkit.cli import cli
from optkit.core.cores import default_threads

RECIPE = """
# A test: train, mask
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.mask: prune/magnitude
  - stage@stages.quantize: quantize/static
  - stage@stages.recover: distill/logits
  - _self_
  - override model: mlp
name: test
chain: [train, mask]
model: {widths: [16]}
task: {image_size: 8, limit: 64}
stages: {train: {trainer: {epochs: 1}}}
threads: 1
measure: {batch_sizes: [4], seconds: 0.05, memory: false}
"""

EVERY_COMMAND = list(cli.commands)
EVERY_COMMAND += [f"{name} {one}" for name in ("sweep", "store") for one in cli.commands[name].commands]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "test.yaml"
    path.write_text(RECIPE)
    return path


def test_help_starts_without_torch():
    code = "import sys; import optkit.cli; sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'rich', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unforeseen_error_is_one_line_and_with_debug_a_traceback():
    code = "import optkit.recipe.compose as it; it.bundled_recipes = lambda: 1 / 0; from optkit.cli import main; main()"
    short, long = (
        subprocess.run([sys.executable, "-c", code, "recipes", *flags], capture_output=True, text=True, check=False)
        for flags in ([], ["--debug"])
    )
    assert (short.returncode, short.stderr) == (1, "error: ZeroDivisionError: division by zero (--debug shows where)\n")
    assert long.returncode == 1
    assert long.stderr.startswith("Traceback")


def test_help_names_every_command(command_here):
    text = command_here("--help").output
    for command in cli.commands:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", EVERY_COMMAND)
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_every_command_has_help(command, asked, command_here):
    found = command_here(*command.split(), asked)
    assert found.exit_code == 0
    assert found.output.startswith(f"Usage: optkit {command} [OPTIONS]")
    assert command in ("sweep", "store") or "--debug" in found.output


def test_help_of_a_recipe_shows_its_values_and_what_may_take_their_place(optkit_command, tmp_path):
    done = optkit_command("run", "quickstart", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stage/prune: depth, gradual, iterative, magnitude, pattern, structured" in done.stdout
    assert "depth: 14" in done.stdout
    assert "KEY=VALUE" in done.stdout
    assert "Hydra" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_report_and_rerun_from_the_run_folder(optkit_command, command_here, recipe, tmp_path, monkeypatch):
    done = optkit_command("run", recipe, "~engines.inductor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 train" in done.stdout
    assert "1 mask" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    folder = next((tmp_path / "runs").glob("test-*"))
    names = {p.name for p in folder.iterdir()}
    assert {
        "ledger.jsonl",
        "recipe.yaml",
        "report.md",
        "report.json",
        "tradeoff.svg",
        "tradeoff.png",
        "variants",
    } <= names
    rows = json.loads(command_here("report", folder, "--format", "json").stdout)
    assert [row["stage"] for row in rows] == ["train", "mask"]
    assert command_here("report", folder, "--format", "md").stdout == (folder / "report.md").read_text()

    again = command_here("run", recipe, "~engines.inductor")
    assert "is complete: nothing was run" in again.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"test.yaml", "runs"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert command_here("run", folder / "recipe.yaml", "out=here").exception is None
    other = next((elsewhere / "here").glob("test-*"))
    assert other.name == folder.name
    ours, theirs = (json.loads((f / "report.json").read_text()) for f in (folder, other))
    assert [r["quality"] for r in ours] == [r["quality"] for r in theirs]


@pytest.mark.slow
def test_sensitivity_is_that_of_the_baseline_in_the_store(command_here, recipe, tmp_path):
    cut = ["+stage@stages.cut=prune/structured", "chain=[train,cut]", "~engines.inductor"]
    cut += ["stages.cut.scope=sensitivity", "stages.cut.sensitivity_examples=20"]
    assert command_here("run", recipe, *cut).exception is None
    (folder,) = (tmp_path / "runs").glob("test-*")
    assert (folder / "sensitivity-1-cut.svg").read_text().startswith("<svg")
    done = command_here("sensitivity", recipe, *cut, "--metric", "loss")
    assert done.exception is None
    assert "the model as built" not in done.stderr
    assert done.stdout.startswith("MLP: loss ")
    assert done.stdout.endswith(f"run folder: {folder.relative_to(tmp_path)}\n")
    assert (folder / "sensitivity.svg").read_text().startswith("<svg")
    record = json.loads((folder / "ledger.jsonl").read_text().splitlines()[1])
    curves = json.loads((folder / "sensitivity.json").read_text())["curves"]
    assert curves == record["facts"]["sensitivity"]["curves"]
    done = command_here("sensitivity", recipe, *cut, "--technique", "quantize")
    assert done.stdout.endswith(f"run folder: {folder.relative_to(tmp_path)}\n")
    assert (folder / "sensitivity_int8.json").exists()
    done = command_here("sensitivity", recipe, *cut, "--technique", "quantize", "--metric", "metric")
    assert str(done.exception).startswith("--metric: int8 is told apart by the loss alone")


@pytest.mark.slow
def test_a_multirun_makes_a_run_for_each_value(command_here, recipe, tmp_path):
    assert command_here("run", recipe, "-m", "stages.mask.amount=0.3,0.6", "~engines.inductor").exception is None
    assert len(list((tmp_path / "runs").glob("test-*"))) == 2
    trained = list((tmp_path / "runs" / "store").glob("*/variant.json"))
    assert len(trained) == 4


@pytest.mark.slow
def test_a_multirun_goes_on_after_a_failure_and_reports_it(command_here, recipe, tmp_path):
    done = command_here("run", recipe, "-m", "stages.mask.amount=3,0.6", "~engines.inductor")
    said = "stages.mask.amount: 3 is not a share between 0 and 1 (0.5 is half) (job 0: stages.mask.amount=3)"
    assert str(done.exception).startswith(said)
    assert "job 1: stages.mask.amount=0.6\n" in done.stderr
    assert len(list((tmp_path / "runs").glob("test-*"))) == 1


def test_hydras_flags_work(command_here, recipe, tmp_path):
    shown = command_here("run", recipe, "--cfg", "job", "stages.mask.amount=0.7")
    assert "amount: 0.7" in shown.stdout
    part = command_here("run", "quickstart", "--cfg", "job", "--package", "stages.prune")
    assert "optkit.prune.StructuredPruning" in part.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["test.yaml"]


@pytest.mark.parametrize(
    "override",
    ["stages.mask.amount=0.6", "chain=[mask]", "stage@stages.quantize=prune/magnitude",
     "+stage@stages.again=distill/logits", "model=small_cnn"],
)  # fmt: skip
def test_documented_overrides_compose(command_here, recipe, override):
    extra = ["~model.widths"] if override == "model=small_cnn" else []
    assert command_here("run", recipe, override, *extra, "--cfg", "job").exception is None


BAD = {
    "unknown recipe": (["run", "quickstrat"], "recipe: no recipe 'quickstrat' (did you mean 'quickstart'?"),
    "missing recipe file": (["run", "nowhere.yaml"], "no recipe file nowhere.yaml"),
    "unknown override": (["run", "test.yaml", "stages.mask.amuont=0.5"], "stages.mask.amuont: unknown key (did you mean 'amount'?"),
    "unknown key in a mapping": (["run", "test.yaml", "stages={mask: {amuont: 0.5}}"], "stages.mask.amuont: unknown key (did you mean 'amount'?"),
    "unknown top key": (["run", "test.yaml", "chian=[train]"], "chian: unknown key (did you mean 'chain'?"),
    "folder named like a key": (["run", "test.yaml", "store=x"], "store: Hydra takes the folder 'store' beside the recipe for a config group"),
    "misspelt key in the file": (["run", "bad.yaml"], "stages.mask.amuont: unknown key"),
    "misspelt top key in the file": (["run", "top.yaml"], "chian: unknown key (did you mean 'chain'?)"),
    "unknown group value": (["run", "test.yaml", "model=resnet20"], "model: no config 'model/resnet20' (did you mean"),
    "unknown stage config": (["run", "test.yaml", "+stage@stages.x=prune/structural"], "did you mean 'structured'"),
    "out of range": (["run", "test.yaml", "stages.mask.amount=1.5"], "stages.mask.amount: 1.5 is not a share between 0 and 1"),
    "trainer out of range": (["run", "test.yaml", "stages.train.trainer.lr=-1"], "stages.train.trainer.lr: -1 is out of range"),
    "not a number": (["run", "test.yaml", "stages.mask.amount=half"], "stages.mask.amount: 'half'"),
    "distill after int8": (["run", "test.yaml", "chain=[train,quantize,recover]"], "chain: 'recover' needs a model that is float"),
    "unknown stage in chain": (["run", "test.yaml", "chain=[train,maks]"], "chain: no stage 'maks' (did you mean 'mask'?)"),
    "missing file": (["run", "test.yaml", "model.checkpoint=no.safetensors"], "model.checkpoint: no file"),
    "wrong checkpoint": (["run", "test.yaml", "model.checkpoint=wrong.safetensors"], "4 of the model's 4 (layers.1.weight, layers.1.bias, and 2 more); not in the model: 1 (x)"),
    "no test split": (["run", "test.yaml", "task=cifar10", "~task.limit", "~task.image_size", "task.path=data"], "has no test split"),
    "missing data folder": (["run", "test.yaml", "task=imagefolder", "~task.limit", "task.path=nodata"], "task.path: no folder"),
    "value not given": (["run", "test.yaml", "task=imagefolder"], "task.path"),
    "unwritable folder": (["run", "test.yaml", "out=/proc/nowhere"], "cannot write to /proc/nowhere"),
    "engine not installed": (["run", "test.yaml", "PATH"], "engines.inductor: does not work here: no C++ compiler found (install g++)"),
    "a batch size that is no list": (["run", "test.yaml", "measure.batch_sizes=32"], "32 are not batch sizes"),
    "an unknown option": (["run", "--queit", "test.yaml"], "no option '--queit'"),
    "unknown engine": (["run", "test.yaml", "+engine@engines.trt=tensorrt"], "no config 'engine/tensorrt'"),
    "an engine that is nothing": (["run", "test.yaml", "engines.inductor=null"], "engines.inductor: None is not a mapping (~engines.inductor leaves it out)"),
    "a stage that is a mapping": (["run", "test.yaml", "chain=[{train: 1}]"], "chain: {'train': 1} is not a name"),
    "debug that is a number": (["run", "test.yaml", "++debug=5"], "debug"),
    "threads that are true": (["run", "test.yaml", "threads=true"], "threads: True is not a number of threads"),
    "no engine": (["run", "test.yaml", "~engines.eager", "~engines.inductor"], "engines: no engine"),
    "bad syntax": (["run", "test.yaml", "stages.mask.amount"], "stages.mask.amount"),
    "not quoted for Hydra": (["run", "test.yaml", "task.path=/data/lr=0.1 run"], "for the shell: \"task.path='/data/lr=0.1 run'\""),
    "a folder of Hydra's": (["run", "test.yaml", "hydra.run.dir=elsewhere"], "hydra.run.dir: optkit does not run in a folder of Hydra's (out=DIR"),
    "a folder of Hydra's in a mapping": (["run", "test.yaml", "++hydra.run={dir: elsewhere}"], "hydra.run.dir: optkit does not run"),
    "unknown format of messages": (["run", "test.yaml", "log=jsn"], "log: no format 'jsn' (did you mean 'json'?)"),
    "torchrun": (["run", "test.yaml", "WORLD_SIZE"], "MASTER_ADDR: WORLD_SIZE is 2, and MASTER_ADDR is not set (start optkit by torchrun"),
    "broken YAML": (["run", "broken.yaml"], "broken.yaml"),
    "unknown run": (["report", "nowhere"], "no ledger at nowhere"),
    "unknown command": (["rnu"], "No such command 'rnu'"),
}  # fmt: skip


# makes the mistakes one after the other; gives the exit code, standard error and new files of each
MAKE = """
import contextlib, io, json, os, sys
from pathlib import Path
from optkit.cli import main
found, usual, here = {}, dict(os.environ), set(Path().rglob("*"))
for name, arguments in json.load(sys.stdin).items():
    if "PATH" in arguments:
        os.environ["PATH"] = os.getcwd()
    if "WORLD_SIZE" in arguments:
        os.environ |= {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    sys.argv = ["optkit", *(a for a in arguments if a not in ("PATH", "WORLD_SIZE"))]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            left = set(Path().rglob("*")) - here
            found[name] = end.code, said.getvalue(), [str(path) for path in left]
    here |= left
    for name in os.environ.keys() - usual.keys():
        del os.environ[name]
    os.environ |= usual
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """What comes of each mistake, all made in one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "test.yaml").write_text(RECIPE)
    (folder / "bad.yaml").write_text(RECIPE.replace("stages: {", "stages: {mask: {amuont: 0.5}, "))
    (folder / "top.yaml").write_text(RECIPE + "chian: [train]\n")
    (folder / "broken.yaml").write_text("chain: [train\nname: {")
    save_file({"x": torch.zeros(1)}, folder / "wrong.safetensors")
    (folder / "data").mkdir()
    (folder / "store").mkdir()
    (folder / "data" / "train.parquet").write_bytes(b"")
    given = json.dumps({name: arguments for name, (arguments, _) in BAD.items()})
    done = subprocess.run(
        [sys.executable, "-c", MAKE], input=given, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_one_line_that_names_it_and_leaves_nothing(mistakes, mistake):
    code, said, left = mistakes[mistake]
    assert code == 2
    assert BAD[mistake][1] in said
    assert "Traceback" not in said
    if mistake != "unknown command":
        assert len(said.strip().splitlines()) == 1, said
    assert left == []


def test_lists_show_what_there_is(command_here):
    assert "quickstart" in command_here("recipes").stdout
    stages = command_here("stages").stdout
    for name in ("train", "prune/magnitude", "prune/structured", "distill/logits", "quantize/static"):
        assert f"stage@stages.NAME={name}" in stages
    assert "amount = 0.5" in stages


@pytest.mark.slow
def test_doctor_says_which_engines_work_and_what_limits_threads(command_here, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = " ".join(command_here("doctor").stdout.split())
    assert "engine inductor" in text
    assert f"threads {default_threads()}" in text
    assert torch.__version__.split("+")[0] in text


@pytest.mark.slow
def test_a_users_own_stage_needs_no_registration(optkit_command, recipe, tmp_path):
    Path(tmp_path / "mystage.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport torch\nfrom optkit.core.stage import Outcome\n"
        "@dataclass\nclass Halve:\n    factor: float = 0.5\n    technique: ClassVar[str] = 'mine'\n"
        "    needs: ClassVar = frozenset({'float'})\n    adds: ClassVar = frozenset()\n    drops: ClassVar = frozenset()\n"
        "    def apply(self, module, ctx):\n        with torch.no_grad():\n            for p in module.parameters(): p.mul_(self.factor)\n"
        "        return Outcome(module, {'factor': self.factor})\n"
    )
    added = [
        "+stages.mine._target_=mystage.Halve",
        "+stages.mine.factor=0.25",
        "chain=[train,mine]",
        "~engines.inductor",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "optkit", "run", str(recipe), *added]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1 mine" in done.stdout
