import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from optkit.measure.disturbance import OtherLoad
from optkit.measure.latency import Series

SCRIPT = Path(__file__).parents[2] / "scripts/aa_bench.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("aa_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_counts_the_intervals_that_exclude_1(script, monkeypatch, capsys):
    random = np.random.default_rng(0)

    def timed(sessions, inputs, seconds, seed, retries, precision, pairs):
        assert pairs == [tuple(sessions)] == [("first", "second")]
        assert (seconds, precision) == (0.5, 0.01)
        slower = 1.2 if seed in (2, 3) else 1.0
        times = random.normal(1, 0.01, (30, 5))
        busy = OtherLoad(0.1, 0.9 if seed == 2 else 0.2)
        # the same calls on both sides but for a known factor
        return {"first": Series(slower * times, busy), "second": Series(times[:, ::-1], busy)}

    monkeypatch.setattr(script, "interleaved", timed)
    monkeypatch.setattr(
        sys, "argv", ["aa_bench.py", *"--comparisons 3 --seconds 0.5 --precision 0.01 --threads 1".split()]
    )
    script.main()
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [one["excludes_1"] for one in found["comparisons"]] == [False, True, True]
    assert (found["excluding"], found["excluding_unmarked"], found["unmarked"]) == (2, 1, 2)
    assert found["comparisons"][1]["ratio"] == pytest.approx(1.2)
    assert "2 of 3 intervals exclude 1" in lines[-2]
    assert "1 of 2 intervals of comparisons that are not marked as disturbed exclude 1" in lines[-1]
    assert "excludes 1  disturbed" in lines[3]
    assert found["machine"]["cpu"]["name"] in lines[0]


def test_it_runs_on_the_real_bench(script):
    one = script.compare("eager", 2, 0.01, 0)
    assert one["rounds"] >= 20
    assert one["ci"][0] <= one["ratio"] <= one["ci"][1]


def test_it_asks_compare(script, monkeypatch):
    one = script.compare_by_function("eager", 2, 0.01, 0)
    assert one.keys() == script.compare("eager", 2, 0.01, 0).keys()
    assert one["rounds"] >= 20
    assert one["ci"][0] <= one["ratio"] <= one["ci"][1]
    times = np.random.default_rng(0).normal(1, 0.01, (30, 5))
    slow = {"first on eager": Series(1.2 * times), "second on eager": Series(times)}
    monkeypatch.setattr("optkit.measure.latency.interleaved", lambda *arguments: slow)
    one = script.compare_by_function("eager", 2, 0.01, 0)
    assert one["ratio"] == pytest.approx(1.2)
    assert one["excludes_1"]


def test_its_load_comes_and_goes_and_ends_with_it(script):
    with script.load(1, on=0.05, off=0.05, limit=20):
        child = int(Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()[-1])
        stat = Path(f"/proc/{child}/stat")
        assert stat.exists()
    assert not stat.exists()


def test_its_load_ends_by_itself(script):
    done = subprocess.run([sys.executable, "-c", script.LOAD, "0.01", "0.01", "0.1", str(time.time())], timeout=300)
    assert done.returncode == 0
