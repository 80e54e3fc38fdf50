"""Traffic and table of the comparison of predicted with measured latencies."""

import numpy as np
import pytest

pytest.importorskip("aiohttp")
from scripts import serving_bench


def row(**more):
    found = {
        "variant": "1-train", "kind": "Poisson", "rate": 40.0, "busy": 0.4, "p50_ms": 10.0, "p99_ms": 20.0,
        "predicted": {"p50_ms": 11.0, "p99_ms": 18.0, "replicas": []}, "client_bound": False, "replicas": [],
        "seconds": 60.0, "machine": "Two cores.",
    }  # fmt: skip
    return found | more


def test_a_day_has_its_peak_and_its_rate_within_the_seconds_given():
    day = serving_bench.day_of(rate=50.0, seconds=240.0)
    assert day.seconds == 240
    assert day.rate == pytest.approx(50, rel=0.05)
    counts = day.counts(10.0)
    assert np.argmax(counts) == pytest.approx(14, abs=3)  # of 24 hours
    assert counts.max() > 1.7 * counts.mean()


def test_the_table_has_what_was_predicted_beside_what_was_measured():
    scaled = row(replicas=[[0.0, 1], [2.0, 3], [4.0, 2]], predicted=row()["predicted"] | {"replicas": [1, 1, 1]})
    text = serving_bench.table([row(), row(client_bound=True), scaled])
    assert "| 1-train | Poisson | 40 | 40% | 10.0 | 11.0 (+10%) | 20.0 | 18.0 (-10%) |" in text
    assert text.count("†") == 1
    assert "from 1 to 3: as predicted in 33% of the time, within one in 67%." in text
    assert text.endswith("Two cores.")
