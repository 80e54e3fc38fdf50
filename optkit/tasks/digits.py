"""The embedded default: scikit-learn's handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.cache import kept
from optkit.core.compat.versions import version_of
from optkit.core.errors import UserError
from optkit.tasks.classification import SPLIT_SEED, SPLITS, stratified_split
from optkit.tasks.image_classification import ImageClassification
from optkit.tasks.images import ImageSplit

FILE, FORMAT = "digits.npz", 1


@dataclass(kw_only=True)
class Digits(ImageClassification):
    """1,797 real handwritten digits (Alpaydin and Kaynak, 1998), in 10 classes; they come with scikit-learn.

    Split once and for all, by class: 1,077 train, 180 validation, 540 test.

    Attributes:
        image_size: the 8x8 images are enlarged to this (bilinear), so that a CNN with strides has something to see.
    """

    image_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.image_size <= 256:
            message = f"{self.image_size} is out of range"
            raise UserError(message, key="image_size", value=self.image_size, fix="8 to 256")

    def declared(self) -> tuple[int, list[int]]:
        return 10, [1, self.image_size, self.image_size]

    def preprocessing(self) -> dict[str, Any]:
        source = "scikit-learn's 8x8 grey levels times 255/16, enlarged (bilinear) and rounded to 8 bits"
        return super().preprocessing() | {"source": source}

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        import torch
        from torch.nn import functional as F

        # importing scikit-learn takes as long as importing torch: what it gives is kept
        folder = kept("digits", f"{version_of('scikit-learn')}-{FORMAT}", _keep)
        with np.load(folder / FILE, allow_pickle=False) as digits:
            pixels = torch.from_numpy(digits["images"]).float()[:, None] * (255 / 16)
            labels, index = digits["labels"], {name: digits[name] for name in SPLITS}
        size = (self.image_size, self.image_size)
        images = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round().byte().numpy()
        whole = ImageSplit(images, labels)
        return {name: whole.subset(places) for name, places in index.items()}, [str(n) for n in range(10)]


def _keep(folder: Path) -> None:
    """Writes the grey levels ``(N, 8, 8)``, the labels ``(N,)`` and the places of each split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rest, test = stratified_split(labels, 0.3, SPLIT_SEED)
    train, validation = stratified_split(labels[rest], 1 / 7, SPLIT_SEED)
    np.savez(
        folder / FILE, images=digits.images, labels=labels, train=rest[train], validation=rest[validation], test=test
    )
