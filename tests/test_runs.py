"""`optkit.run`, and `optkit.compare` beside what a run recorded."""

import numpy as np
import pytest
import torch

import optkit
from optkit.core.errors import UserError
from optkit.tasks import Digits

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.prune: prune/structured
  - _self_
  - override model: small_cnn
  - override task: digits
name: tiny
chain: [train, prune]
model: {widths: [32, 64]}
task: {image_size: 16, crop: 1, limit: 300}
stages: {train: {trainer: {epochs: 2, batch_size: 32}}, prune: {amount: 0.5, budget: macs}}
threads: 1
measure: {batch_sizes: [32], seconds: 1, memory: false}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("quickstrat", [], "did you mean 'quickstart'"),
        ("quickstart", ["stages.prune.amonut=0.7"], "stages.prune.amonut: unknown key .*did you mean 'amount'"),
        ("quickstart", ["stages.prune.amount=7"], "stages.prune.amount: 7 is not a share"),
        ("quickstart", ["-m", "seed=0,1"], "overrides: '-m' is no override .*several runs are a loop"),
        ("quickstart", [{"seed": 1}], "overrides: .* is no override .*such as 'seed=1'"),
        ("quickstart", ["seed"], "not an override"),
    ],
)
def test_a_mistake_is_one_line_from_python_too(recipe, overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        optkit.run(recipe, *overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_from_python_and_what_compare_says_of_its_variants(recipe):
    asked = ["stages.prune.amount=0.6", "seed=1", "~engines.inductor"]
    run = optkit.run(recipe, *asked)
    assert run.worked
    assert [(row["stage"], row["engine"]) for row in run.rows] == [("train", "eager"), ("prune", "eager")]
    assert (run.folder / "report.md").is_file()
    frame = run.to_frame()
    assert list(frame["stage"]) == ["train", "prune"]
    assert frame["speedup_low"][1] == run.rows[1]["speedup_ci"][0]
    said = " ".join(str(run).split())
    assert run.verdict
    assert all(line in said for line in run.verdict.splitlines())
    assert str(run.folder) in said
    assert max(map(len, str(run).splitlines())) <= 100
    assert not optkit.run(str(recipe), *asked).worked

    task = Digits(image_size=16, crop=1, limit=300)

    def right(session):
        found = [session(*batch.inputs).argmax(-1) == batch.targets for batch in task.batches("test", 32)]
        return torch.cat(found).numpy()

    folders = {name: run.folder / "variants" / name for name in ("0-train", "1-prune")}
    found = optkit.compare(folders, task.example(32), evaluate=right, seconds=1, threads=1)
    for recorded, row in zip(run.rows, found.rows, strict=True):
        assert row["score"] == pytest.approx(recorded["quality"])
        # the intervals overlap; other work on the machine may move both
        (low, high), (least, most) = recorded["speedup_ci"], row["speedup_ci"]
        assert low / 1.1 < most
        assert least < high * 1.1
    assert np.isclose(found.rows[1]["score_delta"], found.rows[1]["score"] - found.rows[0]["score"])
