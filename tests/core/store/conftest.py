"""A small variant, and stores as two hosts have them."""

from pathlib import Path
from uuid import uuid4

import pytest
import torch

from optkit.core.store.folder import FolderStore
from optkit.core.store.opening import open_remote
from optkit.core.store.shared import SharedStore
from optkit.core.variant import Step, Variant
from optkit.models import MLP

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def variant(name="id", parent=None):
    steps = (Step("train", "train", "optkit.training.Train", {}),)
    spec = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [4]}}
    return Variant(name, parent, frozenset({"float"}), spec, steps=steps)


def model(seed=0):
    torch.manual_seed(seed)
    return MLP(input_shape=[1, 8, 8], widths=[4], num_classes=10).eval()


def host(url, cache):
    """The shared store as a host sees it: with a cache of its own, and a file system object of its own."""
    open_remote.cache_clear()
    return SharedStore(open_remote(url), FolderStore(Path(cache), "recipe"))


def flip(path):
    """Changes one bit in the middle of a file; its size and its time stay."""
    import os

    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    """A store that two caches share, in a folder or in memory."""
    return (tmp_path / "shared").as_uri() if request.param == "file" else f"memory://{uuid4().hex}"


@pytest.fixture
def two(url, tmp_path):
    """Two hosts of one store."""
    return host(url, tmp_path / "a"), host(url, tmp_path / "b")
