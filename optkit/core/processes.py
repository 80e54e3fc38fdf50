"""The processes of one run, as ``torchrun`` and ``accelerate launch`` start them: what they share, and who says what.

One process is the first: it writes, measures and decides. The others do the same in the same order, and ask it. A run
in one process pays nothing for this: `ALONE` answers at once, and ``torch.distributed`` is not touched.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

from optkit.core.errors import OptkitError, PlanError, StageError, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")
WAIT = timedelta(days=365)  # the first may measure for as long as it likes
TRAIN = timedelta(hours=2)  # between two steps of a training
LOOK_S = (0.0005, 0.1)  # how often a process that waits looks, at first and later
CLAIM_S = 3.0  # for the first to say why all of them end
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN, OMP = "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"
ERRORS = {kind.__name__: kind for kind in (OptkitError, UserError, PlanError, StageError)}
LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")


class Processes:
    """The processes of a run; this class is a run of one.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        local_rank, local_size: the same among those of this machine.
    """

    rank = local_rank = 0
    size = local_size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, measures and decides."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def first(self, do: Callable[[], T]) -> T:
        """Calls a function in the first process only; the others wait for as long as it takes, and get its answer.

        Within the function `current` is `ALONE`.

        Args:
            do: gives plain values (JSON); an `OptkitError` that it raises is raised in all of them.
        """
        return do()

    def wait(self) -> None:
        """Returns when all processes are here."""

    def gather(self, value: Any) -> list[Any]:
        """The plain values (JSON) of all processes, by rank."""
        return [value]

    def gather_arrays(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays of all processes, of any shapes, by rank."""
        return [array]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of tensors of one shape, in place."""
        return tensor

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Gives tensors the values that they have in the first process."""

    def soon(self, flags: Sequence[int]) -> list[int]:
        """The largest of each flag over the processes, without waiting for them: what they gave in the call before.

        All processes call it equally often.
        """
        return list(flags)

    def share(self, count: int) -> slice:
        """The examples of a batch of so many that are this process's: next to each other, and as many as others have,
        or one more or fewer."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def last_word(self, code: int) -> tuple[bool, int]:
        """Whether this process says why the run ends, and the exit code; only one of them says it.

        Args:
            code: the exit code by what happened here.
        """
        return True, code

    def can_ask(self) -> bool:
        """Whether this process can still learn how the others ended; where it cannot, `last_word` goes by itself."""
        return True

    def close(self) -> None:
        """Leaves when all have come to the end."""


ALONE = Processes()
_joined: list[Processes] = []


def current() -> Processes:
    """The processes that do the present work together: `ALONE` unless `joined` is around, and within `alone`."""
    return _joined[-1] if _joined else ALONE


def of_run() -> Processes:
    """The processes of this run, also while the first of them does something alone."""
    return _joined[0] if _joined else ALONE


@contextmanager
def alone() -> Iterator[None]:
    """Within, `current` is `ALONE`: other processes take no part in what is done here."""
    _joined.append(ALONE)
    try:
        yield
    finally:
        _joined.pop()


def launched() -> tuple[int, int]:
    """Rank and number of processes as a launcher has set them for this one: 0 and 1 without any.

    Raises:
        UserError: the launcher's variables do not fit together, or it was asked for several processes and starts one.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if not size and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        fix = "torchrun --nproc-per-node N -m optkit run ..."
        raise UserError(
            "accelerate launch starts one process on CPUs, whatever its number", key="--num_processes", fix=fix
        )
    if size in ("", "1") or ("RANK" not in os.environ and "LOCAL_RANK" not in os.environ):
        return 0, 1
    missing = [name for name in LAUNCHED if not os.environ.get(name)]
    if missing:
        fix = "start optkit by torchrun or accelerate launch, or unset WORLD_SIZE"
        raise UserError(f"WORLD_SIZE is {size}, and {missing[0]} is not set", key=missing[0], fix=fix)
    numbers = [os.environ["RANK"], size]
    if not all(text.isdecimal() for text in numbers) or not int(numbers[0]) < int(size):
        raise UserError(f"RANK is {numbers[0]!r} of WORLD_SIZE {size!r}", key="RANK", fix="start optkit by torchrun")
    return int(numbers[0]), int(size)


def one_process_only(what: str) -> None:
    """Refuses work that only one process can do, where a launcher started several.

    Raises:
        UserError: this is one of several.
    """
    _, size = launched()
    if size > 1:
        fix = "start it without torchrun; optkit run works in several"
        raise UserError(f"{what} works in one process, and a launcher started {size}", key="WORLD_SIZE", fix=fix)


def ignored_omp_num_threads() -> bool:
    """Whether ``OMP_NUM_THREADS`` is torchrun's: it sets 1, so that its processes do not crowd one another."""
    return TORCHRUN in os.environ and os.environ.get(OMP) == "1"


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this run within the block, connected where a launcher started several; at its end all wait.

    Raises:
        UserError: the launcher's variables do not fit together.
    """
    rank, size = launched()
    if size == 1 or _joined:
        yield current()
        return
    if ignored_omp_num_threads():
        del os.environ[OMP]  # the first measures with all threads of the recipe, in processes of its own, too
    # gradients may have parameters without use in a loss; torch warns of that, in words for its developers
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _joined.append(_Several(rank, size))
    yield _joined[-1]
    # an error leaves it as it is: whoever ends the process asks for `last_word` first
    _joined.pop().close()


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that another process of the run has ended."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(text in str(error) for text in LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Several(Processes):
    """Several processes: tensors of a GPU travel by NCCL, all else by gloo, where waiting costs no processor time."""

    def __init__(self, rank: int, size: int):
        import torch
        from torch import distributed

        self.rank, self.size = rank, size
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._torch, self._distributed = torch, distributed
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            if self.local_rank >= torch.cuda.device_count():
                message = f"{self.local_size} processes on {socket.gethostname()}, and {torch.cuda.device_count()} GPUs"
                raise UserError(message, key="LOCAL_RANK", value=self.local_rank, fix="one process a GPU")
            torch.cuda.set_device(self.local_rank)
        self._store, *_ = next(iter(distributed.rendezvous("env://", rank, size)))
        backend = "nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=self._store, rank=rank, world_size=size, timeout=TRAIN)
        self._group: Any = distributed.new_group(backend="gloo", timeout=WAIT)
        self._sent: tuple[Any, Tensor] | None = None

    def first(self, do: Callable[[], T]) -> T:
        said: dict[str, Any] = {}
        failed: OptkitError | None = None
        if self.is_first:
            try:
                with alone():
                    said["answer"] = do()
            except OptkitError as error:
                failed = error
                value = None if error.value is None else str(error.value)
                said["error"] = [_kind(error), error.message, error.key, value, error.fix]
        heard = self.gather(said)[0]
        if failed is not None:
            raise failed
        if "error" in heard:
            kind, message, key, value, fix = heard["error"]
            raise ERRORS[kind](message, key=key, value=value, fix=fix)
        answer: T = heard["answer"]
        return answer

    def wait(self) -> None:
        if self._sent is not None:  # what is left unread when a process ends resets its connections
            self._wait_for(self._sent[0])
        self._wait_for(self._distributed.barrier(self._group, async_op=True))

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange(json.dumps(value).encode())]

    def gather_arrays(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        import numpy as np

        buffer = BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return [np.load(BytesIO(raw), allow_pickle=False) for raw in self._exchange(buffer.getvalue())]

    def sum(self, tensor: Tensor) -> Tensor:
        group = self._group if tensor.device.type == "cpu" else None
        self._distributed.all_reduce(tensor, group=group)
        return tensor

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._distributed.broadcast(tensor, 0, group=self._group if tensor.device.type == "cpu" else None)

    def soon(self, flags: Sequence[int]) -> list[int]:
        torch, before = self._torch, self._sent
        sent = torch.tensor(list(flags), dtype=torch.int32)
        largest = self._distributed.ReduceOp.MAX
        self._sent = self._distributed.all_reduce(sent, largest, group=self._group, async_op=True), sent
        if before is None:
            return [0] * len(flags)
        self._wait_for(before[0])
        found: list[int] = before[1].tolist()
        return found

    def last_word(self, code: int) -> tuple[bool, int]:
        deadline = time.monotonic() + (0 if self.is_first else CLAIM_S)
        try:
            while not self._store.check(["optkit/code"]) and time.monotonic() < deadline:
                time.sleep(LOOK_S[1])
            if self._store.add("optkit/said", 1) == 1:
                self._store.set("optkit/code", str(code))
                return True, code
            return False, int(self._store.get("optkit/code"))
        except RuntimeError:  # the launcher, which keeps this, has ended as well
            return self.is_first, code

    def can_ask(self) -> bool:
        try:
            self._store.check(["optkit/code"])
        except RuntimeError:  # it was kept by a process that has ended
            return False
        return True

    def close(self) -> None:
        self.wait()
        self._distributed.destroy_process_group()

    def _exchange(self, raw: bytes) -> list[bytes]:
        """The bytes of all processes, by rank."""
        torch = self._torch
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(raw)
        self._wait_for(self._distributed.all_reduce(sizes, group=self._group, async_op=True))
        longest = int(sizes.max())
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        all_of_them = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._wait_for(self._distributed.all_gather(all_of_them, mine, group=self._group, async_op=True))
        parts = zip(all_of_them, sizes.tolist(), strict=True)
        return [part[:size].numpy().tobytes() for part, size in parts]

    def _wait_for(self, work: Any) -> None:
        """Waits, looking now and then: a signal is answered meanwhile, which it is not inside a call of C++."""
        pause, longest = LOOK_S
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, longest)
        work.wait()


def _kind(error: OptkitError) -> str:
    """The nearest of the errors that others can raise again."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
