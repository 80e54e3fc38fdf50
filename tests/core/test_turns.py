import subprocess
import sys
import time

import pytest
import torch

from optkit.core import turns
from optkit.core.cache import read_json
from optkit.core.turns import heavy_work, timing_turn, turns_file
from optkit.core.workload import Request
from optkit.measure.energy import measure_energy
from optkit.measure.latency import interleaved
from optkit.measure.peaks import measure_peaks
from optkit.training import TaskLoss, Trainer


def _doing():
    """What the process that holds the turn says it does."""
    owner = read_json(turns_file().with_name("timing.json"))
    return owner and owner["doing"]


def test_whatever_is_timed_holds_the_turn():
    seen = []

    def session(*inputs):
        seen.append(_doing())
        return inputs[0]

    interleaved({"variant/eager": session, "baseline/eager": session}, (torch.zeros(1),), seconds=0.001, seed=0)
    assert set(seen) == {"timing variant/eager, baseline/eager"}
    seen.clear()
    measure_energy(Request(lambda: session(torch.zeros(1))), {}, {"a": (lambda: 1.0, 0.0)}, seconds=0.01)
    assert set(seen) == {"measuring energy"}
    assert _doing() is None


def test_peaks_are_measured_in_turn(monkeypatch):
    seen = []
    monkeypatch.setattr("optkit.measure.peaks.PRODUCTS", {"fp32": lambda size: lambda: seen.append(_doing())})
    measure_peaks(1, size=64, seconds=0.01, copied=1 << 10, read=1 << 12)
    assert set(seen) == {"timing this machine's peaks"}


def test_another_process_waits_for_the_turn():
    work = "import sys, pathlib; from optkit.core.locks import exclusive\n"
    work += "with exclusive(pathlib.Path(sys.argv[1]), 'timing it'): print(1)"
    with timing_turn("timing here"):
        waiting = subprocess.Popen([sys.executable, "-c", work, str(turns_file())], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=0.5)
    assert waiting.communicate(timeout=300)[0] == b"1\n"


HOLDS = """
import pathlib, sys, time
from optkit.core.locks import exclusive
with exclusive(pathlib.Path(sys.argv[1]), 'timing it'):
    print(1, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def another_times():
    """Another process that times for so many seconds."""
    started = []

    def start(seconds):
        command = [sys.executable, "-c", HOLDS, str(turns_file()), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        started.append(process)

    yield start
    for process in started:
        process.communicate(timeout=300)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(turns, "LOOK_S", 0.0)


def test_work_gives_way_to_the_timing_of_another_process(another_times, caplog):
    caplog.set_level("INFO")
    assert turns.give_way() == 0.0
    another_times(1.0)
    assert 0.3 < turns.give_way() < 30
    assert "paused for process" in caplog.text
    assert turns.give_way() == 0.0


def test_a_signal_ends_the_pause(another_times):
    another_times(2.0)
    assert turns.give_way(lambda: True) == 0.0


WORKS = """
import sys, time
from optkit.core.turns import heavy_work
with heavy_work():
    print(1, flush=True)
    time.sleep(float(sys.argv[1]))
    print(time.time(), flush=True)
"""


def working(seconds):
    """Another process that does heavy work, and says when it is at it and when it is done."""
    return subprocess.Popen([sys.executable, "-c", WORKS, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_timing_waits_for_heavy_work_and_heavy_work_for_timing():
    first = working(1.0)
    assert first.stdout.readline() == "1\n"
    beside = working(0.0)  # it does not wait for the other's
    assert beside.stdout.readline() == "1\n"
    with timing_turn("timing here"):
        begun = time.time()
        waits = working(0.0)
        time.sleep(2.0)  # it starts, and finds that somebody is timing
        ended = time.time()
    assert float(first.stdout.read()) <= begun
    assert float(beside.stdout.read()) <= begun
    assert waits.stdout.readline() == "1\n"
    assert float(waits.stdout.read()) >= ended
    for process in (first, beside, waits):
        process.communicate(timeout=300)


def test_within_a_turn_nothing_waits():
    with timing_turn("timing"), timing_turn("more"), heavy_work():
        assert turns._timing == [True]
    assert turns._timing == [False]
    with heavy_work(), heavy_work():
        pass
    with timing_turn("timing"):  # all is given back
        pass


def test_heavy_work_within_heavy_work_waits_for_nobody(another_times):
    """Who has the turn waits for the outer block: if the inner one waited for the turn, both would for ever."""
    with heavy_work():
        another_times(3.0)
        begun = time.monotonic()
        with heavy_work():
            assert turns.give_way() == 0.0
        assert time.monotonic() - begun < 2.0
        assert turns._working == [True]
    assert turns._working == [False]
    assert turns.give_way() > 0.0


def test_the_own_timing_stops_nothing():
    with timing_turn("timing here"):
        assert turns.give_way() == 0.0


def test_a_training_gives_way_and_does_not_count_it(another_times, digits, mlp, tmp_path):
    another_times(8.0)
    begun = time.perf_counter()
    trainer = Trainer(epochs=1, batch_size=64)
    found = trainer.fit(mlp, digits, TaskLoss(digits), seed=0, workdir=tmp_path, device=torch.device("cpu"))
    assert time.perf_counter() - begun > 6.0
    assert found.seconds < time.perf_counter() - begun - 1.0


def test_the_place_is_the_same_for_all_processes_of_a_user(monkeypatch, tmp_path):
    monkeypatch.delenv("OPTKIT_LOCKS")
    monkeypatch.setattr(turns, "RUN_LOCK", tmp_path)
    monkeypatch.setattr(turns.os, "getuid", lambda: 1234)
    assert turns_file() == tmp_path / "optkit-1234" / "timing"
    monkeypatch.setattr(turns, "RUN_LOCK", tmp_path / "none")
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: "/tmp")
    assert str(turns_file()) == "/tmp/optkit-1234/timing"
