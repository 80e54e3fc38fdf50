"""Traffic: made, read, scaled and described."""

import json

import numpy as np
import pytest

from optkit.core.errors import UserError
from optkit.costs.specs import parse_traffic
from optkit.costs.traffic import Traffic, describe

DAY = 86_400


def test_made_traffic_has_its_rate_and_comes_from_its_seed():
    for spec in ("poisson:rate=2/s", "bursty:rate=2/s,length=20", "daily:rate=2/s,peak=3", "weekly:rate=2/s"):
        found = parse_traffic(spec)
        assert found.rate == pytest.approx(2, rel=0.05), spec
        assert np.all(np.diff(found.arrivals) >= 0)
        assert found.arrivals[-1] < found.seconds == (7 * DAY if spec.startswith("weekly") else DAY)
        assert np.array_equal(found.arrivals, parse_traffic(spec).arrivals)
        assert not np.array_equal(found.arrivals[:9], parse_traffic(f"{spec},seed=1").arrivals[:9])
    assert parse_traffic("poisson:rate=86400/day,hours=1").rate == pytest.approx(1, rel=0.1)


def test_poisson_gaps_are_exponential():
    gaps = np.diff(parse_traffic("poisson:rate=5/s,hours=10").arrivals)
    assert gaps.mean() == pytest.approx(0.2, rel=0.01)
    assert gaps.std() == pytest.approx(0.2, rel=0.02)


def test_a_day_peaks_at_14_and_a_weekend_has_its_share():
    day = parse_traffic("daily:rate=50/s,peak=2.5")
    hours = day.counts(3600) / 3600
    assert hours.argmax() in (13, 14)
    assert hours.max() == pytest.approx(2.5 * 50, rel=0.03)
    days = parse_traffic("weekly:rate=2/s,weekend=0.25").counts(DAY)
    assert days[5:].mean() / days[:5].mean() == pytest.approx(0.25, rel=0.03)


def test_bursts_take_their_share_of_time_and_requests():
    found = parse_traffic("bursty:rate=20/s,burst=4,share=0.2,length=30,hours=48")
    seconds = found.counts(1)
    # 80 a second in bursts, 5 in the calm between
    assert np.mean(seconds > 40) == pytest.approx(0.2, rel=0.1)
    assert seconds[seconds > 40].mean() == pytest.approx(80, rel=0.02)
    assert seconds[seconds < 20].mean() == pytest.approx(5, rel=0.05)


def test_a_description_is_of_minutes_hours_and_seconds():
    # one request a second for an hour, two a second for the next
    found = describe(Traffic("steps", np.concatenate((np.arange(3600.0), 3600 + np.arange(7200) / 2)), 7200.0))
    assert (found.requests, found.mean, found.peak, found.off_peak) == (10_800, 1.5, 2.0, 1.0)
    assert found.reserved_waste == pytest.approx(0.25)
    assert found.burstiness == 0
    assert found.longest_silence_s == 1.0
    assert describe(parse_traffic("poisson:rate=20/s")).burstiness == pytest.approx(1, abs=0.02)
    assert describe(parse_traffic("daily:rate=20/s,peak=3")).burstiness == pytest.approx(1, abs=0.02)
    assert describe(parse_traffic("bursty:rate=20/s,length=10,hours=2")).burstiness > 5


def test_scaling_keeps_the_shape_and_repeating_the_rate():
    day = parse_traffic("daily:rate=5/s,peak=2,prompt_tokens=8,output_tokens=4")
    for rate in (0.5, 5.0, 12.5):
        found = day.scaled(rate, 0)
        assert found.rate == pytest.approx(rate, rel=0.02)
        assert found.seconds == day.seconds
        assert np.all(np.diff(found.arrivals) >= 0)
        assert np.corrcoef(found.counts(3600), day.counts(3600))[0, 1] > 0.99
        assert len(found.prompt_tokens) == len(found)
    twice = day.repeated(2)
    assert (twice.seconds, twice.rate) == (2 * DAY, day.rate)
    assert twice.counts(DAY).tolist() == [len(day)] * 2


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_csv_of_times_and_tokens(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    found = parse_traffic(write(tmp_path, "azure.csv", text))
    assert found.arrivals == pytest.approx([0, 4.314579], abs=1e-6)
    assert found.seconds == pytest.approx(2 * 4.314579, abs=1e-5)
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([374, 396], [44, 109])
    numbers = parse_traffic(write(tmp_path, "numbers.csv", "time\n10.5\n11\n13.25\n"))
    assert numbers.arrivals.tolist() == [0, 0.5, 2.75]
    options = parse_traffic(write(tmp_path, "more.csv", "ts\n0.5\n1\n") + ":repeat=3,prompt_tokens=5,output_tokens=6")
    assert options.arrivals.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert options.prompt_tokens.tolist() == [5] * 6


def test_counts_are_spread_within_their_minutes(tmp_path):
    text = "timestamp,requests\n2026-11-01T00:00:00Z,120\n2026-11-01T00:01:00Z,0\n2026-11-01T00:02:00Z,60\n"
    found = parse_traffic(write(tmp_path, "counts.csv", text))
    assert found.seconds == 180
    assert found.counts(60).tolist() == [120, 0, 60]


COMMON = """\
10.0.0.1 - - [10/Oct/2026:13:55:36 -0700] "GET / HTTP/1.1" 200 23
10.0.0.2 - bob [10/Oct/2026:13:55:38 -0700] "POST /predict HTTP/1.1" 200 23 "-" "curl"
10.0.0.1 - - [10/Oct/2026:20:55:37 +0000] "GET / HTTP/1.1" 200 23
"""


def test_access_logs_are_sorted_and_whole_seconds_are_filled(tmp_path):
    found = parse_traffic(write(tmp_path, "access.log", COMMON))
    assert found.seconds == 3
    assert found.counts(1).tolist() == [1, 1, 1]
    lines = [{"ts": 5.25, "status": 200}, {"ts": 4.5, "status": 200}, {"ts": 7.0, "status": 500}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert parse_traffic(write(tmp_path, "access.json", text)).arrivals.tolist() == [0, 0.75, 2.5]


def prometheus(values, metric=None):
    series = {"metric": metric or {}, "values": [[1_700_000_000 + 60 * n, str(v)] for n, v in values]}
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [series]}})


def test_a_prometheus_export_gives_rates(tmp_path):
    found = parse_traffic(write(tmp_path, "range.json", prometheus([(0, 100), (1, 50), (2, 200)])))
    assert found.seconds == 180
    assert found.counts(60) / 60 == pytest.approx([100, 50, 200], rel=0.05)


WRONG = {
    "out of order": ("t.csv", "time\n1\n3\n2\n", "t.csv:4: 1970-01-01T00:00:02+00:00 comes after a later time (sort"),
    "a gap": ("t.csv", "time,count\n0,5\n60,5\n180,5\n240,5\n", "t.csv:4: a gap: 120 s behind 1970-01-01T00:01:00+00:00"),
    "a negative count": ("t.csv", "time,count\n0,5\n60,-5\n", "t.csv:3: a count of -5"),
    "no time": ("t.csv", "time\n1\nsoon\n", "t.csv:3: 'soon' is not a time"),
    "not a number": ("t.csv", "time\n1\nnan\n", "t.csv:3: 'nan' is not a time"),
    "no column of times": ("t.csv", "a,b\n1,2\n", "t.csv:1: no column of times"),
    "a short line": ("t.csv", "time,prompt_tokens\n1,2\n2\n", "t.csv:3: fewer columns than the header"),
    "tokens that are none": ("t.csv", "time,prompt_tokens\n1,2\n2,many\n", "t.csv:3: 'many' is not a whole number"),
    "one request": ("t.csv", "time\n1\n", "fewer than two times"),
    "nothing": ("t.csv", "", "an empty file"),
    "a line that is no log": ("t.log", COMMON + "hello\n", "t.log:4: not a line of an access log"),
    "a line that is no JSON": ("t.json", '{"ts": 1}\n{"ts": 2\n', "t.json:2: not a JSON object"),
    "a log without times": ("t.json", '{"a": 1}\n{"a": 2}\n', "no key for the time"),
    "a counter": ("t.json", prometheus([(0, 1), (1, 2)], {"__name__": "http_total"}), "export sum(rate(http_total[1m]))"),
    "a missing rate": ("t.json", prometheus([(0, 1), (1, "NaN")]), "no rate at 2023-11-14T22:14:20+00:00"),
    "a missing step": ("t.json", prometheus([(0, 1), (1, 1), (3, 1)]), "a gap: 120 s"),
    "an answer of another kind": ("t.json", '{"data": {"result": []}}', "not a Prometheus range export"),
    "milliseconds": ("t.json", '{"ts": 5}\n{"ts": 1700000001000}\n', "t.json:2: 1700000001000 is no time in seconds (divide it by 1000"),
    "counts without rows": ("t.csv", "time,count\n", "no requests"),
    "counts at one time": ("t.csv", "time,count\n5,1\n5,2\n", "counts at the same time"),
    "null in place of a time": ("t.json", '{"ts": "2026-11-01T12:00:00"}\n{"ts": null}\n', "t.json:2: None is not a time"),
    "null in place of tokens": ("t.json", '{"ts": 1, "prompt_tokens": 1}\n{"ts": 2, "prompt_tokens": null}\n', "t.json:2: None is not a whole"),
    "endless tokens": ("t.csv", "time,prompt_tokens\n1,2\n2,inf\n", "t.csv:3: 'inf' is not a whole number"),
    "negative tokens": ("t.csv", "time,prompt_tokens\n1,2\n2,-3\n", "t.csv:3: -3 tokens"),
    "a month that is none": ("t.log", COMMON + COMMON.replace("Oct", "Foo"), "t.log:4: 10/Foo/2026:13:55:36 -0700 is not a time"),
    "no requests": ("t.csv", "time,count\n0,0\n60,0\n", "no requests"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_a_file_is_named_with_its_line(case, tmp_path):
    name, text, message = WRONG[case]
    with pytest.raises(UserError) as error:
        parse_traffic(write(tmp_path, name, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("poison:rate=1/s", "no traffic 'poison' (did you mean 'poisson'? Or give a file)"),
        ("none.csv", "no traffic 'none.csv'"),
        ("poisson", "traffic.rate: no rate (poisson:rate=10/s)"),
        ("poisson:rate=10", "traffic.rate: '10' has no unit"),
        ("poisson:rate=1/s,peak=2", "no option 'peak'"),
        ("poisson:rate", "'rate' is no option"),
        ("poisson:rate=1/s,hours=-1", "traffic.hours: '-1' is not a number above 0"),
        ("poisson:rate=1/s,seed=x", "traffic.seed: 'x' is not a whole number"),
        ("poisson:rate=1000000/s", "86,400,000,000 requests"),
        ("poisson:rate=0.001/day", "no request comes"),
        ("poisson:rate=1/s,prompt_tokens=5", "prompt_tokens alone"),
        ("bursty:rate=1/s,burst=20", "bursts of 20 times the rate in 0.1 of the time"),
        ("daily:rate=1/s,peak=0.5", "a peak of 0.5 times the mean"),
    ],
)
def test_what_is_wrong_in_a_specification_is_named(spec, message):
    with pytest.raises(UserError) as error:
        parse_traffic(spec)
    assert message in str(error.value)
