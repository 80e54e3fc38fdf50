"""What the experiments on CIFAR-10 have in common: the images, the device, and the answers on the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.records import unpack_values
from optkit.measure.quality import measure_quality
from optkit.tasks import HubImages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cifar10(folder: Path, limit: int | None = None) -> HubImages:
    """The images of a folder of parquet files, train and test, augmented as usual; ``limit`` examples a split."""
    return HubImages(
        dataset="", path=str(folder), image_column="img", image_size=32, validation_share=0.05, crop=4, flip=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), limit=limit,
    )  # fmt: skip


@torch.inference_mode()
def correct_on_test(model: nn.Module, task: HubImages) -> np.ndarray:
    """Which test examples the model gets right on `DEVICE`, bool ``(N,)``; the model is on the CPU afterwards."""

    def session(*inputs: Tensor) -> Tensor:
        return model(*(x.to(DEVICE) for x in inputs)).cpu()

    model.to(DEVICE).eval()
    right = unpack_values(measure_quality(session, task, "test", 500, {})[0].raw)  # type: ignore[arg-type]
    model.to("cpu")
    return right
