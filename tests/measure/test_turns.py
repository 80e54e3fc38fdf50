import subprocess
import sys

import pytest
import torch

from optkit.core.cache import read_json
from optkit.core.workload import Request
from optkit.measure import turns
from optkit.measure.energy import measure_energy
from optkit.measure.latency import interleaved
from optkit.measure.peaks import measure_peaks
from optkit.measure.turns import timing_turn, turns_file


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
    assert waiting.communicate(timeout=60)[0] == b"1\n"


def test_the_place_is_the_same_for_all_processes_of_a_user(monkeypatch, tmp_path):
    monkeypatch.delenv("OPTKIT_LOCKS")
    monkeypatch.setattr(turns, "RUN_LOCK", tmp_path)
    monkeypatch.setattr(turns.os, "getuid", lambda: 1234)
    assert turns_file() == tmp_path / "optkit-1234" / "timing"
    monkeypatch.setattr(turns, "RUN_LOCK", tmp_path / "none")
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: "/tmp")
    assert str(turns_file()) == "/tmp/optkit-1234/timing"
