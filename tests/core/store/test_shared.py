"""A store that hosts share: complete or absent, checked, made once, and never in the way of a run."""

import json
import logging
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from optkit.core.checksums import ENTRY
from optkit.core.errors import StageError
from optkit.core.store import lease
from optkit.core.store.lease import Lease, leased, read_lease
from optkit.core.store.remote import ENTRIES
from tests.core.store.conftest import EXAMPLE, host, model, variant

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, caplog):
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    caplog.set_level("INFO", "optkit")


def objects(remote):
    """The files of an entry, by the names that they have in the store."""
    folder = remote.path(ENTRIES, "id")
    return {path.rpartition("/")[2]: path for path in remote.fs.ls(folder, detail=False)}


def weights_of(remote):
    return next(path for name, path in objects(remote).items() if name.endswith("weights.safetensors"))


def same(artifact, module):
    return all(torch.equal(a, b) for a, b in zip(artifact.module().parameters(), module.parameters(), strict=True))


def test_what_one_host_puts_the_other_finds(two):
    here, there = two
    assert (there.has("id"), there.find("id")) == (False, None)
    here.put(variant(), model(), EXAMPLE)
    assert there.has("id")
    assert same(there.find("id"), model())
    assert {name[17:] for name in objects(here.remote)} - {""} == {"weights.safetensors", "variant.json"}
    said = json.loads(here.remote.fs.cat_file(objects(here.remote)[ENTRY]))
    assert (said["about"]["stage"], said["about"]["recipe"], set(said["files"])) == (
        "train", "recipe", {"variant.json", "weights.safetensors"},
    )  # fmt: skip


def test_a_second_look_downloads_nothing(two, monkeypatch):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    there.find("id")
    monkeypatch.setattr(there.remote, "download", lambda *a: pytest.fail("downloaded again"))
    assert there.find("id") is not None


@pytest.mark.parametrize("lacks", [ENTRY, "weights.safetensors"])
def test_a_half_uploaded_entry_is_absent(two, lacks, caplog):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    path = next(path for name, path in objects(here.remote).items() if name.endswith(lacks))
    here.remote.fs.rm_file(path)
    assert there.find("id") is None
    assert ("weights.safetensors is missing" in caplog.text) == (lacks != ENTRY)
    there.put(variant(), model(), EXAMPLE)
    assert host_of(there).find("id") is not None


def host_of(store):
    """A third host of a store."""
    return host(store.remote.url, store.cache.root.parent / "c")


@pytest.mark.parametrize("cut", ["a flipped bit", "half of it", "nothing"])
def test_an_entry_with_other_bytes_is_named_set_aside_and_made_anew(two, cut, caplog):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    fs, path = here.remote.fs, weights_of(here.remote)
    data = bytearray(fs.cat_file(path))
    data[-3] ^= 1
    fs.pipe_file(path, {"a flipped bit": bytes(data), "half of it": bytes(data[: len(data) // 2]), "nothing": b""}[cut])
    assert there.find("id") is None
    assert "entry id is damaged: " in caplog.text
    assert "weights.safetensors" in caplog.text
    assert not there.cache.has("id")
    assert not host_of(there).has("id")
    there.put(variant(), model(), EXAMPLE)
    assert same(host_of(there).find("id"), model())


def test_a_damaged_copy_in_the_cache_is_downloaded_again(two, caplog):
    from tests.core.store.conftest import flip

    here, there = two
    here.put(variant(), model(), EXAMPLE)
    folder = there.find("id").folder
    os.utime(folder / "weights.safetensors")
    flip(folder / "weights.safetensors")
    os.utime(folder / "weights.safetensors")
    assert same(there.find("id"), model())
    assert "the bytes of weights.safetensors have changed" in caplog.text
    assert (there.cache.root / "id.damaged").is_dir()


def test_a_manifest_that_is_no_manifest_is_no_entry(two, caplog):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    for text in (
        b"",
        b"{",
        b"[]",
        b'{"format": 99}',
        b'{"format": 1, "files": {"../x": {"size": 1, "sha256": ""}}, "about": {}}',
    ):
        here.remote.fs.pipe_file(objects(here.remote)[ENTRY], text)
        assert there.find("id") is None
    assert "this optkit reads 1" in caplog.text
    assert "'../x' is no file name" in caplog.text


def test_of_two_hosts_the_first_complete_entry_wins(two, caplog):
    here, there = two
    here.put(variant(), model(0), EXAMPLE)
    assert same(there.put(variant(), model(1), EXAMPLE), model(0))
    assert "another host made id, with other bytes" in caplog.text
    assert same(host_of(there).find("id"), model(0))


def test_a_store_that_was_deleted_is_filled_again_from_the_cache(two):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    here.remote.fs.rm(here.remote.root, recursive=True)
    assert not there.has("id")
    again = host(here.remote.url, here.cache.root)
    assert again.find("id") is not None
    assert there.find("id") is not None


def _fail(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said", "read_only"),
    [
        (OSError(28, "No space left on device"), "entry id is not uploaded: .*No space left on device", False),
        (ConnectionError("reset by peer"), "entry id is not uploaded: reset by peer", False),
        (PermissionError("AccessDenied"), "cannot be written: AccessDenied; what is new stays in", True),
        (OSError(30, "Read-only file system"), "cannot be written: .*Read-only file system", True),
    ],
)
def test_an_upload_that_fails_is_said_and_tried_again(two, monkeypatch, caplog, error, said, read_only):
    here, there = two
    with monkeypatch.context() as broken:
        broken.setattr(type(here.remote.fs), "put_file", _fail(error))
        assert same(here.put(variant(), model(), EXAMPLE), model())
        if read_only:
            here.put(variant("other"), model(), EXAMPLE)
    import re

    assert len(re.findall(said, caplog.text)) == 1
    assert here.remote.read_only == read_only
    assert not there.has("id")
    again = host(here.remote.url, here.cache.root)
    assert again.find("id") is not None
    assert there.has("id")


def test_a_server_that_is_gone_ends_the_run_with_one_line_unless_the_cache_has_the_entry(two, monkeypatch, caplog):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    monkeypatch.setattr(type(here.remote.fs), "cat_file", _fail(ConnectionError("no route to host")))
    with pytest.raises(StageError, match="cannot read .*: no route to host"):
        there.find("id")
    again = host(here.remote.url, here.cache.root)
    assert again.find("id") is not None
    assert "no route to host; what is in" in caplog.text


def test_a_read_only_store_has_no_leases_and_takes_nothing(two):
    here, there = two
    here.put(variant(), model(), EXAMPLE)
    there.remote.read_only = True
    with there.making("new", "making train"):
        there.put(variant("new"), model(), EXAMPLE)
    assert there.find("new") is not None
    assert there.find("id") is not None
    assert not here.has("new")
    assert not there.remote.fs.exists(there.remote.lease("new"))


def test_one_host_makes_an_entry_while_the_other_waits_and_finds_it(two, caplog):
    made = []

    def work(store):
        with store.making("id", "making train of test"):
            if store.find("id") is None:
                made.append(store)
                time.sleep(0.5)
                store.put(variant(), model(), EXAMPLE)

    threads = [threading.Thread(target=work, args=(store,)) for store in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert "waiting for process" in caplog.text
    assert "which is making train of test" in caplog.text
    assert not two[0].remote.fs.exists(two[0].remote.lease("id"))


def _lease(store, age=0, **changes):
    """Another owner's lease, of another system, renewed some seconds ago."""
    other = {"token": "other", "place": "elsewhere", "time": time.time() - age}
    said = vars(Lease.mine("making train")) | other | changes
    path = store.remote.lease("id")
    store.remote.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    store.remote.fs.pipe_file(path, json.dumps(said).encode())
    return path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"age": 86400}, "has said nothing for 144"),
        ({}, "has said nothing for 0 s"),
        ({"place": lease._place(), "pid": 2**22 + 1}, "has ended"),
        ({"place": lease._place(), "pid": os.getpid(), "started": 1.0}, "has ended"),
    ],
)
def test_a_stale_lease_is_taken_over_and_said(two, monkeypatch, caplog, changes, why):
    monkeypatch.setattr(lease, "STALE_S", 0.3)
    path = _lease(two[0], **changes)
    with two[0].making("id", "making"):
        assert read_lease(two[0].remote.fs, path).token != "other"
    assert f"taking over from process {changes.get('pid', os.getpid())} on " in caplog.text
    assert why in caplog.text
    assert not two[0].remote.fs.exists(path)


def test_an_unreadable_lease_is_taken_over_too(two, monkeypatch, caplog):
    monkeypatch.setattr(lease, "STALE_S", 0.2)
    path = _lease(two[0])
    two[0].remote.fs.pipe_file(path, b"{")
    with two[0].making("id", "making"):
        pass
    assert "taking over from the unreadable" in caplog.text


def test_a_lease_that_is_renewed_is_waited_for(two, monkeypatch):
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    times = {}

    def hold():
        with leased(two[0].remote.fs, two[0].remote.lease("id"), "making"):
            times["held"] = True
            time.sleep(1.5)
            times["ended"] = time.monotonic()

    thread = threading.Thread(target=hold)
    thread.start()
    while "held" not in times:
        time.sleep(0.01)
    with leased(two[1].remote.fs, two[1].remote.lease("id"), "making"):
        assert time.monotonic() > times["ended"]
    thread.join()


def test_an_owner_that_lost_its_lease_says_so_and_leaves_the_new_one(two, monkeypatch, caplog):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with two[0].making("id", "making"):
        path = _lease(two[0])
        time.sleep(0.3)
    assert "has taken over: this process could not renew its lease in time" in caplog.text
    assert read_lease(two[0].remote.fs, path).token == "other"


def test_where_no_lease_can_be_written_work_goes_on(two, monkeypatch, caplog):
    monkeypatch.setattr(type(two[0].remote.fs), "makedirs", _fail(RuntimeError("no leases here")))
    with two[0].making("id", "making"):
        pass
    assert "no leases here; another host may do the same work" in caplog.text


def _make_chain(url, cache, made, ready, go):
    logging.basicConfig(level=logging.INFO)
    store = host(url, cache)
    lease.POLL_S = 0.05
    ready.release()
    go.wait(60)
    for number in range(3):
        name = f"stage-{number}"
        if store.find(name) is None:
            with store.making(name, f"making {name}"):
                if store.find(name) is None:
                    made.append((name, os.getpid()))
                    time.sleep(0.3)
                    store.put(variant(name), model(number), EXAMPLE)


@pytest.mark.slow
def test_two_processes_with_two_caches_make_every_stage_of_a_chain_once(tmp_path):
    url = (tmp_path / "shared").as_uri()
    with spawn.Manager() as manager:
        made, ready, go = manager.list(), spawn.Semaphore(0), spawn.Event()
        processes = [spawn.Process(target=_make_chain, args=(url, tmp_path / n, made, ready, go)) for n in "ab"]
        for process in processes:
            process.start()
        for _ in processes:
            ready.acquire()
        go.set()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        assert sorted(name for name, _ in made) == ["stage-0", "stage-1", "stage-2"]
    for cache in "ab":
        for number in range(3):
            assert same(host(url, tmp_path / cache).cache.find(f"stage-{number}"), model(number))


@pytest.mark.slow
def test_what_a_killed_process_was_making_another_takes_over_at_once(tmp_path, caplog):
    url = (tmp_path / "shared").as_uri()
    with spawn.Manager() as manager:
        made, ready, go = manager.list(), spawn.Semaphore(0), spawn.Event()
        process = spawn.Process(target=_make_chain, args=(url, tmp_path / "a", made, ready, go))
        process.start()
        go.set()
        while not len(made):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    store = host(url, tmp_path / "b")
    name = next(n for n in ("stage-0", "stage-1") if store.find(n) is None)
    with store.making(name, "making it"):
        store.put(variant(name), model(), EXAMPLE)
    assert f"taking over from process {process.pid} on " in caplog.text
    assert "it has ended" in caplog.text
