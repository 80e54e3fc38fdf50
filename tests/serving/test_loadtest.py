"""Traffic against a small server of this process: times, percentiles, errors, and the comparison."""

import asyncio
import json
import math
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from aiohttp import web

from optkit.core.errors import UserError
from optkit.costs.traffic import Traffic
from optkit.serving import loadtest as tests
from optkit.serving.front import ALONE, FEWEST, FEWEST_ALONE, UNDER_WAY, WARM, Front, Unloaded
from optkit.serving.loadtest import Measured, Request, Sent, measuring
from tests.costs.runs import folder

INPUTS = [{"name": "x", "dtype": "float32", "shape": [2]}, {"name": "ids", "dtype": "int64", "shape": [3]}]


def every(seconds, count):
    return Traffic("test", np.arange(count) * seconds, count * seconds)


class Server:
    """Answers after a delay; of its requests it keeps the times and bodies."""

    def __init__(self, delay=0.0, codes=(200,), about=None):
        self.delay, self.codes, self.about = delay, codes, about
        self.bodies, self.at_once, self.most = [], 0, 0

    async def predict(self, request):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        body = await request.read()
        place = max(0, len(self.bodies) - 1)  # the first request is the one that opens the session
        self.bodies.append((request.content_type, body))
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        code = self.codes[place % len(self.codes)]
        if code == 302:
            raise web.HTTPFound("http://example.com/")
        return web.json_response({"outputs": {}}, status=code)

    async def healthz(self, request):
        return web.json_response({"status": "ok", "replicas": 2})

    async def metadata(self, request):
        return web.json_response(self.about) if self.about is not None else web.Response(status=404)


@contextmanager
def running(server):
    """Its address."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        application = web.Application()
        application.add_routes([web.post("/predict", server.predict), web.get("/metadata", server.metadata)])
        application.add_routes([web.get("/healthz", server.healthz)])
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        return runner

    def work():
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_requests_are_sent_at_their_times_whether_or_not_earlier_ones_were_answered():
    server = Server(delay=0.5, about={"inputs": INPUTS})
    with running(server) as url:
        measured = tests.loadtest(url, every(0.02, 10))
    assert server.most > 5  # waiting for answers would have sent one at a time
    assert measured.sent.answered.size == 10
    assert (measured.sent.answered >= 0.5).all()
    kind, body = server.bodies[-1]
    inputs = json.loads(body)["inputs"]
    assert (kind, len(inputs["x"]), inputs["ids"]) == ("application/json", 2, [1, 1, 1])


def test_errors_are_counted_and_have_no_latency(tmp_path):
    with running(Server(codes=(200, 503))) as url:
        measured = tests.loadtest(url, every(0.001, 20), Request(b"a text", "text/plain"))
    assert measured.sent.outcomes == {"200": 10, "503": 10}
    assert measured.sent.answered.size == 10
    assert measured.about == {}
    line = tests.row(url, every(0.001, 20), measured, None)
    assert (line["requests"], line["answered"], line["predicted"]) == (20, 10, None)
    assert line["latency_ms"].count(None) == 10
    assert line["p99_ms"] is line["p95_ms"] is None  # of all requests, and half were not answered
    tests.append(tmp_path / "deep" / "ledger.jsonl", line)
    tests.append(tmp_path / "deep" / "ledger.jsonl", line)
    assert [json.loads(text) for text in (tmp_path / "deep" / "ledger.jsonl").read_text().splitlines()] == [line, line]
    assert "not answered: 503 (10)" in tests.table(line)


def test_a_request_that_takes_too_long_is_lost():
    server = Server(about={"inputs": INPUTS})
    with running(server) as url:

        async def slow(request):
            server.bodies.append(await request.read())
            await asyncio.sleep(0 if len(server.bodies) == 1 else 5)
            return web.json_response({})

        server.predict = slow
        with running(server) as slow_url:
            measured = tests.loadtest(slow_url, every(0.01, 3), timeout_s=0.3)
    assert measured.sent.outcomes == {"timeout": 3}
    assert measured.sent.answered.size == 0
    assert tests.row(url, every(0.01, 3), measured, None)["p99_ms"] is None


@pytest.mark.parametrize(
    ("server", "request_", "message"),
    [
        (Server(codes=(400,)), Request(b"{", "application/json"), "url: the server answers 400"),
        (Server(codes=(302,)), Request(b"{", "application/json"), "url: the server answers 302"),
        (Server(), None, "url: its /metadata has no inputs .give --body FILE"),
        (Server(about={"inputs": [{"name": "x", "shape": [-1], "dtype": "float32"}]}), None, "has no inputs"),
    ],
)
def test_a_server_that_cannot_be_asked_is_said_before_the_traffic(server, request_, message):
    with running(server) as url, pytest.raises(UserError, match=message):
        tests.loadtest(url, every(0.01, 3), request_)
    assert len(server.bodies) == (0 if request_ is None else 1)


def test_without_a_server_it_says_so():
    with pytest.raises(UserError, match="url: no server: .*optkit serve"):
        tests.loadtest("http://127.0.0.1:1", every(0.01, 1))


@pytest.mark.parametrize(
    ("url", "remote", "found"),
    [
        ("http://127.0.0.1:8000/", False, "http://127.0.0.1:8000"),
        ("localhost:8000", False, "http://localhost:8000"),
        ("http://[::1]:80/predict", False, "http://[::1]:80"),
        ("http://192.0.2.1:8000", True, "http://192.0.2.1:8000"),
    ],
)
def test_addresses_of_this_machine_are_taken_and_others_when_asked(url, remote, found):
    assert tests.check_url(url, remote) == found


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://192.0.2.1:8000", "192.0.2.1 is another machine.*--remote"),
        ("http://127.0.0.1.nowhere.invalid", "no host"),
        ("ftp://127.0.0.1", "no address of HTTP"),
        ("http://", "no address of HTTP"),
        ("http://127.0.0.1:99999", "no address"),
    ],
)
def test_other_addresses_are_refused(url, message):
    with pytest.raises(UserError, match=f"url: {message}"):
        tests.check_url(url, False)


def test_the_client_says_when_it_was_the_bottleneck():
    quick, late = np.full(100, 0.010), np.full(100, 0.0001)
    assert not Sent(quick, late, {}, 1.0).client_bound
    assert Sent(quick, late + 0.003, {}, 1.0).client_bound
    assert not Sent(quick * 10, late + 0.003, {}, 1.0).client_bound  # 3 of 100 ms
    line = tests.row("u", every(1, 100), Measured({}, Sent(quick, late + 0.003, {"200": 100}, 100.0)), None)
    assert "the client was the bottleneck" in tests.table(line)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("runs") / "run-1")


ABOUT = {"variant": "v3", "engine": "eager", "max_batch": 1, "max_wait_ms": 0.0, "replicas": 1, "scaling": None}


def test_the_prediction_is_of_what_is_served_and_of_the_same_requests(run):
    # 5 ms each, 10 ms apart: no request waits
    measured = Measured(ABOUT, Sent(np.full(200, 0.010), np.zeros(200), {"200": 200}, 2.0))
    found = tests.predict(run, measured, every(0.01, 200))
    assert found["p50_ms"] == pytest.approx(5.0, rel=0.02)
    assert found["utilization"] == pytest.approx(0.5, rel=0.02)
    # 20 at the same moment, one after the other
    crowd = Traffic("crowd", np.zeros(20), 1.0)
    assert tests.predict(run, measured, crowd)["p99_ms"] == pytest.approx(100, rel=0.02)
    together = replace(measured, about=ABOUT | {"max_batch": 8, "replicas": 3})
    assert tests.predict(run, together, crowd)["p99_ms"] == pytest.approx(10, rel=0.02)
    line = tests.row("u", every(0.01, 200), measured, found)
    exact = tests.row("u", every(0.01, 200), measured, found | {"p50_ms": 5.0})
    assert "p50 ms          10          5       +100%" in tests.table(exact)
    assert line["predicted"] == found


def test_requests_share_the_front_and_slow_one_another_down():
    alone = Front(np.array([1.0]), np.array([1.0]), np.array([1.0]))  # as many side by side as come
    np.testing.assert_allclose(alone.latencies(np.array([0.0, 0.5, 5.0]), 0), 1.0)
    shared = Front(np.array([1.0]), np.array([1.0, 2.0]), np.array([1.0, 2.0]))  # one core
    # half a second alone, then both at half the speed: the first is done at 1.5, the second at 2.0
    np.testing.assert_allclose(shared.latencies(np.array([0.0, 0.5, 5.0]), 0), [1.5, 1.5, 1.0])
    np.testing.assert_allclose(shared.latencies(np.zeros(4), 0), 4.0)  # beyond what was measured, in proportion
    assert shared.latencies(np.empty(0), 0).size == 0


def test_the_front_is_a_queue_of_known_waits():
    """M/M/1 with processor sharing: 1 / (mu - lambda) on average."""
    random = np.random.default_rng(0)
    shared = Front(random.exponential(1.0, 10_000), np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    arrivals = np.cumsum(random.exponential(1 / 0.5, 100_000))
    assert shared.latencies(arrivals, 1).mean() == pytest.approx(1 / (1 - 0.5), rel=0.03)


@pytest.mark.parametrize(
    ("alone", "busy", "model", "front"),
    [
        # 5 of 15 ms are the model's; with 4 under way an answer comes every 10 ms: 3.34 are here, each for 33 ms
        (0.015, [(4, 100.0)], (0.005, 0.002), ([1, 3.475], [1, 3.475])),
        (0.015, [(4, 480.0)], (0.005, 0.002), ([1], [1])),  # the model is always busy: of the front nothing is seen
        (0.004, [(4, 100.0)], (0.005, 0.002), ([1], [1])),  # no more than the model takes
    ],
)
def test_the_front_is_what_a_request_takes_besides_the_model(alone, busy, model, front):
    found = Front.of(Unloaded(np.full(9, alone), busy), *model)
    np.testing.assert_allclose(found.alone_s, max(0.0, alone - 0.005), atol=1e-12)
    np.testing.assert_allclose(found.sharing, front[0], rtol=1e-3)
    np.testing.assert_allclose(found.slower, front[1], rtol=1e-3)


def test_the_prediction_has_the_front_before_the_model(run):
    # 25 ms of the front and 5 ms of the model; the front does one request at a time
    before = Unloaded(np.full(9, 0.030), [(2, 40.0), (16, 40.0)])
    measured = Measured(ABOUT, Sent(np.zeros(10), np.zeros(10), {}, 1.0), before)
    found = tests.predict(run, measured, every(0.1, 50))
    assert found["p50_ms"] == pytest.approx(30, rel=0.02)  # as a request alone
    assert found["front"]["alone_ms"] == pytest.approx(25, rel=0.02)
    found = tests.predict(run, measured, Traffic("crowd", np.zeros(10), 1.0))
    assert found["p99_ms"] == pytest.approx(10 * 25 + 10 * 5, rel=0.05)


@pytest.fixture
def soon_measured(monkeypatch):
    monkeypatch.setattr(measuring, "BUSY_S", 0.0)
    monkeypatch.setattr(measuring, "PAUSE_S", 0.0)


def before(bodies):
    """Whether so many requests are those before the traffic: each that was under way at the end is one more."""
    least = 1 + WARM + ALONE + FEWEST * sum(UNDER_WAY)
    return least <= bodies < least + sum(UNDER_WAY)


@pytest.mark.usefixtures("soon_measured")
def test_a_slow_server_is_measured_with_fewer_requests(monkeypatch):
    monkeypatch.setattr(measuring, "ALONE_S", 0.5)
    server = Server(delay=0.3, about={"inputs": INPUTS})
    with running(server) as url:
        found = tests.loadtest(url, every(0.1, 1), unloaded=True).unloaded
    assert found.alone.shape == (FEWEST_ALONE,)
    assert [under_way for under_way, _ in found.busy] == [2, 4]  # 8 take 2.4 s one after another


def test_batches_wait_for_others_in_the_model_and_not_in_the_front(run):
    # 40 ms alone: 20 of waiting for a batch, 5 of the model, 15 of the front
    waits = ABOUT | {"max_batch": 8, "max_wait_ms": 20.0}
    measured = Measured(waits, Sent(np.zeros(10), np.zeros(10), {}, 1.0), Unloaded(np.full(9, 0.040), [(4, 90.0)]))
    found = tests.predict(run, measured, every(0.1, 50))
    assert found["front"] == {"alone_ms": pytest.approx(15, rel=0.02), "sharing": [1.0], "slower": [1.0]}
    assert found["p50_ms"] == pytest.approx(40, rel=0.02)


def test_replicas_that_were_measured_count_and_not_those_that_may_run(run):
    # one of ten replicas ran: the model, with 5 ms a request, was always busy
    scales = ABOUT | {"replicas": 10, "scaling": {"target": 0.5, "min_replicas": 1, "max_replicas": 10}}
    before = Unloaded(np.full(9, 0.015), [(4, 190.0)], replicas=1)
    found = tests.predict(run, Measured(scales, Sent(np.zeros(10), np.zeros(10), {}, 1.0), before), every(0.1, 50))
    assert found["front"]["sharing"] == [1.0]


@pytest.mark.usefixtures("soon_measured")
def test_a_busy_server_says_how_many_it_answers():
    server = Server(delay=0.05, about={"inputs": INPUTS})
    with running(server) as url:
        busy = tests.loadtest(url, every(0.1, 1), unloaded=True).unloaded.busy
    assert [under_way for under_way, _ in busy] == list(UNDER_WAY)
    for under_way, rate in busy:  # each takes at least 50 ms
        assert under_way / 0.05 / 3 < rate < 1.1 * under_way / 0.05


@pytest.mark.usefixtures("soon_measured")
def test_the_server_is_measured_before_the_traffic_and_its_replicas_during_it():
    server = Server(delay=0.002, about={"inputs": INPUTS, **ABOUT, "scaling": {"target": 1}})
    with running(server) as url:
        measured = tests.loadtest(url, every(0.1, 3), unloaded=True)
    assert before(len(server.bodies) - 3)
    assert measured.sent.latency.size == 3
    assert measured.unloaded.alone.shape == (ALONE,)
    assert (measured.unloaded.alone >= 0.002).all()
    assert [number for _, number in measured.replicas] == [2]
    line = tests.row(url, every(0.1, 3), measured, {"replicas": [3], "front": None})
    assert line["replicas"][0][1] == 2
    assert "replicas as predicted in 0% of the time, within one in 100%" in tests.table(line)


def test_a_look_at_the_replicas_that_fails_is_said_and_tried_again(monkeypatch, caplog):
    class Failing(Server):
        looks = 0

        async def healthz(self, request):
            self.looks += 1
            return await super().healthz(request) if self.looks > 2 else web.Response(text="starting")

    monkeypatch.setattr(measuring, "POLL_S", 0.05)
    server = Failing(about={"inputs": INPUTS, **ABOUT, "scaling": {"target": 1}})
    with running(server) as url:
        measured = tests.loadtest(url, every(0.1, 6))
    assert {number for _, number in measured.replicas} == {2}
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        f"{url}/healthz says no number of replicas"
    ] * 2


@pytest.mark.usefixtures("soon_measured")
def test_what_the_measurement_started_ends_before_the_traffic(monkeypatch):
    class Scaled(Server):
        numbers = iter([1, 3, 2, 1])  # before, and while the autoscaler takes back what it started

        async def healthz(self, request):
            number = next(self.numbers, None)
            if number is None:
                return await super().healthz(request)
            assert len(self.bodies) <= 1 + WARM + ALONE + (FEWEST + 1) * sum(UNDER_WAY)
            return web.json_response({"replicas": number})

    monkeypatch.setattr(measuring, "POLL_S", 0.05)
    server = Scaled(about={"inputs": INPUTS, **ABOUT, "scaling": {"target": 1}})
    with running(server) as url:
        measured = tests.loadtest(url, every(0.1, 3), unloaded=True)
    assert {number for _, number in measured.replicas} == {2}


@pytest.mark.usefixtures("soon_measured")
@pytest.mark.parametrize("answered", [WARM, WARM + ALONE + 3])
def test_a_server_that_loses_requests_before_the_traffic_is_refused(answered):
    server = Server(about={"inputs": INPUTS}, codes=[200] * answered + [503] * 1000)
    with running(server) as url, pytest.raises(UserError, match="a request before the traffic got no answer: 503"):
        tests.loadtest(url, every(0.1, 3), unloaded=True)


def test_what_cannot_be_predicted_is_one_line(run):
    for about, message in (
        ({}, "the server does not say which variant it serves"),
        (ABOUT | {"variant": "other"}, "did not time what is served, on eager .optkit measure"),
        (ABOUT | {"max_batch": 16}, r"batches of 16 were not timed .optkit measure .*batch_sizes=\[1,8,16\]"),
    ):
        with pytest.raises(UserError, match=message):
            tests.predict(run, Measured(about, Sent(np.zeros(1), np.zeros(1), {}, 1.0)), every(1, 1))


def test_the_body_of_a_file(tmp_path):
    (tmp_path / "one.png").write_bytes(b"png")
    (tmp_path / "one.txt").write_bytes(b"text")
    (tmp_path / "one.json").write_bytes(b"{}")
    kinds = [tests.body_of(tmp_path / name).content_type for name in ("one.png", "one.txt", "one.json")]
    assert kinds == ["image/png", "text/plain", "application/json"]
    for name, message in (("one.bin", "one.bin is no JSON, text or image"), ("none.json", "cannot read")):
        with pytest.raises(UserError, match=f"body: {message}"):
            tests.body_of(tmp_path / name)


@pytest.mark.usefixtures("soon_measured")
def test_the_command_writes_a_line_and_prints_the_table(command_here, tmp_path, run):
    server = Server(about={"inputs": INPUTS, **ABOUT})
    with running(server) as url:
        asked = ["--traffic", "poisson:rate=100/s,hours=0.0001", "--run", run, "--out", tmp_path / "l.jsonl"]
        done = command_here("loadtest", url, *asked)
    assert done.exit_code == 0, done.exception
    (line,) = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert line["requests"] == line["outcomes"]["200"] > 10
    assert before(len(server.bodies) - line["requests"])
    assert math.isfinite(line["predicted"]["p99_ms"])
    assert "measured" in done.output
    assert "sent late by" in done.output
