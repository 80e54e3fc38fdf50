"""One recipe in two processes: one writes and measures, both train, and they end together."""

import signal
import time

import pytest
import torch

from optkit.core.errors import StageError, UserError
from optkit.core.ledger import Ledger
from optkit.core.processes import ALONE, current, joined, launched, one_process_only
from optkit.core.task import Batch
from optkit.training.shares import Shares, handled
from tests.launching import LONG, ended, start

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.prune: prune/structured
  - stage@stages.prune.training: train
  - _self_
  - override model: small_cnn
  - override engine@engines.inductor: eager
name: two
chain: [train, prune]
model: {widths: [8, 8]}
task: {image_size: 8, limit: 100}
stages:
  train: {trainer: {epochs: 1, batch_size: 16, precision: fp32}}
  prune: {criterion: taylor, batches: 2, steps: 2, training: {trainer: {epochs: 1, batch_size: 16, precision: fp32, lr: 0.01}}}
measure: {seconds: 0.05, batch_sizes: [1], memory: false}
threads: 1
"""


def _records(folder):
    (run,) = folder.glob("runs/*-*/")
    return Ledger(run / "ledger.jsonl").records(), run


@pytest.mark.slow
def test_a_recipe_in_two_processes_is_the_run_that_one_process_continues(tmp_path, command_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(RECIPE)
    codes, out, said = ended(start("optkit", "run", "two.yaml", cwd=tmp_path))
    assert codes == [0, 0], said
    assert out.count("run folder:") == 1
    assert said.count("stage train: ") == 2  # begun and done, by the first alone
    records, run = _records(tmp_path)
    assert [record.stage for record in records] == ["train", "prune"]
    training = [record.facts["training"] for record in records]
    assert [facts["processes"] for facts in training] == [2, 2]
    assert [facts["batch_size"] for facts in training] == [16, 16]
    assert (run / "run.log").read_text().count("done in") == 2
    assert "is complete: nothing was run" in command_here("run", "two.yaml").stderr


@pytest.mark.slow
def test_a_signal_saves_the_training_and_one_process_ends_what_two_began(tmp_path, command_here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.yaml").write_text(LONG)
    command = ["run", "long.yaml", "stages.train.trainer.epochs=150"]
    processes = start("optkit", *command, "--quiet", cwd=tmp_path)
    while processes[0].poll() is None and not list(tmp_path.glob("runs/store/*.partial/training.pt")):
        time.sleep(0.1)
    for process in [*processes, *processes]:  # a scheduler tells all of them, and so does torchrun, which it told
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # the second signal meets a process that ends already
    codes, out, said = ended(processes)
    assert (codes, out) == ([143, 143], "")
    assert said == "terminated (SIGTERM) in stage 'train'; the same command continues from here\n"
    state = torch.load(next(tmp_path.glob("runs/store/*.partial/training.pt")), weights_only=True)
    assert state["processes"] == [2]
    assert "training: goes on " in command_here(*command).stderr
    (record,), _ = _records(tmp_path)
    facts = record.facts["training"]
    assert (facts["processes"], facts["earlier_processes"], facts["epochs"]) == (1, [2], 150)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of_by_the_other(tmp_path):
    (tmp_path / "long.yaml").write_text(LONG)
    first, second = start("optkit", "run", "long.yaml", "--quiet", cwd=tmp_path)
    while first.poll() is None and not list(tmp_path.glob("runs/store/*.partial/training.pt")):
        time.sleep(0.1)
    second.kill()
    codes, out, said = ended([first, second])
    assert (codes, out) == ([StageError.exit_code, -signal.SIGKILL], "")
    assert said == (
        "error: stage 'train': another process of the run ended without a word "
        "(see its machine's log; the same command continues from here)\n"
    )


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_both(tmp_path):
    (tmp_path / "two.yaml").write_text(RECIPE)
    codes, out, said = ended(start("optkit", "run", "two.yaml", "stages.train.trainer.batch_size=1", cwd=tmp_path))
    assert (codes, out) == ([2, 2], "")
    assert said == (
        "error: stages.train.trainer.batch_size: 1 examples a step, for 2 processes (start fewer processes)\n"
    )
    assert not (tmp_path / "runs").exists()


def test_one_process_is_alone(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined() as processes:
        assert processes is current() is ALONE
    assert (ALONE.gather(3), ALONE.soon([1, 0]), ALONE.last_word(2), launched()) == ([3], [1, 0], (True, 2), (0, 1))
    assert ALONE.first(lambda: "done") == "done"


def test_what_a_launcher_leaves_out_is_named_and_what_one_process_does_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"^MASTER_ADDR: WORLD_SIZE is 2, and MASTER_ADDR is not set"):
        launched()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match=r"optkit report works in one process, and a launcher started 2"):
        one_process_only("optkit report")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match=r"^RANK: RANK is '2' of WORLD_SIZE '2'"):
        launched()


def test_a_launcher_that_starts_fewer_processes_than_it_was_asked_for_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    # what accelerate launch --cpu --num_processes 2 sets for the one process that it starts
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert launched() == (0, 1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"^--num_processes: accelerate launch starts one process on CPUs"):
        launched()


class _Of(type(ALONE)):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("at_most", [None, 1, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_parts_of_a_batch_are_each_example_once_in_equally_many_passes(size, at_most, count):
    batch = Batch((torch.arange(count)[:, None],), [str(n) for n in range(count)], torch.arange(count))
    shares = [Shares(12, at_most, _Of(rank, size)) for rank in range(size)]
    parts = [list(one.of(batch.subset(handled(one.processes, count)), count)) for one in shares]
    assert len({len(of_one) for of_one in parts}) == 1
    counted = [part for of_one in parts for part in of_one if part.weight]
    assert torch.cat([part.batch.index for part in counted]).tolist() == list(range(count))
    assert [text for part in counted for text in part.batch.targets] == batch.targets
    assert sum(part.weight for part in counted) == pytest.approx(1)
    most = max(len(part.batch) for of_one in parts for part in of_one)
    assert most <= (at_most or count)
    if count == 12:
        assert most == Shares(12, at_most, _Of(0, size)).at_once


def test_the_examples_at_once_and_the_passes_of_a_step_are_in_the_record():
    shares = Shares(128, 16, _Of(0, 3))
    assert (shares.at_once, shares.accumulated, shares.handled) == (15, 3, 45)
