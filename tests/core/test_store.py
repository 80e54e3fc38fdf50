"""The stage store between processes: one makes a variant, and what killed or failed stages leave is cleared."""

import multiprocessing
import time

import pytest

from optkit.core.cache import kept
from optkit.core.errors import StageError
from optkit.core.store import StageStore
from optkit.core.variant import Variant
from optkit.models import MLP


def _make(root, made):
    store = StageStore(root)
    with store.making("id", "making train of test"):
        if store.find("id") is None:
            made.append(1)
            time.sleep(0.5)
            model = MLP(input_shape=[1, 8, 8], widths=[4], num_classes=10)
            import torch

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
    store = StageStore(tmp_path)
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
    [(StageError("the loss became nan"), False), (RuntimeError("out of memory"), True), (None, True)],
)
def test_only_a_stage_that_cannot_work_loses_what_it_kept(tmp_path, error, stays):
    store = StageStore(tmp_path)

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
    store = StageStore(tmp_path)

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
