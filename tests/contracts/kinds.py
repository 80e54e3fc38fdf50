"""A tiny task and a tiny model for every kind of output; data are generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.core.metric import Metric
from optkit.core.task import CLASS_MAPS, CLASSES, EMBEDDINGS, LABELS, OTHER, TOKENS, VALUES, Batch
from optkit.metrics.classification import Accuracy
from optkit.metrics.functions import MeanScore
from optkit.metrics.language import Perplexity
from optkit.metrics.multilabel import MultilabelF1
from optkit.metrics.regression import MeanAbsoluteError
from optkit.metrics.retrieval import RecallAtK
from optkit.metrics.segmentation import MeanIoU

SIZES = {"train": 64, "validation": 32, "test": 32}
WIDTH, SIDE = 16, 8


@dataclass
class Detections:
    boxes: Tensor
    scores: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda boxes, scores: (boxes, scores),
    "list": lambda boxes, scores: [boxes, scores],
    "dict": lambda boxes, scores: {"boxes": boxes, "scores": scores},
    "dataclass": Detections,
}
NUMBERS = {CLASSES: 4, LABELS: 5, VALUES: 2, CLASS_MAPS: 3, EMBEDDINGS: 6, TOKENS: 3}
KINDS = (*NUMBERS, *OUTPUTS)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.attention = nn.LayerNorm(width), Attention(width)
        self.second = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class TinyNet(nn.Module):
    """A convolution, two transformer blocks, and a head for one kind of output.

    Args:
        kind: in `KINDS`.
        outputs: numbers an output has, where it is one tensor; None for as many as the task has.
        blocks: how many.
    """

    def __init__(self, kind: str, outputs: int | None = None, blocks: int = 2):
        super().__init__()
        self.kind = kind
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)
        if kind in NUMBERS:
            self.head = nn.Linear(WIDTH, outputs or NUMBERS[kind])
        else:
            self.boxes, self.scores = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.kind == CLASS_MAPS:
            side = SIDE // 2
            return self.head(x).transpose(1, 2).unflatten(2, (side, side))
        if self.kind == TOKENS:
            return self.head(x)
        x = x.mean(1)
        if self.kind in NUMBERS:
            return self.head(x)
        return OUTPUTS[self.kind](self.boxes(x), self.scores(x))


def boxes_and_scores(output: Any) -> tuple[Tensor, Tensor]:
    if isinstance(output, dict):
        return output["boxes"], output["scores"]
    return (output.boxes, output.scores) if hasattr(output, "boxes") else tuple(output)


def nearness(output: Any, targets: Any) -> Tensor:
    """1 for the right boxes, less for others ``(N,)``."""
    return 1 / (1 + (boxes_and_scores(output)[0] - targets["box"]).abs().mean(1))


METRICS: dict[str, Metric] = {
    CLASSES: Accuracy(),
    LABELS: MultilabelF1(labels=5),
    VALUES: MeanAbsoluteError(),
    CLASS_MAPS: MeanIoU(classes=3),
    EMBEDDINGS: RecallAtK(),
    TOKENS: Perplexity(),
    OTHER: MeanScore(nearness, "nearness"),
}


class KindTask:
    """Noise whose quarters differ in brightness; what is asked for follows from the brightness."""

    pool_fingerprint = None

    def __init__(self, kind: str):
        self.kind = kind
        self.output_kind = kind if kind in NUMBERS else OTHER
        self.metrics = (METRICS[self.output_kind],)
        self.fingerprint = f"generated-{kind}"
        self._splits = {name: self._made(n, count) for n, (name, count) in enumerate(SIZES.items())}

    def _made(self, seed: int, count: int) -> tuple[Tensor, Any]:
        draw = torch.Generator().manual_seed(seed)
        bright = torch.rand(count, 4, generator=draw)
        noise = 0.1 * torch.randn(count, 1, SIDE, SIDE, generator=draw)
        half = SIDE // 2
        maps = bright.view(count, 1, 2, 2).repeat_interleave(half, 2).repeat_interleave(half, 3)
        targets: dict[str, Any] = {
            CLASSES: bright.argmax(1),
            LABELS: torch.cat([bright > 0.5, bright[:, :1] > 0.7], 1).float(),
            VALUES: torch.stack([bright.mean(1), bright[:, 0] - bright[:, 3]], 1),
            CLASS_MAPS: (maps[:, 0, ::2, ::2] * 2.99).long(),
            EMBEDDINGS: bright.argmax(1),
            TOKENS: (maps[:, 0, ::2, ::2] * 2.99).long().flatten(1),
            OTHER: {"box": bright, "label": (bright[:, 0] * 2.99).long()},
        }
        return maps + noise, targets[self.output_kind]

    def model_defaults(self) -> dict[str, Any]:
        return {}

    def conditions(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "examples": dict(SIZES)}

    def size(self, split: str) -> int:
        return SIZES["train" if split == "pool" else split]

    def batches(self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None) -> Any:
        images, targets = self._splits["train" if split == "pool" else split]
        whole = Batch((images,), targets, torch.arange(len(images)))
        shuffled = training or seed is not None
        draw = torch.Generator().manual_seed(seed or 0)
        order = torch.randperm(len(whole), generator=draw) if shuffled else whole.index
        return (whole.subset(places) for places in order.split(batch_size))

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return (self._splits["train"][0][:batch_size],)

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        return module(*batch.inputs)

    def loss(self, output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        targets = batch.targets
        if self.output_kind in (CLASSES, CLASS_MAPS):
            return F.cross_entropy(output, targets, label_smoothing=label_smoothing)
        if self.output_kind == TOKENS:
            return F.cross_entropy(
                output[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=label_smoothing
            )
        if label_smoothing:
            raise UserError("no classes to smooth", key="label_smoothing", value=label_smoothing)
        if self.output_kind == LABELS:
            return F.binary_cross_entropy_with_logits(output, targets)
        if self.output_kind == VALUES:
            return F.mse_loss(output, targets)
        if self.output_kind == EMBEDDINGS:
            near = F.normalize(output, dim=1)
            return F.mse_loss(near @ near.T, (targets[:, None] == targets).float())
        boxes, scores = boxes_and_scores(output)
        return F.mse_loss(boxes, targets["box"]) + F.cross_entropy(scores, targets["label"])

    def mismatch(self, output: Any, count: int) -> str | None:
        return None
