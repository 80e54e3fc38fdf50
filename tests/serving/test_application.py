"""The front and a replica in this process, without a cluster: what each endpoint answers, and what is counted."""

import asyncio
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from optkit.core.errors import UserError
from optkit.core.extras import missing
from optkit.core.variant import Variant
from optkit.deploy.source import Source
from optkit.models import MLP
from optkit.serving.answers import Answers
from optkit.serving.model_folder import save_model
from optkit.serving.plan import Plan

pytestmark = pytest.mark.skipif(missing("serve") is not None, reason="needs the extra serve")
NODE = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}}


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    torch.manual_seed(0)
    module = MLP(input_shape=[1, 8, 8], widths=[32]).eval()
    source = Source("tiny", module, Variant("v1", None, frozenset({"float"}), NODE), digits.example(2), digits)
    return save_model(source, Plan("eager", 4), tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def ask(model):
    """Asks a front as Ray Serve does, requests at the same time; gives status and body of each."""
    from ray import serve
    from starlette.requests import Request

    from optkit.serving.application import Front, Model

    # outside a replica serve.batch has no context, in which it looks up one number
    held = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=8))
    patched = pytest.MonkeyPatch()
    patched.setattr(serve, "get_replica_context", lambda: held)

    replica = Model.func_or_class(str(model), 4, 50.0, 1, [], "eager")
    handle = SimpleNamespace(remote=replica)
    front = Front.func_or_class(handle, str(model), [], 20_000, {"max_batch": 4, "variant": "v1"})

    async def one(path, body=None, kind="application/json"):
        async def receive():
            return {"type": "http.request", "body": body or b"", "more_body": False}

        headers = [(b"content-type", kind.encode())]
        method = "GET" if body is None else "POST"
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        return await front(Request(scope, receive))

    def several(*requests):
        async def together():
            return await asyncio.gather(*(one(*request) for request in requests))

        return [(response.status_code, response.body) for response in loop.run_until_complete(together())]

    loop = asyncio.new_event_loop()
    yield several  # of one loop, to which the queue of batches belongs
    patched.undo()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


def body(example):
    return json.dumps({"inputs": {"images": example.tolist()}}).encode()


def test_it_answers_as_the_model_batches_and_counts(ask, model):
    examples = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
    (status, about) = ask(("/metadata",))[0]
    about = json.loads(about)
    name = about["inputs"][0]["name"]
    assert (status, about["max_batch"], about["variant"]) == (200, 4, "v1")
    assert (about["inputs"][0]["shape"], about["accepts"]) == ([1, 8, 8], ["application/json", "image/*"])
    wanted = Answers(model, 4, 1)([{name: x} for x in examples])
    given = [("/predict", body(x).replace(b'"images"', json.dumps(name).encode())) for x in examples]
    for (status, found), answer in zip(ask(*given), wanted, strict=True):
        assert status == 200
        np.testing.assert_allclose(json.loads(found)["outputs"]["logits"], answer["outputs"]["logits"], rtol=1e-4)
        assert json.loads(found)["class"] == answer["class"]
    lines = ask(("/metrics",))[0][1].decode().splitlines()
    for line in (
        'optkit_requests_total{code="200"} 6.0',
        "optkit_requests_in_progress 0.0",
        "optkit_batch_size_count 6.0",
    ):
        assert line in lines
    (total,) = [float(line.split()[1]) for line in lines if line.startswith("optkit_batch_size_sum")]
    assert total > 6  # some shared a batch


def test_an_image_is_taken_and_what_is_wrong_is_400(ask):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    ((status, found),) = ask(("/predict", file.getvalue(), "image/png"))
    assert (status, "class" in json.loads(found)) == (200, True)
    for data, kind, word in (
        (b"{", "application/json", "not JSON"),
        (b"x", "image/png", "not an image"),
        (b"x", "application/x-pickle", "is not taken"),
        (b" " * 20_001, "application/json", "too large"),
    ):
        ((status, found),) = ask(("/predict", data, kind))
        assert (status, word in json.loads(found)["error"]) == (400, True), found
    assert [status for status, _ in ask(("/predict",), ("/none",), ("/metrics", b"{}"))] == [405, 404, 405]


def test_the_arguments_of_a_config_are_checked(model):
    from optkit.serving.application import build

    for args, message in (
        ({"folder": str(model)}, "args.max_batch: missing"),
        ({"folder": str(model), "max_batch": 0}, "max_batch: 0 is not a whole number"),
        ({"folder": str(model), "max_batch": 4, "max_wait": 3}, "args.max_wait: unknown argument"),
    ):
        with pytest.raises(UserError, match=message):
            build(args)
