"""Recorded teachers: outputs computed once for a fixed number of augmented passes, and read again by every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from optkit.core.cache import is_kept, kept
from optkit.core.errors import UserError
from optkit.core.instantiate import named_paths
from optkit.core.processes import current
from optkit.core.progress import track
from optkit.core.seeds import derive_seed
from optkit.core.sharding import summed
from optkit.core.source_digest import code_of_classes, code_of_module, code_of_paths
from optkit.core.structure import as_float, mapped
from optkit.core.task import POOL, Batch, SealedTask, Task
from optkit.core.turns import give_way
from optkit.core.variant import variant_id
from optkit.models.spec import module_code, weights_digest

KIND, FILE = "teacher_outputs", "outputs.safetensors"
OUTPUT = "output"
LOGITS, CLASSES, OTHERS, COUNT = "logits", "classes", "others", "count"


class RecordedOutputs:
    """A teacher's outputs on ``views`` passes over the pool, each with an order and an augmentation of its own.

    They are one tensor ``(N, ...)`` each. Every epoch of a training is one of these passes, in turn; the seed decides
    with which it begins. A teacher that saw another crop than the student would teach it something else (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022), so what is recorded is the pass,
    batch by batch. Files are kept in the cache under a key of teacher, data, pass, batch size, precision and code:
    another teacher has another.

    Args:
        task: the data, and the forward pass.
        teacher: in eval mode.
        views: how many passes.
        batch_size: of the training, which decides what is augmented together.
        seed: of the training.
        run: runs the teacher on a batch ``-> (N, ...)``, in the precision of the training.
        precision: its name, with what else decides the last bits of the outputs.
        top: keep so many of the largest logits of each example only; in the place of each other one stands what gives
            all of them together the chance that they had at the temperature that is the second number. None keeps all.

    Attributes:
        computed: passes that were computed and not found.
    """

    def __init__(
        self,
        task: Task,
        teacher: nn.Module,
        views: int,
        batch_size: int,
        seed: int,
        run: Callable[[Batch], Tensor],
        precision: str,
        top: tuple[int, float] | None = None,
    ):
        self.task, self.views, self.batch_size, self.seed, self.run = task, views, batch_size, seed, run
        self.top, self.computed = top, 0
        data = (task.fingerprint, task.pool_fingerprint, task.size(POOL))
        parts = (weights_digest(teacher), str(teacher), *data, batch_size, precision)
        kind, named = (task.kind, task.named) if isinstance(task, SealedTask) else (type(task), named_paths(task))
        of_task = code_of_classes(kind.__mro__) | code_of_paths(named)
        code = (torch.__version__, code_of_module(__name__), module_code(teacher), of_task)
        own = task.depends_on() if hasattr(task, "depends_on") else []  # a forward pass of the user's own
        self._key = variant_id(*parts, *code, *own, *(top or ()))
        self._kept: dict[str, Tensor] = {}

    def begin(self, epoch: int) -> int:
        """Opens the pass of an epoch, computing it if no run has; gives the seed of its batches."""
        view, processes = (self.seed + epoch) % self.views, current()
        key = f"{self._key}-{view}"
        outputs: dict[str, Tensor] | None = None
        if processes.several and not all(processes.gather(is_kept(KIND, key))):
            outputs = self._outputs(view)  # each process computes its share: all have to be here at the same time

        def record(new: Path) -> None:
            from safetensors.torch import save_file

            save_file(self._outputs(view) if outputs is None else outputs, new / FILE)

        self._kept = self._read(kept(KIND, key, record) / FILE)
        return _seed_of(view)

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's output on a batch of the open pass ``(N, ...)``, float32."""
        index, device = batch.index.cpu(), batch.index.device
        kept = {n: (part if n == COUNT else part[index]).to(device) for n, part in self._kept.items()}
        return _whole(kept)

    def _outputs(self, view: int) -> dict[str, Tensor]:
        """What is kept of a pass. Several processes compute every so many-th batch each, and all get the whole."""
        processes, size = current(), self.task.size(POOL)
        kept: dict[str, Tensor] = {}
        seen = torch.zeros(size, dtype=torch.bool)
        batches = self.task.batches(POOL, self.batch_size, training=True, seed=_seed_of(view))
        tracked = track(batches, f"teacher, pass {view + 1} of {self.views}", -(-size // self.batch_size))
        for number, batch in enumerate(tracked):
            if number % processes.size != processes.rank:
                continue
            give_way()
            for name, part in _parts(self.run(batch).cpu(), self.top).items():
                if name == COUNT:
                    kept[name] = part
                    continue
                if name not in kept:
                    kept[name] = part.new_zeros(size, *part.shape[1:])
                if part.shape != (len(batch), *kept[name].shape[1:]):
                    here, before = list(part.shape), list(kept[name].shape[1:])
                    message = f"the teacher gives {here} for {len(batch)} examples, and gave {before} for one"
                    raise UserError(message, key="cached_views", fix="cached_views=null")
                kept[name][batch.index] = part
            seen[batch.index] = True
        if processes.several:
            counts = processes.gather(int(kept.pop(COUNT, torch.tensor([0]))))
            kept, seen = summed(kept), processes.sum(seen.int()) > 0
            if self.top is not None:
                kept[COUNT] = torch.tensor([max(counts)])
        if not seen.all():
            message = f"{int((~seen).sum())} train examples were in no batch of the pass"
            raise UserError(message, key="cached_views", fix="cached_views=null")
        self.computed += 1
        return kept

    def _read(self, path: Path) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        try:
            kept = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"not a teacher's outputs: {error}", key=str(path), fix="delete the folder") from error
        names = {OUTPUT} if self.top is None else {LOGITS, CLASSES, OTHERS, COUNT}
        size = self.task.size(POOL)
        sizes = [len(part) if part.dim() else 0 for name, part in kept.items() if name != COUNT]
        if set(kept) != names or set(sizes) != {size}:
            found = ", ".join(f"{name} {list(part.shape)}" for name, part in kept.items())
            raise UserError(f"{found} for {size} examples", key=str(path), fix="delete the folder")
        return kept


def run_teacher(task: Task, teacher: nn.Module, batch: Batch) -> Any:
    """A teacher's output on a batch, in inference mode, its floating-point tensors in fp32."""
    with torch.inference_mode():
        output = as_float(task.forward(teacher, batch))
    return mapped(output, torch.clone)  # what was made in inference mode cannot be kept for a backward pass


def _seed_of(view: int) -> int:
    """The seed of a pass, the same for every run."""
    return derive_seed(0, "recorded", view)


def bytes_of_top(top: int) -> int:
    """Bytes that an example, or a token, takes if so many of its logits are kept, for up to 32,767 classes."""
    return 6 * top + 4


def _parts(logits: Tensor, top: tuple[int, float] | None) -> dict[str, Tensor]:
    """What is kept of outputs ``(N, ...)``: all; or of logits ``(N, ..., C)`` the largest with their classes, what
    stands for each other, and how many classes there are."""
    if top is None:
        return {OUTPUT: logits}
    count, temperature = top
    largest, classes = logits.topk(count)
    others = logits.scatter(-1, classes, -torch.inf).div(temperature).logsumexp(-1, keepdim=True)
    others = temperature * (others - math.log(logits.shape[-1] - count))
    small = torch.int16 if logits.shape[-1] <= torch.iinfo(torch.int16).max else torch.int32
    count_of = torch.tensor([logits.shape[-1]])
    return {LOGITS: largest, CLASSES: classes.to(small), OTHERS: others, COUNT: count_of}


def _whole(kept: dict[str, Tensor]) -> Tensor:
    """Outputs ``(N, ...)`` from what was kept of them."""
    if OUTPUT in kept:
        return kept[OUTPUT]
    others = kept[OTHERS]
    whole = others.expand(*others.shape[:-1], int(kept[COUNT]))
    return whole.scatter(-1, kept[CLASSES].long(), kept[LOGITS])
