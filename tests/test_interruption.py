"""Signals end a run in one line, with the right exit code, and with its child processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from optkit.core import interruption
from tests.launching import LONG

SLOW = """
import os, subprocess, sys, time
from optkit.core import interruption
from optkit.core.interruption import Ending, Interruption
interruption.GRACE_S = 1.0
ending = Ending()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
while True:
    try:
        print(child.pid, flush=True)
        time.sleep(60)
    except Interruption as error:
        if "swallow" not in sys.argv:
            sys.exit(ending.farewell(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGTERM, 143, "terminated (SIGTERM)"),
        (signal.SIGUSR1, 143, "asked to stop (SIGUSR1)"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_run_ends_in_one_line_that_names_the_stage(tmp_path, number, code, word):
    (tmp_path / "long.yaml").write_text(LONG)
    more = ["-m", "seed=0,1"] if number == signal.SIGTERM else []
    command = [sys.executable, "-m", "optkit", "run", "long.yaml", "--quiet", *more]
    # a shell without job control starts background work, such as these tests, with SIGINT ignored
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob("runs/store/*.partial/training.pt")):
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert (out, err) == ("", f"{word} in stage 'train'; the same command continues from here\n")
    (folder,) = tmp_path.glob("runs/long-*")
    assert re.search(r"WARNING ended by Interruption: SIG(TERM|INT|USR1)\n$", (folder / "run.log").read_text())
    assert not (folder / ".lock.json").exists()


@pytest.mark.parametrize("arguments", [[], ["swallow"]])
def test_child_processes_end_too_and_a_main_thread_that_does_not_is_ended(arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err == "terminated (SIGTERM); the same command continues from here\n"
    deadline = time.monotonic() + 30  # the kernel may still be ending it
    while (there := _runs(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not there


@pytest.mark.parametrize(("late", "found"), [(0.3, signal.SIGTERM), (None, 0)])
def test_a_signal_that_comes_to_the_others_first_is_waited_for(monkeypatch, late, found):
    monkeypatch.setattr(interruption, "_saving", interruption._Saving())
    before = signal.signal(signal.SIGTERM, interruption._raise)
    timer = threading.Timer(late or 0.0, os.kill, [os.getpid(), signal.SIGTERM])
    try:
        if late is not None:
            timer.start()
        assert interruption.told() == found
    finally:
        if late is not None:
            timer.join()
        signal.signal(signal.SIGTERM, before)


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_signal_that_is_ignored_stays_ignored():
    code = "import signal; from optkit.core.interruption import Ending; Ending(); print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    done = subprocess.run(
        ["nohup", sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "True\n"
