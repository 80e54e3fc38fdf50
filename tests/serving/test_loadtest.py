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
from optkit.serving.loadtest import Measured, Request, Sent
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

    async def metadata(self, request):
        return web.json_response(self.about) if self.about is not None else web.Response(status=404)


@contextmanager
def running(server):
    """Its address."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        application = web.Application()
        application.add_routes([web.post("/predict", server.predict), web.get("/metadata", server.metadata)])
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


def test_the_command_writes_a_line_and_prints_the_table(command_here, tmp_path, run):
    server = Server(about={"inputs": INPUTS, **ABOUT})
    with running(server) as url:
        asked = ["--traffic", "poisson:rate=100/s,hours=0.0001", "--run", run, "--out", tmp_path / "l.jsonl"]
        done = command_here("loadtest", url, *asked)
    assert done.exit_code == 0, done.exception
    (line,) = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert line["requests"] == line["outcomes"]["200"] == len(server.bodies) - 1 > 10
    assert math.isfinite(line["predicted"]["p99_ms"])
    assert "measured" in done.output
    assert "sent late by" in done.output
