import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

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

    def timed(sessions, inputs, seconds, seed, retries):
        assert list(sessions) == ["first", "second"]
        assert seconds == 0.5
        slower = 1.2 if seed == 2 else 1.0
        mood = random.normal(1, 0.01, (30, 5))
        # the same calls on both sides but for a known factor
        return {"first": Series(slower * mood, 0.3), "second": Series(mood[:, ::-1], 0.3)}

    monkeypatch.setattr(script, "interleaved", timed)
    monkeypatch.setattr(sys, "argv", ["aa_bench.py", "--comparisons", "3", "--seconds", "0.5", "--threads", "1"])
    script.main()
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [one["excludes_1"] for one in found["comparisons"]] == [False, True, False]
    assert found["excluding"] == 1
    assert found["comparisons"][1]["ratio"] == pytest.approx(1.2)
    assert "1 of 3 intervals exclude 1" in lines[-1]
    assert "excludes 1  disturbed" in lines[3]
    assert found["machine"]["cpu"]["name"] in lines[0]


def test_it_runs_on_the_real_bench(script):
    one = script.compare("eager", 2, 0.01, 0)
    assert one["rounds"] >= 20
    assert one["ci"][0] <= one["ratio"] <= one["ci"][1]
