"""Torch's random generators during a training: dropout, and whatever else draws from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from optkit.core.processes import Processes
from optkit.core.seeds import derive_seed

T = TypeVar("T")


class Noise:
    """Seeds the generators at the start of every epoch, and takes them up in the middle of one.

    Processes draw different noise for their shares. What reads the batches sees the same seed in all of them.

    Args:
        seed: of the training.
        device: whose generator counts besides the CPU's.
        processes: of the run.
    """

    def __init__(self, seed: int, device: torch.device, processes: Processes):
        self.seed, self.device, self.processes = seed, device, processes
        self._resumed: list[list[list[int]]] | None = None
        self._in_epoch = False

    def during(self, batches: Iterator[T], epoch: int, step: int) -> Iterator[T]:
        """The batches of an epoch, or of what is left of it, under its seed.

        Args:
            batches: not begun yet.
            epoch: its number.
            step: the number of the first.
        """
        torch.manual_seed(derive_seed(self.seed, "noise", epoch))
        resumed, self._resumed, in_epoch, self._in_epoch = self._resumed, None, self._in_epoch, False
        for number, batch in enumerate(batches):
            if number == 0 and resumed is not None and len(resumed) == self.processes.size:
                self._take_up(resumed[self.processes.rank])
            elif number == 0 and (self.processes.rank or in_epoch):
                # another number of processes goes on in the middle of the epoch, with noise of its own
                torch.manual_seed(derive_seed(self.seed, "noise", epoch, step if in_epoch else 0, self.processes.rank))
            yield batch

    def state(self) -> Any:
        """The generators of all processes, by rank; plain lists of bytes as numbers."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return self.processes.gather([state.tolist() for state in states])

    def resume(self, state: Any) -> None:
        """Takes up what `state` gave, of any number of processes; None at the start of an epoch."""
        self._resumed, self._in_epoch = state, state is not None

    def _take_up(self, states: list[list[int]]) -> None:
        cpu, *gpu = (torch.tensor(state, dtype=torch.uint8) for state in states)
        torch.set_rng_state(cpu)
        if gpu and self.device.type == "cuda":
            torch.cuda.set_rng_state(gpu[0], self.device)
