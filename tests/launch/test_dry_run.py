"""What a dry run says, that it writes nothing, and that it composes as Hydra does."""

import json

import pytest
from omegaconf import OmegaConf

from optkit.core.errors import UserError
from optkit.launch import launch
from optkit.launch.dry_run import dry_run
from optkit.launch.in_turn import _Configs
from optkit.pipeline import run
from optkit.recipe.compose import to_recipe
from optkit.recipe.plan import make_plan

SWEEPS = {
    "plain values": "stages.mask.amount=0.3,0.6 seed=1 task.limit=64,32",
    "lists and groups": "chain=[train,mask],[mask] model=mlp,small_cnn ~model.widths",
    "another optimizer": "stages.train.trainer.optimizer=sgd,adamw",
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_jobs_are_composed_as_in_a_sweep(home, kind):
    arguments = ["-m", *SWEEPS[kind].split()]
    in_sweep, in_turn = [], []

    launch("tiny.yaml", arguments, lambda cfg: in_sweep.append(OmegaConf.to_container(cfg)))
    launch("tiny.yaml", arguments, lambda cfg: in_turn.append(OmegaConf.to_container(cfg)), dry_run=True)
    assert len(in_sweep) > 1
    assert in_turn == in_sweep


def test_plain_values_need_hydra_once(home, monkeypatch):
    composed = []
    load = _Configs.compose

    def counted(self, overrides):
        usual = self.loader.load_sweep_config
        monkeypatch.setattr(self.loader, "load_sweep_config", lambda *a: composed.append(1) or usual(*a))
        return load(self, overrides)

    monkeypatch.setattr(_Configs, "compose", counted)
    launch("tiny.yaml", ["-m", "seed=1,2,3,4"], lambda cfg: None, dry_run=True)
    assert len(composed) == 1


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(home):
    before = sorted(home.rglob("*"))
    preview = dry_run("tiny.yaml", ["-m", "stages.mask.amount=0.3,3,0.6"])
    text = preview.text()
    assert sorted(home.rglob("*")) == before
    first, _, last = preview.jobs
    assert [name for name, _ in first.making] == ["train", "mask"]
    assert (last.elsewhere, last.making) == (("train",), (("mask", None),))
    assert "  cannot be done: stages.mask.amount: 3 is not a share between 0 and 1 (0.5 is half)" in text.splitlines()
    assert "3 jobs: 3 stages to make, 0 in the store" in text.splitlines()
    assert "there is no record of them: train, mask" in text
    with pytest.raises(UserError, match="1 of 3 jobs cannot be done; job 1: stages.mask.amount: 3 is not a share"):
        preview.raise_mistakes()


def test_a_mistake_in_a_single_run_is_raised_as_it_is(home):
    preview = dry_run("tiny.yaml", ["stages.mask.amount=3"])
    assert preview.text() == ""
    with pytest.raises(UserError, match="^stages.mask.amount: 3 is not a share"):
        preview.raise_mistakes()


@pytest.mark.slow
def test_what_is_there_is_told_from_what_is_to_make_and_times_come_from_records(home):
    found = []
    launch("tiny.yaml", [], lambda cfg: found.append(to_recipe(cfg)))
    folder = run(make_plan(found[0])).folder
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for record, cost in zip(ledger, (100.0, 7.0), strict=True):
        record["cost"]["wall_s"] = cost
    (folder / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ledger))
    (done,) = dry_run("tiny.yaml", []).jobs
    assert (done.run, done.present, done.making, done.to_measure) == (folder.name, ("train", "mask"), (), ())
    assert "nothing: the run is complete" in dry_run("tiny.yaml", []).text()
    (other,) = dry_run("tiny.yaml", ["stages.mask.amount=0.7"]).jobs
    assert (other.present, other.making) == (("train",), (("mask", 7.0),))
    assert other.to_measure == ("0-train", "1-mask")
    assert other.timing_s == pytest.approx(2 * 0.05)
    (fresh,) = dry_run("tiny.yaml", ["fresh=true", "measure=later"]).jobs
    assert (fresh.present, fresh.making, fresh.timing_s) == ((), (("train", 100.0), ("mask", 7.0)), None)
