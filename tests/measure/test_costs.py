import numpy as np
import pytest
import torch
from torch import nn

from optkit.core.cache import write_json
from optkit.core.workload import Request
from optkit.measure import disturbance, latency
from optkit.measure.disturbance import LoadWatch, Mark, OtherLoad
from optkit.measure.energy import energy_counters, measure_energy
from optkit.measure.peaks import measure_peaks, peaks, peaks_file
from optkit.measure.traffic import count_traffic


def test_traffic_of_two_layers_is_counted_by_hand():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).eval()
    each, once = count_traffic(model, ((torch.zeros(2, 6),), (torch.zeros(5, 6),)))
    # 6 in and 4 out, 4 in and 3 out; both matrices and one bias
    assert each == 6 + 4 + 4 + 3
    assert once == 6 * 4 + 4 + 4 * 3


def test_peaks_are_measured_once_and_kept(monkeypatch):
    found = measure_peaks(1, size=64, seconds=0.01, copied=1 << 16, read=1 << 16)
    assert {"fp32", "memory_gb_s", "read_gb_s"} <= set(found)
    assert all(value > 0 for value in found.values())
    calls, measured = [], {"fp32": 1.5, "read_gb_s": 2.0}
    monkeypatch.setattr("optkit.measure.peaks.measure_peaks", lambda threads: calls.append(threads) or measured)
    monkeypatch.setattr("optkit.measure.peaks.cpu", lambda: {"name": "a processor of this test alone"})
    assert peaks(3) == peaks(3) == measured
    assert calls == [3]


def test_peaks_that_were_kept_before_reading_was_measured_are_completed(monkeypatch):
    monkeypatch.setattr("optkit.measure.peaks.cpu", lambda: {"name": "an older processor of this test"})
    monkeypatch.setattr("optkit.measure.peaks.measure_reading", lambda threads: 7.0)
    write_json(peaks_file(3), {"fp32": 1.5}, key="OPTKIT_CACHE")
    assert peaks(3) == {"fp32": 1.5, "read_gb_s": 7.0}


def test_peaks_that_cannot_be_kept_are_measured_all_the_same(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr("optkit.measure.peaks.cache_dir", lambda: tmp_path / "file" / "cache")
    monkeypatch.setattr("optkit.measure.peaks.measure_peaks", lambda threads: {"fp32": 1.5, "read_gb_s": 7.0})
    assert peaks(3) == {"fp32": 1.5, "read_gb_s": 7.0}
    assert "this machine's peaks are not kept" in caplog.text


def _stat(tmp_path, user, idle, steal=0):
    file = tmp_path / "stat"
    file.write_text(f"cpu {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n")
    return file


def test_other_load_is_the_machines_less_our_own(tmp_path):
    before = Mark(10.0, 1.0, Mark.now(_stat(tmp_path, 1000, 0)).machine)
    # 20 s of machine time in 10 s: 9 of them ours, the rest another's or stolen
    after = Mark(20.0, 10.0, Mark.now(_stat(tmp_path, 2500, 0, steal=500)).machine)
    assert after.others_since(before) == pytest.approx(1.1)
    assert OtherLoad(1.1, 1.1).disturbs
    assert not OtherLoad(0.05, 0.1).disturbs


def test_without_the_kernels_clocks_nothing_is_called_disturbed(tmp_path):
    before, after = Mark(0.0, 0.0, None), Mark.now(tmp_path / "none")
    assert after.others_since(before) is None
    assert not OtherLoad(None, None).disturbs


def _watch(monkeypatch, marks):
    """The load that a watch finds whose clocks read this, one mark a look."""
    clock = iter(marks)
    monkeypatch.setattr(disturbance.Mark, "now", lambda: next(clock))
    watch = LoadWatch()
    for mark in marks[1:-1]:
        monkeypatch.setattr(disturbance.time, "perf_counter", lambda mark=mark: mark.wall)
        watch.look()
    return watch.load()


def test_a_load_that_comes_and_goes_shows_in_its_half_second(monkeypatch):
    # 5 s of our own on one core; another's 0.4 s within one half second: 0.08 cores on the mean
    others = [0.0] * 4 + [0.4] * 7
    load = _watch(monkeypatch, [Mark(n / 2, n / 2, n / 2 + busy) for n, busy in enumerate(others)])
    assert (load.mean, load.peak) == (pytest.approx(0.08), pytest.approx(0.8))
    assert load.disturbs
    steady = _watch(monkeypatch, [Mark(n / 2, n / 2, n / 2 + 0.04 * n) for n in range(11)])
    assert (steady.mean, steady.peak) == (pytest.approx(0.08), pytest.approx(0.08))
    assert not steady.disturbs


def test_the_last_moment_is_never_so_short_that_a_tick_of_the_clock_fills_it(monkeypatch):
    # the kernel's tick of 10 ms in the last 20 ms is not half a core
    load = _watch(monkeypatch, [Mark(0.0, 0.0, 0.0), Mark(0.5, 0.5, 0.5), Mark(1.0, 1.0, 1.0), Mark(1.02, 1.02, 1.03)])
    assert load.peak == pytest.approx(0.01 / 0.52)


def test_a_disturbed_series_is_timed_again_and_the_calmest_is_kept(monkeypatch):
    def timed(*loads):
        found = iter(loads)
        monkeypatch.setattr(LoadWatch, "load", lambda self: next(found))
        series = latency.interleaved({"a": lambda x: x}, (torch.zeros(1),), seconds=0.001, seed=0, retries=2)["a"]
        return series.load, series.tries

    busy, calmer, brief, calm = (OtherLoad(*x) for x in ((0.9, 1.0), (0.4, 2.0), (0.1, 0.5), (0.05, 0.2)))
    assert timed(busy, calmer, busy) == (calmer, 3)
    assert timed(busy, brief, calm) == (calm, 3)
    assert timed(calm) == (calm, 1)


def test_energy_is_what_the_counters_gained_a_request():
    joules = iter([10.0, 4.0])
    counters = {"rapl package-0": (lambda: next(joules), 100.0)}
    found = measure_energy(Request(lambda: None), {}, counters, seconds=0.01)
    # the counter started again at 100
    assert found.value == pytest.approx(94.0 / found.n)
    assert found.conditions["counters"] == ["rapl package-0"]
    assert measure_energy(Request(lambda: None), {}, {}).value is None


def test_rapl_counters_are_read_in_joules(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "2500000"), ("max_energy_range_uj", "262143328850")):
        (package / name).write_text(text)
    read, wraps = energy_counters(tmp_path)["rapl package-0"]
    assert read() == pytest.approx(2.5)
    assert wraps == pytest.approx(np.float64(262143.32885))
    board = tmp_path / "intel-rapl:1"
    board.mkdir()
    for name, text in (("name", "psys"), ("energy_uj", "9500000"), ("max_energy_range_uj", "262143328850")):
        (board / name).write_text(text)
    assert [name for name in energy_counters(tmp_path) if name.startswith("rapl")] == ["rapl package-0"]
