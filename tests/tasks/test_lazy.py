"""Data that are read by workers as they are asked for: the same as those that are decoded once."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from optkit.core.errors import StageError, UserError
from optkit.tasks import ImageFolder, LoaderTask, decode, image_files, image_listing, reading
from optkit.tasks.image_listing import list_classes

LAZY = {"memory_share": 1e-12}


def folder_task(folder, **options):
    return ImageFolder(path=str(folder), image_size=8, **options)


@pytest.mark.parametrize("workers", [0, 1, 2, None])
def test_pixels_order_and_fingerprint_are_those_of_images_decoded_once(image_folder, workers):
    once, lazy = (
        folder_task(image_folder, crop=2, flip=True, **options) for options in ({}, LAZY | {"workers": workers})
    )
    assert once.fingerprint == lazy.fingerprint
    for options in ({}, {"seed": 3}, {"training": True, "seed": 5}):
        for ours, theirs in zip(once.batches("train", 4, **options), lazy.batches("train", 4, **options), strict=True):
            assert torch.equal(ours.inputs[0], theirs.inputs[0])
            assert torch.equal(ours.targets, theirs.targets)
            assert torch.equal(ours.index, theirs.index)
    assert torch.equal(once.example(3)[0], lazy.example(3)[0])
    assert (once.facts()["decoded"], lazy.facts()["decoded"]) == ("once", "at every reading")


def test_a_limit_and_the_pool_are_read_lazily_too(image_folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    for n in range(3):
        Image.new("RGB", (9, 9), (0, 80 * n, 255)).save(more / f"{n}.png")
    once, lazy = (folder_task(image_folder, unlabelled=str(more), limit=5, **options) for options in ({}, LAZY))
    for task in (once, lazy):
        assert (task.size("train"), task.size("pool")) == (5, 8)
    assert once.pool_fingerprint == lazy.pool_fingerprint
    pools = [torch.cat([b.inputs[0] for b in task.batches("pool", 3, seed=1)]) for task in (once, lazy)]
    assert torch.equal(*pools)


def test_no_image_is_read_before_a_batch_where_there_are_many(image_folder, monkeypatch):
    decoded = []
    real = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda image, *rest: decoded.append(image) or real(image, *rest))
    monkeypatch.setattr(image_files, "HASHED_BYTES", 1)
    task = folder_task(image_folder, mean=[0.5] * 3, std=[0.5] * 3, workers=0, **LAZY)
    before = task.fingerprint
    assert task.size("train") == 21
    assert task.model_defaults()["num_classes"] == 2
    assert decoded == []
    next(task.batches("train", 4))
    assert len(decoded) == 4
    once = folder_task(image_folder, mean=[0.5] * 3, std=[0.5] * 3)
    assert once.fingerprint == before
    assert once.facts()["fingerprint_of"] == "names, sizes and times of the files"


def test_the_fingerprint_of_many_files_follows_names_sizes_and_times(image_folder, monkeypatch):
    monkeypatch.setattr(image_files, "HASHED_BYTES", 1)

    def fingerprint():
        return folder_task(image_folder, mean=[0.5] * 3, std=[0.5] * 3, **LAZY).fingerprint

    file = image_folder / "train" / "cat" / "0.png"
    found = [fingerprint()]
    os.utime(file, ns=(1, 1))
    found.append(fingerprint())
    file.rename(file.with_name("00.png"))
    found.append(fingerprint())
    Image.new("RGB", (40, 40)).save(file.with_name("00.png"))
    os.utime(file.with_name("00.png"), ns=(1, 1))
    found.append(fingerprint())
    assert len(set(found)) == 4
    assert fingerprint() == found[-1]


@pytest.mark.parametrize("waits", [False, True])
def test_files_are_in_the_order_of_their_paths(tmp_path, monkeypatch, waits):
    monkeypatch.setattr(image_listing, "NOTICED_S", -1 if waits else float("inf"))  # a disk that threads wait for
    monkeypatch.setattr(image_listing, "WAITING", -float("inf"))
    names = ["b/1.png", "a/z.png", "a/b/c.png", "a/b-c.png", "a/ü.png", "a/10.jpg", "a/9.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = list_classes(tmp_path)
    assert (found.classes, found.counts) == (["a", "b"], [6, 1])
    paths = sorted(tmp_path / name for name in names)
    assert list(found.images) == paths
    assert found.images[-1] == paths[-1]
    assert list(found.images[2:4]) == paths[2:4]
    assert found.images.sizes.tolist() == [path.stat().st_size for path in paths]
    chosen = found.images.subset(np.array([4, 0]))
    assert list(chosen) == [paths[4], paths[0]]
    assert chosen.digest() != found.images.subset(np.array([0, 4])).digest()
    with pytest.raises(IndexError):
        found.images[7]


@pytest.fixture
def own_children():
    """The processes that a test has started, and that are there still."""
    earlier = set(psutil.Process().children())  # other tests' servers and pools
    return lambda: [child for child in psutil.Process().children() if child not in earlier]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_and_no_process_stays(image_folder, workers, own_children):
    file = image_folder / "train" / "dog" / "3.png"
    file.write_bytes(b"no image")
    task = folder_task(image_folder, mean=[0.5] * 3, std=[0.5] * 3, workers=workers, **LAZY)
    with pytest.raises(UserError, match=rf"train image \d+ \({file}\) cannot be read: it is no image") as caught:
        list(task.batches("train", 4))
    assert "\n" not in str(caught.value)
    assert own_children() == []


def test_workers_end_with_the_iterator(image_folder, own_children):
    task = folder_task(image_folder, workers=2, **LAZY)
    batches = task.batches("train", 4)
    next(batches)
    first, second = own_children()
    assert first.nice() == min(psutil.Process().nice() + reading.NICENESS, 19)  # it has made a batch
    assert second.is_running()
    del batches
    assert own_children() == []


class Killed(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, place):
        if place == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2), 0


def test_a_worker_that_is_killed_is_one_line():
    data = Killed()
    task = LoaderTask(
        train=data, test=data, validation=data, loss="cross_entropy", metrics="accuracy", fingerprint="x", workers=2
    )
    with pytest.raises(StageError, match="a process that reads data ended: .*task.workers=1") as caught:
        list(task.batches("train", 4))
    assert "\n" not in str(caught.value)


SLOW = """
import time
import torch
from torch.utils.data import Dataset
from optkit.core.interruption import Ending, Interruption
from optkit.tasks import LoaderTask

class Slow(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, place):
        time.sleep(0.05)
        return torch.zeros(2), 0

ending = Ending()
data = Slow()
task = LoaderTask(train=data, test=data, validation=data, loss="cross_entropy", metrics="accuracy", fingerprint="x", workers=2)
try:
    for batch in task.batches("train", 4):
        print("read", flush=True)
except Interruption as error:
    raise SystemExit(ending.farewell(error))
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_in_one_line():
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell without job control starts background work, such as these tests, with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout.readline() == "read\n"
    workers = psutil.Process(started.pid).children(recursive=True)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    _, said = started.communicate(timeout=300)
    assert len(workers) == 2
    assert started.returncode == 130
    assert [line for line in said.splitlines() if "interrupted" not in line] == []
    time.sleep(0.1)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
