"""The real server: a variant behind HTTP, its answers, its metrics, and its end."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
from PIL import Image

from optkit.core.extras import missing
from optkit.core.variant import Variant
from optkit.deploy.source import Source
from optkit.serving.answers import Answers
from optkit.serving.model_folder import save_model
from optkit.serving.plan import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("serve") is not None, reason="needs the extra serve"),
]


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    from optkit.models import MLP

    made = MLP(input_shape=[1, 8, 8], widths=[32]).eval()
    node = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}}
    source = Source("tiny", made, Variant("v1", None, frozenset({"float"}), node), digits.example(2), digits)
    return save_model(source, Plan("eager", 4), tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def server(model):
    """The process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "optkit", "serve", str(model), "--port", str(port), "--max-wait", "20ms"]
    process = subprocess.Popen([*command, "--max-mb", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), process.communicate(timeout=300)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def ask(url, data=None, kind="application/json"):
    """Status and body."""
    try:
        with urlopen(Request(url, data, {"Content-Type": kind}), timeout=120) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_it_answers_as_the_model_counts_and_ends_with_nothing_left(server, model):
    process, url = server
    about = json.loads(ask(f"{url}/metadata")[1])
    (put,) = about["inputs"]
    assert (put["shape"], put["dtype"], about["max_batch"], about["max_wait_ms"]) == ([1, 8, 8], "float32", 4, 20.0)
    example = np.random.default_rng(0).random((1, 8, 8), np.float32)
    status, body = ask(f"{url}/predict", json.dumps({"inputs": {put["name"]: example.tolist()}}).encode())
    (wanted,) = Answers(model, 4, 1)([{put["name"]: example}])
    found = json.loads(body)
    assert (status, found["class"]) == (200, wanted["class"])
    np.testing.assert_allclose(found["outputs"]["logits"], wanted["outputs"]["logits"], rtol=1e-4, atol=1e-5)

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    assert ask(f"{url}/predict", file.getvalue(), "image/png")[0] == 200
    for data, kind, word in (
        (b"{", "application/json", "not JSON"),
        (b"x", "image/png", "not an image"),
        (b"x", "application/x-pickle", "is not taken"),
        (b" " * (2**20 + 1), "application/json", "too large"),
    ):
        status, body = ask(f"{url}/predict", data, kind)
        assert (status, word in json.loads(body)["error"]) == (400, True), body
    assert [ask(f"{url}/predict")[0], ask(f"{url}/none")[0], ask(f"{url}/healthz", b"{}")[0]] == [405, 404, 405]
    assert json.loads(ask(f"{url}/healthz")[1]) == {"status": "ok", "replicas": 1}
    metrics = ask(f"{url}/metrics")[1].decode()
    for line in (
        'optkit_requests_total{code="200"} 2.0',
        'optkit_requests_total{code="400"} 4.0',
        "optkit_requests_in_progress 0.0",
        "optkit_batch_size_count 2.0",
        "optkit_request_seconds_count 2.0",
    ):
        assert line in metrics.splitlines()

    port, own = int(url.rpartition(":")[2]), _own(process)
    sockets = [one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.pid in own]
    assert {one.laddr.ip for one in sockets if one.laddr.port == port} == {"127.0.0.1"}
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGTERM)
    out, error = process.communicate(timeout=300)
    assert (process.returncode, out) == (143, "")
    assert error.strip().endswith("terminated (SIGTERM) while serving")
    assert len(error.strip().splitlines()) == 1
    deadline = time.monotonic() + 30
    while alive := [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def _own(process):
    return {process.pid, *(one.pid for one in psutil.Process(process.pid).children(recursive=True))}


def test_a_port_that_is_taken_is_one_line(model, optkit_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = optkit_command("serve", model, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "port: cannot listen there: Address already in use (another --port" in done.stderr
