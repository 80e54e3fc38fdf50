"""A module ready to be trained in the processes of a run: alone, as a replica in each (DDP), or in shards (FSDP2).

These are torch's own classes, which accelerate's ``prepare`` calls as well. accelerate keeps one precision and one way
of sharding for a whole process, which may hold the user's own code and several trainings, and shards on GPUs only.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.processes import Processes
from optkit.core.task import Batch, Task
from optkit.models.stacks import find_stacks

Compute = Callable[[nn.Module, Batch], Any]  # an objective, or a task's forward pass
State = Mapping[str, Any]


class Replica:
    """A module that one process trains, or that each of several trains a copy of, with the same gradients.

    Args:
        module: on its device; trained in place.
        own: the parameters of the objective.
        processes: of the run.
        compiled: whether inductor compiles what is run.
    """

    def __init__(self, module: nn.Module, own: nn.Module, processes: Processes, compiled: bool = False):
        self.module, self.own, self.processes = module, own, processes
        self.whole = _Together(module, own)
        run: Any = torch.compile(self.whole) if compiled else self.whole
        self.run: Any = self._around(run) if processes.several else run
        self.buffers = AgreedBuffers(module, processes)

    def _around(self, run: Any) -> Any:
        """With the gradients of all processes; raises nothing for parameters that a loss does not use."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the name of an argument, which torch 2.13 lacks
            return nn.parallel.DistributedDataParallel(run, broadcast_buffers=False, find_unused_parameters=True)

    def parameters(self) -> list[nn.Parameter]:
        """All that may be trained."""
        return list(self.whole.parameters())

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Inside it gradients stay in each process if there is ``more`` to come for the step."""
        held: AbstractContextManager[None] = self.run.no_sync() if more and self.processes.several else nullcontext()
        return held

    def evaluate(self, compute: Compute, batch: Batch) -> Any:
        """What a function of module and batch gives, without gradients."""
        with torch.inference_mode():
            return compute(self.module, batch)

    def evaluated(self) -> None:
        """Ends a series of evaluations."""

    def full(self, state: Any) -> Any:
        """Tensors of a state as one process would have them; several call it together."""
        return state

    def local(self, full: State, like: State) -> dict[str, Any]:
        """Full tensors as this process holds them, each like that of the same name."""
        return {name: tensor.to(like[name].device) for name, tensor in full.items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer, full: dict[str, Any]) -> dict[str, Any]:
        """The full state of an optimizer as this process holds it."""
        return full

    def restore(self) -> None:
        """Makes the module again what it was, with the weights that it has now."""


class Shards(Replica):
    """A module whose parameters, gradients and optimizer states are spread over the processes (FSDP2).

    Each residual block is gathered when it runs; all else is gathered for the whole pass.

    Args:
        task: gives inputs by which the blocks are found.
    """

    def __init__(self, module: nn.Module, own: nn.Module, processes: Processes, task: Task):
        self.task = task
        processes.copy_first([*module.state_dict().values(), *own.state_dict().values()])
        self.plain = copy.deepcopy(module).cpu()
        super().__init__(module, own, processes)

    def _around(self, run: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        for block in _blocks(self.module, self.task):
            fully_shard(block)
        fully_shard(run)
        return run

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        self.run.set_requires_gradient_sync(not more)
        return nullcontext()

    def evaluate(self, compute: Compute, batch: Batch) -> Any:
        with torch.no_grad():  # what inference mode gathers is no use for training
            return self.run(compute, batch)

    def evaluated(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        for module in self.whole.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def full(self, state: Any) -> Any:
        from torch.distributed.tensor import DTensor

        if isinstance(state, DTensor):
            gathered = state.full_tensor()
            return gathered.cpu() if self.processes.is_first else None
        if isinstance(state, Mapping):
            return {name: self.full(value) for name, value in state.items()}
        return [self.full(value) for value in state] if isinstance(state, (list, tuple)) else state

    def local(self, full: State, like: State) -> dict[str, Any]:
        return {name: _as(like[name], tensor) for name, tensor in full.items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer, full: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def placed(number: int, value: Any) -> Any:
            of_weights = isinstance(value, Tensor) and value.shape == parameters[number].shape
            return _as(parameters[number], value) if of_weights else value

        states = {n: {key: placed(n, value) for key, value in of.items()} for n, of in full["state"].items()}
        return full | {"state": states}

    def restore(self) -> None:
        from torch.distributed.tensor import DTensor

        state = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in self.module.state_dict().items()}
        self.plain.load_state_dict(state)
        # whoever holds the module holds the same object, of its own class and with its own parameters
        self.module.__class__ = type(self.plain)
        self.module.__dict__.clear()
        self.module.__dict__.update(self.plain.__dict__)


class AgreedBuffers:
    """Buffers that a forward pass changes, such as a batch norm's statistics: what each process adds to them counts by
    how many examples it has seen.

    Args:
        module: whose buffers, of floating point.
        processes: of the run.
    """

    def __init__(self, module: nn.Module, processes: Processes):
        several = processes.several
        self.processes = processes
        self.all = [buffer for buffer in module.buffers() if several and buffer.is_floating_point()]
        self.agreed = [buffer.detach().clone() for buffer in self.all]
        self.moving: list[int] | None = None

    def agree(self, weight: float, everything: bool = False) -> None:
        """Called after a step, and for all buffers at the end of an epoch.

        Args:
            weight: the share of the step's examples that this process has seen.
            everything: look at buffers, too, that the first step did not change.
        """
        if not self.all:
            return
        if self.moving is None:
            pairs = zip(self.all, self.agreed, strict=True)
            mine = [place for place, (now, before) in enumerate(pairs) if not torch.equal(now, before)]
            self.moving = sorted({place for found in self.processes.gather(mine) for place in found})
        places = range(len(self.all)) if everything else self.moving
        if not places:
            return
        with torch.no_grad():
            changes = [_change(self.agreed[n], self.all[n]).flatten().float() * weight for n in places]
            summed = self.processes.sum(torch.cat(changes))
            for n, change in zip(places, summed.split([len(c) for c in changes]), strict=True):
                self.agreed[n].add_(change.view_as(self.agreed[n]))
                self.all[n].copy_(self.agreed[n])

    def begin_here(self) -> None:
        """Takes the buffers as they are for agreed, such as those of a saved state."""
        for now, before in zip(self.all, self.agreed, strict=True):
            before.copy_(now)


class _Together(nn.Module):
    """A module and an objective's own parameters, whose forward pass is any function of module and batch."""

    def __init__(self, module: nn.Module, own: nn.Module):
        super().__init__()
        self.module, self.own = module, own

    def forward(self, compute: Compute, batch: Batch) -> Any:
        return compute(self.module, batch)


def _change(before: Tensor, now: Tensor) -> Tensor:
    """What was added; 0 for infinities that stayed, such as those of a mask."""
    return torch.where(now == before, torch.zeros_like(now), now - before)


def _as(like: Tensor, full: Tensor) -> Tensor:
    """A full tensor, spread as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return full.to(like.device)
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def _blocks(module: nn.Module, task: Task) -> Iterable[nn.Module]:
    """The residual blocks whose parameters are theirs alone."""
    device = next(module.parameters()).device
    inputs = tuple(x.to(device) for x in task.example(2))
    owners: dict[int, int] = {}
    for inner in module.modules():
        for parameter in inner.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    paths = [path for stack in find_stacks(module, inputs) for path in stack.layers()]
    blocks = [module.get_submodule(path) for path in paths]
    return [block for block in blocks if all(owners[id(p)] == 1 for p in block.parameters())]
