import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from optkit.core.errors import UserError
from optkit.recipe.compose import _rerun
from optkit.report import rows
from optkit.report.trackers import MLflow, TensorBoard, WandB, send
from tests.conftest import make_record
from tests.report.runs import answers, chain, write_run

CURVE = {"inner": {"training": {"losses": [0.9, 0.4, 0.2], "validation": [0.7, 0.9]}}}


@pytest.fixture
def folder(tmp_path):
    records = chain()
    records[2] = replace(records[2], facts=CURVE, params={"temperature": 4.0, "trainer": {"epochs": 3}})
    return write_run(tmp_path / "run-1", records, "chain: [train, prune]\nstages: {prune: {amount: 0.5}}\n")


class Kept:
    """Keeps what it is sent, by variant; None is the run."""

    nested = False

    def __init__(self, uri="memory://"):
        self.uri, self.logged = uri, {}

    def __repr__(self):
        return f"Kept(uri={self.uri!r})"

    def open(self, run, variant):
        metrics = self.logged.setdefault(variant, [])
        return SimpleNamespace(
            store_init_configuration=lambda values: None,
            log=lambda values, step: metrics.append((step, values)),
            finish=lambda: None,
        )

    def attach(self, tracker, file):
        pass


def _control(record, right):
    """The same stage in a control, with so many right answers of 1000."""
    made = make_record(
        variant=f"control-{record.step}", step=record.step, stage=record.stage, batch_size=8, correct=answers(right)
    )
    return replace(made, control="random")


def _at_lengths(records, *lengths):
    """The records as of texts of these lengths; each length has 100 MACs a token."""
    found = []
    for record in records:
        measurements = [m for m in record.measurements if m.name not in ("accuracy", "latency", "macs")]
        for length in lengths:
            for m in record.measurements:
                if m.name in ("accuracy", "latency", "macs"):
                    value, raw = 100 * length if m.name == "macs" else m.value, m.raw
                    here = m.conditions | {"sequence_length": length}
                    if m.name == "latency":
                        here["interleaved"] += f"-{length}"
                        value, raw = value * length, (np.asarray(raw) * length).tolist()
                    measurements.append(replace(m, value=value, raw=raw, conditions=here))
        found.append(replace(record, measurements=measurements))
    return found


def test_the_run_shows_its_own_variants_and_not_its_controls(tmp_path):
    records = chain()
    folder = write_run(tmp_path / "run-1", [*records, _control(records[1], 100), _control(records[2], 200)])
    tracker = Kept()
    assert send(folder, tracker)
    name = "eager/batch 8/accuracy"
    assert [(step, m[name]) for step, m in tracker.logged[None] if name in m] == [(0, 0.95), (1, 0.55), (2, 0.948)]
    (_, of_control), = tracker.logged["random-1-prune"]  # fmt: skip
    assert of_control[name] == 0.1


def test_several_lengths_of_texts_stand_apart(tmp_path):
    name = "inductor/batch 8/{}latency_p50_ms"
    for lengths, parts in (((32, 128), ("32 tokens/", "128 tokens/")), ((128,), ("",))):
        folder = write_run(tmp_path / str(len(lengths)), _at_lengths(chain(), *lengths))
        tracker = Kept()
        send(folder, tracker)
        (_, metrics), = tracker.logged["3-quantize"]  # fmt: skip
        assert {key for key in metrics if "p50" in key} == {name.format(part) for part in parts}
        assert [metrics[f"{part}macs"] for part in parts] == [100 * length for length in lengths]
        first, last = (metrics[name.format(part)] for part in (parts[0], parts[-1]))
        assert last == pytest.approx(first * lengths[-1] / lengths[0])


def test_what_was_sent_is_kept_without_credentials_and_survives_a_kill(folder):
    tracker = Kept("postgresql://me:se@cret@host/db")
    assert send(folder, tracker)
    assert not send(folder, tracker)
    text = (folder / "tracked.json").read_text()
    assert "cret" not in text
    assert "postgresql://host/db" in text
    assert send(folder, Kept("postgresql://other/db"))
    (folder / "tracked.json").write_text(text[:10])
    assert send(folder, tracker)
    assert not send(folder, tracker)
    (folder / "tracked.json").write_text(json.dumps({repr(tracker): 4}))
    assert not send(folder, tracker)


def test_a_runs_recipe_holds_no_password():
    tracker = {
        "_target_": "optkit.report.trackers.MLflow",
        "uri": "https://me:secret@host:5000/path",
        "artifacts": None,
    }
    kept = _rerun({"name": "a", "tracker": tracker, "fresh": True})
    assert kept == {"name": "a", "tracker": tracker | {"uri": "https://host:5000/path"}, "fresh": False}
    assert _rerun({"name": "a"}) == {"name": "a", "fresh": False}


def test_a_failure_while_noting_what_was_sent_leaves_the_old_note(folder, monkeypatch):
    assert send(folder, Kept())
    before = (folder / "tracked.json").read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        send(folder, Kept("other://"))
    assert (folder / "tracked.json").read_text() == before
    assert not list(folder.glob(".tracked*"))


@pytest.mark.slow
def test_mlflow_holds_a_run_with_its_variants_and_reads_back(folder, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflow(uri, "tests", str(tmp_path / "artifacts"))
    assert send(folder, tracker)
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("select count(*) from runs").fetchone() == (5,)

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"run-1", "0-train", "1-prune", "2-recover", "3-quantize"}
    parent = runs.pop("run-1")
    assert parent.data.params == {"chain": '["train", "prune"]', "stages.prune.amount": "0.5"}
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}
    assert all(r.info.status == "FINISHED" for r in [parent, *runs.values()])

    row = next(r for r in rows(chain()) if r["stage"] == "quantize")
    metrics = runs["3-quantize"].data.metrics
    assert metrics["inductor/batch 8/accuracy"] == row["quality"]
    assert metrics["inductor/batch 8/speedup"] == pytest.approx(row["speedup"])
    assert metrics["size_mb"] == 0.5
    recover = runs["2-recover"]
    assert recover.data.params["trainer.epochs"] == "3"
    history = client.get_metric_history(recover.info.run_id, "training/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.9), (2, 0.4), (3, 0.2)]
    over_steps = client.get_metric_history(parent.info.run_id, "inductor/batch 8/accuracy")
    assert [m.step for m in over_steps] == [0, 1, 2, 3]
    assert "ledger.jsonl" in {a.path for a in client.list_artifacts(parent.info.run_id)}

    assert not send(folder, tracker)
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("select count(*) from runs").fetchone() == (5,)


@contextmanager
def _mlflow_server(folder, tries=3):
    """A server on a SQLite store, in a process group of its own; gives its address."""
    options = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for last in reversed(range(tries)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
            "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1",
        ]  # fmt: skip
        with open(folder / "server.log", "ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=os.environ | options, start_new_session=True
            )
        try:
            if _answers(f"http://127.0.0.1:{port}/health", process):
                yield f"http://127.0.0.1:{port}"
                return
            # another process may have taken the port meanwhile
            assert last, (folder / "server.log").read_text()[-3000:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _answers(address, process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as reply:
                return reply.read() == b"OK"
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False


def _post(address, path, **body):
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def _get(address, path):
    with urllib.request.urlopen(f"{address}/api/2.0/{path}", timeout=60) as reply:
        return reply.read()


@pytest.mark.slow
def test_a_real_mlflow_server_holds_a_run_and_gives_it_back_over_rest(folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    for needed in ("flask", "flask_cors"):
        pytest.importorskip(needed, reason="mlflow-skinny has no server without flask and flask-cors")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "server"
    home.mkdir()
    with _mlflow_server(home) as address:
        tracker = MLflow(address, "tests", None)
        assert send(folder, tracker)
        experiments = _post(address, "experiments/search", max_results=10)["experiments"]
        experiment = next(e for e in experiments if e["name"] == "tests")
        found = _post(address, "runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
        runs = {run["info"]["run_name"]: run for run in found}
        assert set(runs) == {"run-1", "0-train", "1-prune", "2-recover", "3-quantize"}
        assert {run["info"]["status"] for run in found} == {"FINISHED"}
        parent = runs["run-1"]["info"]["run_id"]
        tags = {t["key"]: t["value"] for t in runs["3-quantize"]["data"]["tags"]}
        assert tags["mlflow.parentRunId"] == parent
        params = {p["key"]: p["value"] for p in runs["run-1"]["data"]["params"]}
        assert params["stages.prune.amount"] == "0.5"
        row = next(r for r in rows(chain()) if r["stage"] == "quantize")
        metrics = {m["key"]: m["value"] for m in runs["3-quantize"]["data"]["metrics"]}
        assert metrics["inductor/batch 8/accuracy"] == row["quality"]
        assert metrics["inductor/batch 8/speedup"] == pytest.approx(row["speedup"])
        recover = runs["2-recover"]["info"]["run_id"]
        path = f"mlflow/metrics/get-history?run_id={recover}&metric_key=training/loss"
        assert [m["value"] for m in json.loads(_get(address, path))["metrics"]] == [0.9, 0.4, 0.2]
        root = f"mlflow-artifacts/artifacts/{experiment['experiment_id']}/{parent}/artifacts"
        assert _get(address, f"{root}/ledger.jsonl") == (folder / "ledger.jsonl").read_bytes()
        assert not send(folder, tracker)
    count = sqlite3.connect(home / "server.db").execute("select count(*) from runs").fetchone()
    assert count == (5,)


def test_tensorboard_holds_the_curves(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert send(folder, TensorBoard(str(tmp_path / "tb")))
    found = EventAccumulator(str(tmp_path / "tb/run-1/2-recover")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in found.Scalars("training/loss")] == [(1, 0.9), (2, 0.4), (3, 0.2)]
    run = EventAccumulator(str(tmp_path / "tb/run-1")).Reload()
    assert [e.step for e in run.Scalars("inductor/batch 8/speedup")] == [0, 1, 2, 3]


def test_wandb_takes_runs_offline(folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert send(folder, WandB(mode="offline"))
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 5


@pytest.mark.parametrize(("package", "tracker"), [("mlflow", MLflow), ("tensorboard", TensorBoard), ("wandb", WandB)])
def test_a_tracker_that_is_not_installed_is_a_mistake_named_before_any_work(monkeypatch, package, tracker):
    monkeypatch.setattr("optkit.core.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{package}.* not installed .*optkit\\[{package}\\]"):
        tracker()


@pytest.mark.slow
def test_a_run_is_tracked_from_the_command_line(command_here, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow.tracking import MlflowClient

    recipe = tmp_path / "test.yaml"
    recipe.write_text(
        "defaults: [optkit, stage@stages.train: train, _self_, override model: mlp]\nname: test\nchain: [train]\n"
        "model: {widths: [16]}\ntask: {image_size: 8, limit: 64}\nstages: {train: {trainer: {epochs: 2}}}\nthreads: 1\n"
        "measure: {batch_sizes: [4], seconds: 0.05, memory: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert command_here("run", recipe, "~engines.inductor", "tracker=mlflow").exception is None
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("optkit").experiment_id])
    child = next(r for r in runs if r.info.run_name == "0-train")
    assert len(client.get_metric_history(child.info.run_id, "training/loss")) == 2
    folder = next((tmp_path / "runs").glob("test-*"))
    report = json.loads((folder / "report.json").read_text())
    assert child.data.metrics["eager/batch 4/accuracy"] == report[0]["quality"]
    assert "README.md" in {a.path for a in client.list_artifacts(child.info.run_id)}
