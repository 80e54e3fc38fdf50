"""Rows of models that generate: bytes of a further token against the bandwidth of reading, and how figures are written."""

from dataclasses import replace

import numpy as np
import pytest

from optkit.core.records import Measurement, Quality, pack_values
from optkit.report import rows
from optkit.report.tables import markdown
from optkit.report.written import Written
from tests.conftest import make_record

PERPLEXITY = Quality("error", higher_is_better=False, primary=True)
PEAKS = {"fp32": 100.0, "memory_gb_s": 30.0, "read_gb_s": 10.0}


def record(variant, step, ms, weights_mb, read_mb, beside_ms=None):
    """One timed in decoding behind 8 tokens at batch size 2; its 10 million parameters take so much."""
    here = {"engine": "eager", "threads": 2}
    setting = here | {"batch_size": 2, "sequence_length": 8, "workload": "decode"}
    timed = [("variant", ms), *([("baseline", beside_ms)] if beside_ms else [])]
    values = np.array([20.0, 21.0, 22.0])
    measurements = [
        Measurement("params", 10_000_000),
        Measurement("perplexity", 21.0, "", [19.0, 23.0], 3, here | {"split": "test"}, pack_values(values), PERPLEXITY),
        Measurement("precision", None, conditions=here | {"is": "fp32"}),
        Measurement("int8_share", 0.0, conditions=here),
        Measurement("macs", 1_000_000, conditions={"per": "token", "sequence_length": 8}),
        Measurement("weights", weights_mb, "MB", conditions=setting | {"read_mb": read_mb}),
        Measurement("cache", 2.0, "MB", conditions=setting),
    ]
    for of, latency in timed:
        raw = np.full((30, 1), latency)
        together = {"of": of, "interleaved": variant, "count": 2, "unit": "tokens"}
        measurements.append(Measurement("latency", latency, "ms", None, 30, setting | together, raw.tolist()))
    parent = "v0" if step else None
    made = make_record(variant=variant, step=step, parent=parent)
    return replace(made, measurements=measurements, environment={"peaks": PEAKS})


def test_bandwidth_of_a_further_token_is_counted_by_hand():
    base, packed = rows([record("v0", 0, 10.0, 40.0, 38.0), record("v1", 1, 20.0, 5.0, 4.0, 10.0)])
    assert (base["weights_mb"], base["cache_mb"]) == (40.0, 2.0)
    # 38 MB of weights and 2 MB of cache in 10 ms
    assert base["bytes_moved_modelled"] == 40e6
    assert base["bandwidth_gb_s"] == pytest.approx(4.0)
    assert base["bandwidth_share"] == pytest.approx(0.4)
    assert base["bound"] == "overhead"
    assert base["throughput"] == pytest.approx(200)
    # 2 tokens of a million MACs
    assert base["achieved_gops"] == pytest.approx(4e6 / 10e-3 / 1e9)
    assert packed["bandwidth_gb_s"] == pytest.approx(0.3)
    assert packed["bound"] == "unpacking"
    assert packed["speedup_same_engine"] == pytest.approx(0.5)
    (fast,) = rows([record("v0", 0, 5.0, 40.0, 38.0)])
    assert fast["bound"] == "memory"


def test_tables_have_a_column_for_the_workload_where_there_is_one():
    text = markdown(rows([record("v0", 0, 10.0, 40.0, 38.0)]))
    assert "| workload | perplexity |" in text
    assert "| decode | 21.00 [19.00, 23.00] |" in text
    assert "workload" not in markdown(rows([make_record()]))


def test_plain_numbers_have_two_decimals():
    written = Written("perplexity", "", "error", higher_is_better=False)
    assert (written.title, written.change_title, written.value(1234.567)) == ("perplexity", "change", "1,234.57")
    assert (written.signed(0.031), written.change_unit) == ("+0.03", "")
