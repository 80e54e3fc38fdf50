"""A store in a folder: one process makes a variant, what killed stages leave is cleared, and files are checked."""

import errno
import fcntl
import gc
import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.cache import kept
from optkit.core.checksums import _sha256
from optkit.core.errors import DeadEndError, StageError, UserError
from optkit.core.store import FolderStore, open_store
from optkit.core.store.contents import FolderContents
from optkit.core.store.uses import used
from optkit.core.variant import Variant
from optkit.models import MLP
from tests.core.store.conftest import EXAMPLE, flip, model, variant


def _make(root, made):
    store = FolderStore(root)
    with store.making("id", "making train of test"):
        if store.find("id") is None:
            made.append(1)
            time.sleep(0.5)
            model = MLP(input_shape=[1, 8, 8], widths=[4], num_classes=10)
            store.put(Variant("id", None, frozenset({"float"}), {}), model, (torch.zeros(1, 1, 8, 8),))


@pytest.mark.slow
def test_a_variant_is_made_by_one_process(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager:
        made = manager.list()
        processes = [spawn.Process(target=_make, args=(tmp_path, made)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        assert list(made) == [1]


def test_what_a_killed_writer_left_goes_and_what_a_stage_kept_stays(tmp_path):
    store = FolderStore(tmp_path)
    (store.workdir("id") / "training.pt").touch()
    unfinished = tmp_path / f".id.{'0' * 32}"
    unfinished.mkdir()
    other = tmp_path / f".other.{'0' * 32}"
    other.mkdir()
    with store.making("id", "making train"):
        assert not unfinished.exists()
        assert (store.workdir("id") / "training.pt").exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (DeadEndError("the loss became nan"), False),
        (RuntimeError("out of memory"), True),
        (StageError("a process that reads data ended"), True),
        (UserError("examples 0 and following cannot be read", key="task"), True),
        (None, True),
    ],
)
def test_only_a_stage_that_cannot_work_loses_what_it_kept(tmp_path, error, stays):
    store = FolderStore(tmp_path)

    def work():
        with store.making("id", "making train"):
            (store.workdir("id") / "training.pt").touch()
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert (tmp_path / "id.partial").exists() == stays


def test_a_stage_that_kept_nothing_leaves_no_folder(tmp_path):
    store = FolderStore(tmp_path)

    def work():
        with store.making("id", "making train"):
            store.workdir("id")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert {path.name for path in tmp_path.iterdir()} == {".locks"}


def _keep(calls):
    def make(folder):
        calls.append(1)
        time.sleep(0.5)
        (folder / "a").touch()

    kept("kind", "key", make)


@pytest.mark.slow
def test_what_is_kept_is_made_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager:
        calls = manager.list()
        processes = [spawn.Process(target=_keep, args=(calls,)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert list(calls) == [1]
    assert (tmp_path / "kind" / "key" / "a").exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "removed", "no manifest left whole"])
def test_a_damaged_entry_is_named_set_aside_and_made_anew(tmp_path, caplog, how):
    store = FolderStore(tmp_path)
    weights = store.put(variant(), model(), EXAMPLE).folder / "weights.safetensors"
    if how == "flipped":
        flip(weights)
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif how == "removed":
        weights.unlink()
    else:
        weights.with_name("entry.json").write_text("{")
    fresh = FolderStore(tmp_path)
    _sha256.cache_clear()  # as in another process
    assert fresh.find("id") is None
    assert (tmp_path / "id.damaged").is_dir()
    name = "entry.json" if how == "no manifest left whole" else "weights.safetensors"
    assert f"{tmp_path / 'id'} is damaged: " in caplog.text
    assert name in caplog.text
    fresh.put(variant(), model(), EXAMPLE)
    assert fresh.find("id") is not None


def test_an_entry_of_an_earlier_version_opens_unless_its_weights_are_cut(tmp_path, caplog):
    store = FolderStore(tmp_path)
    folder = store.put(variant(), model(), EXAMPLE).folder
    (folder / "entry.json").unlink()
    assert store.find("id").module() is not None
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged: .*incomplete"):
        open_artifact(folder).module()
    assert store.find("id") is None
    assert "weights.safetensors cannot be read" in caplog.text


def test_a_file_is_hashed_once_a_process_and_again_when_it_changes(tmp_path, monkeypatch):
    store, hashed = FolderStore(tmp_path), []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or real(file, kind))
    store.put(variant(), model(), EXAMPLE)
    hashed.clear()
    artifact = store.find("id")
    first = len(hashed)
    artifact.module()
    store.find("id").module()
    assert len(hashed) == first <= 2
    os.utime(artifact.folder / "weights.safetensors")
    store.find("id")
    assert [path.name for path in map(Path, hashed[first:])] == ["weights.safetensors"]


def test_a_variant_that_is_saved_over_another_has_no_checksums_of_that(tmp_path):
    folder = FolderStore(tmp_path).put(variant(), model(), EXAMPLE).folder
    save_artifact(folder, variant(), model(1), EXAMPLE)
    assert torch.equal(open_artifact(folder).module()(EXAMPLE[0]), model(1)(EXAMPLE[0]))


def test_a_folder_that_may_not_be_written_is_read_and_the_cache_takes_what_is_new(tmp_path, monkeypatch, caplog):
    FolderStore(tmp_path / "store").put(variant(), model(), EXAMPLE)
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    store = open_store(str(tmp_path / "store"))
    assert store.find("id").module() is not None
    with store.making("new", "making"):
        (store.workdir("new") / "training.pt").touch()
        store.put(variant("new"), model(1), EXAMPLE)
    assert store.has("new")
    assert open_store(str(tmp_path / "store")).find("new").folder.is_relative_to(tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    assert caplog.text.count("cannot be written: what is new goes to") == 2  # once for each of the two stores
    flip(tmp_path / "store" / "id" / "weights.safetensors")
    _sha256.cache_clear()
    assert store.find("id") is None
    assert "it is not used, and made anew in" in caplog.text


def _hold(root, found, free):
    store = FolderStore(root)
    assert store.find("0" * 16) is not None
    found.set()
    free.wait(60)


@pytest.mark.slow
def test_what_a_process_reads_is_known_until_it_ends_however_it_ends(tmp_path):
    FolderStore(tmp_path).put(variant("0" * 16), model(), EXAMPLE)
    gc.collect()
    assert used(tmp_path) == set()
    for how in ("ends", "is killed"):
        spawn = multiprocessing.get_context("spawn")
        found, free = spawn.Event(), spawn.Event()
        process = spawn.Process(target=_hold, args=(tmp_path, found, free))
        process.start()
        assert found.wait(60)
        (one,) = FolderContents(tmp_path).entries()
        assert used(tmp_path) == {"0" * 16}
        assert FolderContents(tmp_path).remove(one) == "a running process reads it"
        if how == "ends":
            free.set()
        else:
            process.kill()
        process.join()
        assert used(tmp_path) == set()
    assert FolderContents(tmp_path).remove(one) is None
    assert FolderContents(tmp_path).entries() == []


def test_a_list_of_entries_where_there_is_no_flock_counts_for_a_day(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    store = FolderStore(tmp_path)
    store.put(variant(), model(), EXAMPLE)
    assert used(tmp_path) == {"id"}
    for path in (tmp_path / ".locks" / "used").iterdir():
        os.utime(path, (0, 0))
    assert used(tmp_path) == set()
