"""Locks between real processes: waiting, refusing, and taking over from the dead."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from optkit.core.errors import UserError
from optkit.core.locks import exclusive, others_hold

spawn = multiprocessing.get_context("spawn")


def _hold(path, doing, held, free):
    with exclusive(path, doing):
        held.set()
        free.wait(60)


def _hold_with_a_forked_child(path, held, child_pid):
    with exclusive(path, "training"):
        pid = os.fork()
        if not pid:
            child_pid.value = os.getpid()
            held.set()
        time.sleep(60)
        if not pid:
            os._exit(0)


def _count(path, number, times):
    """Adds one to a number in a file, so slowly that two at the same time would lose some."""
    for _ in range(times):
        with exclusive(path, "counting"):
            value = int(number.read_text())
            time.sleep(0.002)
            number.write_text(str(value + 1))


@pytest.fixture
def owner(tmp_path):
    """A process that holds tmp_path/lock until it is told to let it go, or killed."""
    held, free = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path / "lock", "timing openvino", held, free))
    process.start()
    assert held.wait(60)
    process.free = free.set
    yield process
    process.kill()
    process.join()


def test_a_held_lock_is_refused_with_its_owner(tmp_path, owner):
    said = json.loads((tmp_path / "lock.json").read_text())
    assert (said["pid"], said["host"], said["doing"]) == (owner.pid, socket.gethostname(), "timing openvino")
    match = rf"process {owner.pid} on {socket.gethostname()}, which is timing openvino \(since .*\d\d:\d\d:\d\d\)"
    with pytest.raises(UserError, match=match), exclusive(tmp_path / "lock", "more", wait=False):
        pass


def test_one_who_waits_says_for_whom_once(tmp_path, owner, caplog):
    caplog.set_level("INFO", "optkit")
    threading.Timer(1.5, owner.free).start()
    with exclusive(tmp_path / "lock", "more"):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    said = [r.getMessage() for r in caplog.records if r.name == "optkit.core.locks"]
    assert len(said) == 1
    assert said[0].startswith(f"waiting for process {owner.pid} on ")


def test_a_killed_owner_frees_the_lock(tmp_path, owner):
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with exclusive(tmp_path / "lock", "more", wait=False):
        pass
    assert not (tmp_path / "lock.json").exists()


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path):
    held, child = spawn.Event(), spawn.Value("i", 0)
    owner = spawn.Process(target=_hold_with_a_forked_child, args=(tmp_path / "lock", held, child))
    owner.start()
    assert held.wait(60)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    try:
        with exclusive(tmp_path / "lock", "more", wait=False):
            pass
    finally:
        os.kill(child.value, signal.SIGKILL)


def test_no_two_processes_are_inside_at_once(tmp_path):
    number = tmp_path / "number"
    number.write_text("0")
    processes = [spawn.Process(target=_count, args=(tmp_path / "lock", number, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert number.read_text() == "60"


def test_a_thread_may_take_its_lock_again_and_another_may_not(tmp_path):
    path = tmp_path / "lock"
    refused = []

    def other():
        try:
            with exclusive(path, "other", wait=False):
                pass
        except UserError as error:
            refused.append(str(error))

    with exclusive(path, "outer"):
        with exclusive(path, "inner", wait=False):
            pass
        assert json.loads((tmp_path / "lock.json").read_text())["doing"] == "outer"
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "outer" in refused[0]
    with exclusive(path, "again", wait=False):
        pass


def test_a_failure_inside_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "lock", "failing"):
        raise ZeroDivisionError
    with exclusive(tmp_path / "lock", "more", wait=False):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock_gets_a_soft_lock(tmp_path, monkeypatch, code):
    import fcntl

    def flock(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock", "outer"):
        with exclusive(tmp_path / "lock", "inner", wait=False):
            pass
        assert (tmp_path / "lock.soft").exists()
    assert not (tmp_path / "lock.soft").exists()


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot lock .*: "), exclusive(tmp_path / "file" / "lock", "more"):
        pass


def test_a_process_of_this_number_on_another_host_is_another_one(tmp_path, owner):
    """Containers that share a folder of locks often have the same numbers."""
    said = tmp_path / "lock.json"
    assert others_hold(tmp_path / "lock")
    mine = json.loads(said.read_text()) | {"pid": os.getpid()}
    said.write_text(json.dumps(mine))
    assert others_hold(tmp_path / "lock") is None
    said.write_text(json.dumps(mine | {"host": "elsewhere"}))
    assert "elsewhere" in others_hold(tmp_path / "lock")
