import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import optkit
from optkit.core import ledger
from optkit.core.errors import StageError, UserError
from optkit.core.stage import Outcome
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.pipeline import baseline, run
from optkit.prune import MagnitudePruning
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.tasks import Digits
from optkit.training import Train, Trainer

pytestmark = pytest.mark.slow

FLOAT = frozenset({"float"})


def _train(epochs=12):
    return Train(Trainer(epochs=epochs, batch_size=64, optimizer="adamw", lr=0.02, schedule="cosine"))


@pytest.fixture
def recipe(digits, tmp_path):
    return Recipe(
        name="small",
        model={"_target_": "optkit.models.MLP", "widths": [32], "num_classes": None, "input_shape": None},
        task=digits,
        chain=["train", "mask", "tune"],
        stages={"train": _train(), "mask": MagnitudePruning(0.5), "tune": _train(2)},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, memory=False),
        threads=1,
        out=str(tmp_path / "runs"),
        text="name: small\n",
    )


def _answers(folder):
    return [(r.stage, [m.raw for m in r.measurements if m.name == "accuracy"]) for r in ledger.read(folder)]


def test_a_run_measures_the_baseline_and_every_stage_after_it(recipe):
    folder = run(make_plan(recipe)).folder
    records = ledger.read(folder)
    assert [(r.step, r.stage, r.technique) for r in records] == [
        (0, "train", "train"),
        (1, "mask", "prune"),
        (2, "tune", "train"),
    ]
    assert records[0].parent is None
    assert records[1].parent == records[0].variant == records[0].baseline == records[2].baseline
    by_name = [{m.name: m.value for m in r.measurements} for r in records]
    assert [round(m["sparsity"], 2) for m in by_name] == [0.0, 0.5, 0.5]
    assert by_name[0]["accuracy"] > 0.6
    assert all(r.cost.wall_s > 0 for r in records)
    assert (folder / "recipe.yaml").read_text() == "name: small\n"


def test_what_lies_in_the_run_folder_is_what_was_measured(recipe, digits):
    folder = run(make_plan(recipe)).folder
    for record in ledger.read(folder):
        module = optkit.load(folder / "variants" / f"{record.step}-{record.stage}")
        with torch.no_grad():
            batch = next(digits.batches("test", digits.size("test")))
            correct = module(*batch.inputs).argmax(-1) == batch.targets
        accuracy = next(m for m in record.measurements if m.name == "accuracy")
        assert accuracy.value == pytest.approx(correct.float().mean().item())


def test_a_run_calls_the_users_own_builder_and_stage_and_nothing_else_of_theirs(recipe):
    own = replace(
        recipe,
        model={"_target_": f"{__name__}.build_own", "num_classes": None, "input_shape": None},
        chain=["train", "narrow"],
        stages={"train": _train(1), "narrow": Narrow()},
    )
    folder = run(make_plan(own)).folder / "variants" / "1-narrow"
    with pytest.raises(UserError, match="build_own is no class of models"):
        optkit.load(folder, trust=[__name__])
    own_names = [f"{__name__}.build_own", f"{__name__}.Narrow"]
    assert isinstance(optkit.load(folder, trust=own_names).narrow, torch.nn.Linear)
    assert set(make_plan(own).trusted) == {*own_names, "optkit.training.stages.Train"}


def build_own(num_classes, input_shape):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[-1] ** 2, num_classes))


@dataclass
class Narrow:
    technique: ClassVar[str] = "narrow"
    needs: ClassVar = FLOAT
    adds: ClassVar = frozenset()
    drops: ClassVar = frozenset()

    def apply(self, module, ctx):
        return Outcome(self.replay(module, {}, ()), surgery={})

    @staticmethod
    def replay(module, surgery, example):
        module.add_module("narrow", torch.nn.Linear(10, 10))
        return module


def test_the_baseline_is_the_stores_or_the_model_as_built(recipe, caplog):
    folder, built = baseline(make_plan(recipe))
    assert "the baseline is not in the store yet" in caplog.text
    assert torch.equal(
        built.state_dict()["layers.1.weight"], baseline(make_plan(recipe))[1].state_dict()["layers.1.weight"]
    )
    caplog.clear()
    assert run(make_plan(recipe)).folder == folder
    again, trained = baseline(make_plan(recipe))
    assert again == folder
    assert "not in the store" not in caplog.text
    expected = optkit.load(folder / "variants" / "0-train")
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in trained.state_dict().items())


def test_a_finished_run_is_not_run_again(recipe, monkeypatch):
    first = run(make_plan(recipe))
    assert first.worked
    monkeypatch.setattr(Train, "apply", lambda *a: pytest.fail("trained again"))
    again = run(make_plan(recipe))
    assert (again.folder, again.worked) == (first.folder, False)
    assert len(ledger.read(first.folder)) == 3


def test_one_more_metric_is_another_run_of_the_same_variants(recipe):
    task = Digits(image_size=8, crop=1, limit=256, metrics=["accuracy", "macro_f1"])
    plan, more = make_plan(recipe), make_plan(replace(recipe, task=task))
    assert more.run != plan.run
    assert [step.id for step in more.steps] == [step.id for step in plan.steps]


def test_the_same_recipe_gives_the_same_answers_to_the_last_example(recipe, tmp_path):
    first = run(make_plan(recipe)).folder
    second = run(make_plan(replace(recipe, out=str(tmp_path / "other")))).folder
    third = run(make_plan(replace(recipe, fresh=True))).folder
    assert len({first, second, third}) == 3
    assert _answers(first) == _answers(second) == _answers(third)


def test_a_shared_prefix_is_computed_once(recipe, monkeypatch):
    run(make_plan(recipe))
    trained = []
    real = Train.apply
    monkeypatch.setattr(Train, "apply", lambda self, module, ctx: trained.append(self) or real(self, module, ctx))
    run(make_plan(replace(recipe, stages=recipe.stages | {"mask": MagnitudePruning(0.7)})))
    assert len(trained) == 1


def test_hosts_share_stages_through_a_url_whichever_made_them(recipe, tmp_path, monkeypatch):
    shared, done = replace(recipe, store=(tmp_path / "shared").as_uri()), []
    monkeypatch.setattr("optkit.pipeline.peaks", lambda threads: {})
    for host in ("a", "b"):
        monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / host))
        done.append(run(make_plan(replace(shared, out=str(tmp_path / f"runs-{host}")))))
        monkeypatch.setattr(Train, "apply", lambda *a: pytest.fail("trained again"))
    assert [(d.made, d.reused) for d in done] == [(3, 1), (0, 4)]
    assert _answers(done[0].folder) == _answers(done[1].folder)
    for folder in (d.folder for d in done):
        assert all((variant / "entry.json").is_file() for variant in (folder / "variants").iterdir())


@pytest.mark.parametrize("damaged", ["weights.safetensors", "variant.json"])
def test_a_damaged_stage_of_the_store_is_made_anew_and_no_other(recipe, caplog, damaged):
    first = run(make_plan(recipe))
    (baseline,) = (record.variant for record in ledger.read(first.folder) if record.step == 0)
    path = recipe_out(recipe) / "store" / baseline / damaged
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    again = run(make_plan(replace(recipe, fresh=False, name="again")))
    assert f"{damaged} have changed" in caplog.text
    assert (again.made, again.reused) == (1, 3)
    assert _answers(again.folder) == _answers(first.folder)


@dataclass
class Misbehaving:
    """Does as its `deed` says."""

    deed: str

    technique: ClassVar[str] = "odd"
    needs: ClassVar[frozenset[str]] = FLOAT
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module, ctx):
        if self.deed == "peeks":
            next(ctx.task.batches("test", 4))
        if self.deed == "fails":
            raise RuntimeError("out of memory\nwith details")
        if self.deed == "refuses":
            raise UserError("7 is no good", key="deed", fix="use 8")
        return Outcome(module)


@pytest.mark.parametrize(
    ("deed", "error", "message"),
    [
        ("nothing", StageError, "stage 'odd': changed nothing"),
        ("peeks", StageError, "stage 'odd': the split 'test' is sealed"),
        ("fails", RuntimeError, "out of memory"),
        ("refuses", UserError, r"stages\.odd\.deed: 7 is no good \(use 8\)"),
    ],
)
def test_a_stage_that_fails_is_named_and_what_came_before_is_kept(recipe, deed, error, message):
    broken = replace(recipe, chain=["train", "odd", "tune"], stages=recipe.stages | {"odd": Misbehaving(deed)})
    with pytest.raises(error, match=message) as caught:
        run(make_plan(broken))
    assert "stage 'odd'" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])]) or error is UserError
    folder = next(f for f in (recipe_out(recipe)).iterdir() if f.name.startswith("small-"))
    assert [r.stage for r in ledger.read(folder)] == ["train"]


def recipe_out(recipe):
    from pathlib import Path

    return Path(recipe.out)


def test_runs_leave_the_process_as_it_was(recipe):
    torch.set_num_threads(2)
    try:
        run(make_plan(replace(recipe, threads=1)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


KILLED = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.mask: prune/magnitude
  - stage@stages.recover: distill/logits
  - _self_
  - override model: mlp
name: killed
chain: [train, mask, recover]
stages:
  train: {trainer: {epochs: 30, batch_size: 32}}
  recover: {trainer: {epochs: 30, batch_size: 32, select: best}}
model: {widths: [64]}
task: {image_size: 8}
threads: 1
measure: {batch_sizes: [8], seconds: 0.2, memory: false}
"""


def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    file = tmp_path / "killed.yaml"
    file.write_text(KILLED)

    def command(out):
        arguments = ["run", str(file), f"out={tmp_path / out}", "~engines.inductor"]
        return [sys.executable, "-m", "optkit", *arguments]

    started = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True, timeout=600)
    seconds = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.3, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True, timeout=600)
    whole, killed = (next((tmp_path / out).glob("killed-*")) for out in ("whole", "killed"))
    assert _answers(whole) == _answers(killed)
    keys = [json.loads(line)["variant"] for line in (killed / "ledger.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 3
