"""Batches shared out to processes."""

import pytest

from optkit.core import processes
from optkit.core.sharding import sharded


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_batch_is_that_of_one_process(monkeypatch, size):
    found = []
    for rank in range(size):
        of_one = processes.Processes()
        of_one.rank, of_one.size = rank, size
        monkeypatch.setattr(processes, "_joined", [of_one])
        mine = list(sharded(range(4)))
        assert abs(len(mine) - 4 / size) < 1
        found += mine
        with processes.alone():
            assert list(sharded(range(4))) == [0, 1, 2, 3]
            assert processes.of_run() is of_one
    assert sorted(found) == [0, 1, 2, 3]
