"""Batches of examples: in order or shuffled, read in this process or by workers, the same in each way."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from optkit.core.errors import OptkitError, StageError, UserError, first_line
from optkit.core.task import Batch

NICENESS = 10  # of processes that read


class Examples(Protocol):
    """What `in_batches` reads: a batch at once, which is far cheaper than example by example."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: list[int]) -> Batch: ...


def order_seed(training: bool, seed: int | None) -> int | None:
    """The seed that batches are shuffled under; None: they come in order."""
    return 0 if training and seed is None else seed


def in_batches(examples: Examples, batch_size: int, seed: int | None, workers: int = 0) -> Iterator[Batch]:
    """Batches in order, or shuffled under a seed.

    Args:
        examples: what to read.
        batch_size: of all batches but the last.
        seed: None for their own order.
        workers: processes that read ahead; 0 reads in this one. They end with the iterator.

    Raises:
        UserError: an example cannot be read; also where a worker finds it.
        StageError: a worker ended, as one does that the kernel kills for its memory.
    """
    import torch

    workers = min(workers, -(-len(examples) // batch_size) - 1)  # none for a single batch
    # torch reads batches through __getitems__, which its types do not know
    loader: Iterable[Batch | _Failed] = torch.utils.data.DataLoader(
        _Guarded(examples) if workers else examples,  # type: ignore[arg-type]
        batch_size,
        shuffle=seed is not None,
        generator=torch.Generator().manual_seed(seed or 0),
        collate_fn=_already_a_batch,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_begin_worker,
    )
    if not workers:
        return iter(loader)  # type: ignore[arg-type]
    return _unguarded(loader)


def _begin_worker(number: int) -> None:
    """Prepares a process that reads.

    It gives way to the threads that train: they wait for one another in every operation, so that a reader on the core
    of one stops all. And the garbage collector is kept off what was there before: it would copy every page of it.
    """
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    gc.freeze()


def _already_a_batch(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class _Failed:
    error: OptkitError


@dataclass(frozen=True)
class _Guarded:
    """Examples whose errors are returned: torch would raise them anew with a traceback for a message."""

    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, index: list[int]) -> Batch | _Failed:
        try:
            return self.examples.__getitems__(index)
        except Exception as error:  # noqa: BLE001 - of any kind, raised again by `_unguarded`
            if not isinstance(error, OptkitError):
                message = f"examples {index[0]} and following cannot be read: {first_line(error)}"
                error = UserError(message, key="task")
            error.value = None if error.value is None else str(error.value)  # it travels to another process
            error.add_note(traceback.format_exc())
            return _Failed(error)


def _unguarded(loader: Iterable[Batch | _Failed]) -> Iterator[Batch]:
    try:
        for found in _begun(loader):
            if isinstance(found, _Failed):
                raise found.error
            yield found
    except (
        RuntimeError,
        ConnectionError,
        EOFError,
        FileNotFoundError,
    ) as error:  # what a queue tells of its dead writer
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        fix = "see whether memory ran out; task.workers=1 takes less, task.workers=0 reads without workers"
        raise StageError(f"a process that reads data ended: {first_line(error)}", fix=fix) from error


def _begun(loader: Iterable[Batch | _Failed]) -> Iterator[Batch | _Failed]:
    """The loader's iterator, without torch's handler of SIGCHLD, which raises wherever the main thread is.

    The iterator itself sees within five seconds that a worker has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch under a seed for the time of the block."""
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
