"""Recorded teachers: logits computed once for a fixed number of augmented passes, and read again by every run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from optkit.core.cache import kept
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.core.task import Batch, Task
from optkit.core.variant import variant_id
from optkit.models.spec import weights_digest

KIND, FILE = "teacher_logits", "logits.safetensors"
STEP = 7919


class RecordedLogits:
    """A teacher's logits on ``views`` passes over the train split, each with an order and an augmentation of its own.

    Every epoch of a training is one of these passes, in turn; the seed decides with which it begins. A teacher that
    saw another crop than the student would teach it something else (Beyer et al., "Knowledge distillation: A good
    teacher is patient and consistent", CVPR 2022), so what is recorded is the pass, batch by batch. Files are kept in
    the cache under a key of teacher, data, pass, batch size and precision: another teacher or data set has another.

    Args:
        task: the data, and the forward pass.
        teacher: in eval mode.
        views: how many passes.
        batch_size: of the training, which decides what is augmented together.
        seed: of the training.
        run: runs the teacher on a batch ``-> (N, num_classes)``, in the precision of the training.
        precision: its name.

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
    ):
        self.task, self.views, self.batch_size, self.seed, self.run = task, views, batch_size, seed, run
        self.computed = 0
        parts = (weights_digest(teacher), str(teacher), task.fingerprint, task.size("train"), batch_size, precision)
        self._key = variant_id(*parts, torch.__version__)
        self._logits: Tensor | None = None

    def begin(self, epoch: int) -> int:
        """Opens the pass of an epoch, computing it if no run has; gives the seed of its batches."""
        view = (self.seed + epoch) % self.views
        folder = kept(KIND, f"{self._key}-{view}", lambda new: self._record(view, new))
        self._logits = self._read(folder / FILE)
        return STEP * view

    def __call__(self, batch: Batch) -> Tensor:
        """The teacher's logits on a batch of the open pass ``(N, num_classes)``, float32."""
        assert self._logits is not None
        return self._logits[batch.index.cpu()].to(batch.targets.device)

    def _record(self, view: int, folder: Path) -> None:
        from safetensors.torch import save_file

        size = self.task.size("train")
        logits: Tensor | None = None
        seen = torch.zeros(size, dtype=torch.bool)
        batches = self.task.batches("train", self.batch_size, training=True, seed=STEP * view)
        for batch in track(batches, f"teacher, pass {view + 1} of {self.views}", -(-size // self.batch_size)):
            answers = self.run(batch).float().cpu()
            logits = torch.empty(size, answers.shape[-1]) if logits is None else logits
            logits[batch.index], seen[batch.index] = answers, True
        assert logits is not None
        if not seen.all():
            message = f"{int((~seen).sum())} train examples were in no batch of the pass"
            raise UserError(message, key="cached_views", fix="cached_views=null")
        save_file({"logits": logits}, folder / FILE)
        self.computed += 1

    def _read(self, path: Path) -> Tensor:
        from safetensors.torch import load_file

        try:
            logits = load_file(path)["logits"]
        except (SafetensorError, KeyError, OSError) as error:
            raise UserError(f"not a teacher's logits: {error}", key=str(path), fix="delete the folder") from error
        if logits.dim() != 2 or len(logits) != self.task.size("train"):
            message = f"logits {list(logits.shape)} for {self.task.size('train')} examples"
            raise UserError(message, key=str(path), fix="delete the folder")
        return logits
