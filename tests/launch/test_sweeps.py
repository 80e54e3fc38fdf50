"""A multirun is a sweep with a folder: what the same command, another one and a mistake do to it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optkit.core.errors import StageError, UserError
from optkit.launch import launch
from optkit.recipe.compose import to_recipe
from optkit.sweep.state import State, SweepFolder

# starts a sweep whose jobs note when they begin, and take a moment
SLOW = """
import sys, time
from pathlib import Path
from optkit.core.interruption import Ending, Interruption
from optkit.launch import launch
seconds = float(sys.argv[1])
def job(cfg):
    with open("begun", "a") as file:
        file.write(f"{cfg.seed}\\n")
    time.sleep(seconds)
ending = Ending()
try:
    launch("tiny.yaml", sys.argv[2:], job)
except Interruption as error:
    sys.exit(ending.farewell(error))
"""


def seeds(*values, **more):
    """Runs a sweep of seeds; gives those that were run."""
    done = []
    overrides = [f"{key}={value}" for key, value in more.items()]
    launch("tiny.yaml", ["-m", f"seed={','.join(map(str, values))}", *overrides], lambda cfg: done.append(cfg.seed))
    return done


def only(home):
    (found,) = (home / "runs" / "sweeps").iterdir()
    return SweepFolder(found)


def test_the_same_command_continues_the_same_sweep(home):
    assert seeds(1, 2) == [1, 2]
    assert seeds(1, 2) == []
    sweep = only(home).read()
    assert sweep.name.startswith("tiny-")
    assert sweep.name == only(home).path.name
    assert (sweep.recipe, sweep.cwd) == (str(home / "tiny.yaml"), str(home))
    assert sweep.folder == str(only(home).path)
    assert [(job.number, job.overrides, job.state) for job in sweep.jobs] == [
        (0, ["seed=1"], State.FINISHED), (1, ["seed=2"], State.FINISHED)
    ]  # fmt: skip
    assert sweep.definition["-m seed"] == "1,2"
    assert sweep.definition["stages.train.trainer.epochs"] == 1


def test_passwords_are_in_no_file_of_a_sweep(home):
    arguments = [
        "-m",
        "seed=1,2",
        "store=s3://me:secret@bucket/optkit",
        "tracker=mlflow",
        "tracker.uri=http://me:secret@host",
        "+tracker.api_token=secret",
    ]
    for _ in range(2):
        launch("tiny.yaml", arguments, lambda cfg: None, command=["run", "tiny.yaml", *arguments])
    files = [path for path in only(home).path.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if "secret" in path.read_text()] == []
    assert [job.state for job in only(home).read().jobs] == [State.FINISHED] * 2


def test_options_of_a_command_are_part_of_what_its_sweep_is(home):
    """`optkit ablate RECIPE -m seed=0,1` has other jobs with `--seeds 3`."""
    done = []
    for options in ([], ["--seeds=3"], ["--seeds=3"]):
        again = {"command": ["ablate", "tiny.yaml", "-m", "seed=1,2", *options], "options": options}
        launch("tiny.yaml", ["-m", "seed=1,2"], lambda cfg: done.append(cfg.seed), **again)
    assert done == [1, 2, 1, 2]
    commands = [SweepFolder(path).read().definition["command"] for path in (home / "runs" / "sweeps").iterdir()]
    assert sorted(commands) == ["ablate", "ablate --seeds=3"]


def test_another_definition_is_another_sweep_or_refused_under_the_same_name(home, caplog):
    seeds(1, 2, sweep="mine")
    with pytest.raises(UserError, match="sweep: the sweep 'mine' was another one: -m seed was 1,2 and is 1,3"):
        seeds(1, 3, sweep="mine")
    text = (home / "tiny.yaml").read_text()
    (home / "tiny.yaml").write_text(text.replace("epochs: 1", "epochs: 2"))
    with pytest.raises(UserError, match="stages.train.trainer.epochs was 1 and is 2"):
        seeds(1, 2, sweep="mine")
    arguments = ["-m", "seed=1,2", "sweep=mine"]
    launch("tiny.yaml", arguments, lambda cfg: None, redefine=True)
    assert SweepFolder(home / "runs/sweeps/mine").read().definition["stages.train.trainer.epochs"] == 2
    launch("tiny.yaml", ["-m", "seed=1"], lambda cfg: None, command=["run"])
    (home / "tiny.yaml").write_text(text)
    launch("tiny.yaml", ["-m", "seed=1"], lambda cfg: None, command=["run"])
    assert "this is a new sweep: stages.train.trainer.epochs was 2 and is 1 since" in caplog.text
    assert len(list((home / "runs/sweeps").iterdir())) == 3


def test_a_mistake_in_one_job_is_that_jobs_alone(home):
    arguments, built = ["-m", "stages.mask.amount=0.3,3,0.6"], []
    with pytest.raises(UserError) as caught:
        launch("tiny.yaml", arguments, lambda cfg: built.append(to_recipe(cfg)))
    line = "stages.mask.amount: 3 is not a share between 0 and 1 (0.5 is half) (job 1: stages.mask.amount=3)"
    assert str(caught.value).startswith(line)
    assert len(built) == 2
    states = [job.state for job in only(home).read().jobs]
    assert states == [State.FINISHED, State.FAILED, State.FINISHED]
    with pytest.raises(UserError):
        launch("tiny.yaml", arguments, lambda cfg: built.append(to_recipe(cfg)))
    assert len(built) == 2


def test_the_first_of_several_failures_is_raised_and_fail_fast_stops_at_it(home):
    def fails(cfg):
        raise StageError(f"no {cfg.seed}")

    with pytest.raises(StageError, match=r"no 1 \(job 0: seed=1\); 2 of 2 jobs failed"):
        launch("tiny.yaml", ["-m", "seed=1,2"], fails)
    with pytest.raises(StageError, match=r"no 1 \(job 0: seed=1\); 1 did not finish"):
        launch("tiny.yaml", ["-m", "seed=1,2", "fail_fast=true"], fails)
    jobs = only(home).read().jobs
    assert [(job.state, job.why) for job in jobs] == [
        (State.FAILED, "no 1"), (State.CANCELLED, "job 0 failed (fail_fast)")
    ]  # fmt: skip
    # the same command goes on with what was cancelled, too
    assert seeds(1, 2, fail_fast="false") == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-m", "sed=1,2"], "sed: unknown key"), (["-m", "seed=1,2", "sweep=a/b"], "sweep: 'a/b' cannot name a folder"),
     (["sweep=a"], "sweep: one run is no sweep"), (["-m", "seed=1,2", "fail_fast=soon"], "fail_fast: 'soon' is not"),
     (["-m", "seed=1,2", "hydra/launcher=ray", "hydra.launcher.num_cpus=-1"], "hydra.launcher.num_cpus: -1"),
     (["-m", "seed=1,2", "hydra/launcher=rays"], "no config 'hydra/launcher/rays'"),
     (["-m", "out=a,b"], "out: the jobs of a sweep have one"),
     (["-m", "seed=1,2", "out=/proc/nowhere"], "cannot write to /proc/nowhere")],
)  # fmt: skip
def test_a_mistake_before_any_work_leaves_nothing_behind(home, arguments, message):
    with pytest.raises(UserError, match=message):
        launch("tiny.yaml", arguments, lambda cfg: None)
    assert [path.name for path in home.iterdir()] == ["tiny.yaml"]


def test_the_folder_of_a_sweep_may_be_named(home):
    launch("tiny.yaml", ["-m", "seed=1", "hydra.sweep.dir=elsewhere"], lambda cfg: None)
    assert SweepFolder(home / "elsewhere").read().count(State.FINISHED) == 1


def start(seconds, *arguments):
    command = [sys.executable, "-c", SLOW, str(seconds), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_same_sweep_twice_at_once_does_each_job_once(home):
    both = [start(0.5, "-m", "seed=1,2,3") for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert sorted((home / "begun").read_text().split()) == ["1", "2", "3"]
    assert only(home).read().count(State.FINISHED) == 3


@pytest.mark.slow
def test_a_signal_leaves_what_is_left_to_the_same_command(home):
    process = start(60, "-m", "seed=1,2")
    while not ((home / "begun").exists() and (home / "begun").read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert [job.state for job in only(home).read().jobs] == [State.INTERRUPTED, State.WAITING]
    assert start(0, "-m", "seed=1,2").wait(timeout=300) == 0
    assert (home / "begun").read_text().split() == ["1", "1", "2"]


@pytest.mark.slow
def test_a_sweep_is_cancelled_resumed_measured_and_reported(home, monkeypatch, command_here):
    def command(*arguments):
        done = command_here(*arguments)
        assert done.exception is None, done.output
        return done.stdout

    arguments = ["tiny.yaml", "-m", "seed=1,2", "measure=later", "sweep=mine", "stages.train.trainer.epochs=100000"]
    process = subprocess.Popen([sys.executable, "-m", "optkit", "run", *arguments], stderr=subprocess.PIPE, text=True)
    folder = SweepFolder(home / "runs/sweeps/mine")
    while not list((home / "runs").glob("store/*.partial/training.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    assert command("sweep", "cancel", folder.path) == f"2 of 2 jobs are cancelled: {folder.path}\n"
    assert process.wait(timeout=300) == 143
    # its entry is edited, as a resumed training of that length would take too long
    with folder.change() as sweep:
        sweep.command[-1] = "stages.train.trainer.epochs=1"
        sweep.definition["stages.train.trainer.epochs"] = 1
        for job in sweep.jobs:
            job.overrides[-1] = "stages.train.trainer.epochs=1"
    monkeypatch.chdir("/")
    command("sweep", "resume", folder.path)
    shown = json.loads(command("sweep", "status", folder.path, "--format", "json"))
    assert shown["counts"] == {"finished": 2}
    assert all((Path(job["run"]) / "unmeasured.jsonl").is_file() for job in shown["jobs"])
    # the runs of a sweep are measured together, where they are to be timed
    command("measure", folder.path)
    rows = json.loads(command("report", folder.path, "--format", "json"))
    assert {row["run"] for row in rows} == {Path(job["run"]).name for job in shown["jobs"]}
    assert not any((Path(job["run"]) / "unmeasured.jsonl").exists() for job in shown["jobs"])
