"""Launchers besides Hydra's own: their confs, what they start, and what happens when what they start dies."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from optkit.core.errors import StageError, UserError
from optkit.core.extras import missing
from optkit.launch import launch
from optkit.recipe.compose import shipped
from optkit.sweep.state import State, SweepFolder

# each job notes that it began, and that it ended, a moment later
WORK = """
import sys, time
from optkit.launch import launch
launcher, seconds, seeds = sys.argv[1], float(sys.argv[2]), sys.argv[3]
def job(cfg):
    import time
    for what in ("begun", "ended"):
        with open(what, "a") as file:
            file.write(f"{cfg.seed}\\n")
        time.sleep(seconds if what == "begun" else 0)
launch("tiny.yaml", ["-m", f"seed={seeds}", f"hydra/launcher={launcher}", "sweep=mine"], job)
"""


def start(launcher, seconds, count):
    command = [sys.executable, "-c", WORK, launcher, str(seconds), ",".join(map(str, range(count)))]
    with open("said", "w") as said:  # a pipe would stay open as long as a worker lives
        return subprocess.Popen(command, stderr=said)


def ended(home, process):
    """What a sweep said, once it has ended well."""
    code, said = process.wait(timeout=300), (home / "said").read_text()
    assert code == 0, said
    return said


def lines(home, name):
    return sorted(map(int, (home / name).read_text().split())) if (home / name).exists() else []


def folder(home):
    return SweepFolder(home / "runs/sweeps/mine")


def one_running(home, process):
    """A process that runs a job of the sweep."""
    while process.poll() is None:
        if (folder(home).path / "sweep.json").exists():
            running = [job for job in folder(home).read().jobs if job.state == State.RUNNING]
            if running:
                return psutil.Process(running[-1].pid)
        time.sleep(0.05)
    raise AssertionError((home / "said").read_text())


@pytest.mark.slow
@pytest.mark.skipif(
    missing("parallel", ["hydra_plugins.hydra_joblib_launcher"]) is not None, reason="no joblib launcher"
)
def test_twelve_jobs_on_two_workers_survive_the_death_of_any_process(home):
    process = start("parallel", 0.3, 12)
    # a worker: the others of its pool die with it, and their jobs are started again
    one_running(home, process).kill()
    # what starts them, and its workers with it
    while len(lines(home, "ended")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    running = one_running(home, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for worker in {running, *workers}:
        if worker.is_running():
            worker.kill()
    psutil.wait_procs({running, *workers}, timeout=20)
    left = folder(home).read()
    assert left.count(State.RUNNING) == 0
    assert 2 <= left.count(State.FINISHED) < 12
    # the same command ends what is left, a worker killed or not
    process = start("parallel", 0.3, 12)
    one_running(home, process).kill()
    assert "jobs are started again" in ended(home, process)
    assert set(lines(home, "ended")) == set(range(12))
    assert folder(home).read().count(State.FINISHED) == 12
    finished_once = {job.number for job in left.jobs if job.state == State.FINISHED}
    assert all(lines(home, "ended").count(number) == 1 for number in finished_once)


SBATCH = """#!/bin/sh
cp "$1" {folder}/script.sh
echo "sbatch: error: this is no cluster" >&2
exit 1
"""


@pytest.mark.skipif(missing("slurm") is not None, reason="no submitit")
def test_the_script_that_slurm_gets(home, monkeypatch):
    programs = home / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(SBATCH.format(folder=home))
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    arguments = ["-m", "seed=1,2,3", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "sweep=mine",
                 "hydra.launcher.gpus_per_node=1", "hydra.launcher.setup=[module load cuda]"]  # fmt: skip
    with pytest.raises(StageError, match="SlurmLauncher ended early: .*this is no cluster"):
        launch("tiny.yaml", arguments, lambda cfg: None)
    script = (home / "script.sh").read_text().splitlines()
    wanted = ["--array=0-2%3", "--cpus-per-task=8", "--gpus-per-node=1", "--job-name=optkit", "--mem=32GB",
              "--partition=gpu", "--time=240", "--signal=USR2@120"]  # fmt: skip
    assert {f"#SBATCH {option}" for option in wanted} <= set(script), script
    assert "module load cuda" in script
    assert "#SBATCH --open-mode=append" in script  # a job that is queued again goes on in its log
    (srun,) = [line for line in script if line.startswith("srun ")]
    assert "-m submitit.core._submit" in srun
    assert str(home / "runs/sweeps/mine/.submitit") in srun
    assert folder(home).read().count(State.WAITING) == 3


@pytest.mark.slow
@pytest.mark.skipif(missing("slurm") is not None, reason="no submitit")
def test_a_job_that_is_queued_again_is_continued(home):
    process = start("slurm_local", 3, 1)
    worker = one_running(home, process)
    while not lines(home, "begun"):  # then it sleeps for 3 seconds
        assert process.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGUSR2)  # as Slurm does before the time is up
    ended(home, process)
    assert (lines(home, "begun"), lines(home, "ended")) == ([0, 0], [0])
    (job,) = folder(home).read().jobs
    assert (job.state, job.pid != worker.pid) == (State.FINISHED, True)


@pytest.mark.slow
@pytest.mark.skipif(missing("ray") is not None, reason="no ray")
def test_ray_runs_the_jobs_and_starts_again_one_whose_process_dies(home):
    process = start("ray", 1, 2)
    one_running(home, process).kill()
    assert "1 jobs are started again" in ended(home, process)
    assert set(lines(home, "ended")) == {0, 1}
    assert folder(home).read().count(State.FINISHED) == 2


@pytest.mark.skipif(missing("ray") is not None, reason="no ray")
def test_a_cluster_that_is_not_there_is_said(home):
    arguments = ["-m", "seed=1", "hydra/launcher=ray", "hydra.launcher.address=auto"]
    with pytest.raises(UserError, match="hydra.launcher.address: no Ray cluster: .*start one: ray start --head"):
        launch("tiny.yaml", arguments, lambda cfg: None)


def test_a_launcher_that_is_not_installed_names_its_extra(home, monkeypatch):
    monkeypatch.setattr("optkit.core.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'no Ray: ray not installed \(pip install "optkit\[ray\]"\)'):
        launch("tiny.yaml", ["-m", "seed=1", "hydra/launcher=ray"], lambda cfg: None)


def test_each_conf_says_what_it_is_and_names_its_extra():
    extras = {"parallel": "parallel", "slurm": "slurm", "ray": "ray"}
    for file in Path(shipped("conf") / "hydra/launcher").glob("*.yaml"):
        first = file.read_text().splitlines()[0]
        assert first.startswith("# ")
        assert f"the extra {extras[file.stem]}" in first if file.stem in extras else file.stem == "slurm_local"
        assert yaml.safe_load(file.read_text())
