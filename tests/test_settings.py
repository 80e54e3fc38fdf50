"""Functions leave the settings of the process as they found them."""

import contextlib
import gc
import logging
import os
import random
import signal
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.distill import DistillationObjective
from optkit.distill.terms import read_terms
from optkit.engines import compile as compile_model
from optkit.measure.latency import interleaved
from optkit.measure.peaks import measure_peaks
from optkit.models import SmallCNN
from optkit.prune import magnitude_masks, prune_depth, prune_structured, sensitivity
from optkit.quantize import convert_qat, prepare_qat, quantize_dynamic, quantize_static, quantize_weight_only
from optkit.tasks import Digits
from optkit.training import TaskLoss, Trainer

LOGGERS = ("", "optkit", "torch", "transformers", "datasets", "accelerate")
IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES, torch.arange(4))]


def settings():
    """What a caller of a function does not expect it to change, by name."""
    numbers, backends = np.random.get_state(), torch.backends
    loggers = {name: logging.getLogger(name or None) for name in LOGGERS}
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": [numbers[0], numbers[1].tolist(), *numbers[2:]],
        "python's generator": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's flags": {
            "dtype": torch.get_default_dtype(),
            "gradients": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "mha": backends.mha.get_fastpath_enabled(),
            "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.deterministic),
            "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
            "quantized": backends.quantized.engine,
            "anomaly": torch.is_anomaly_enabled(),
        },
        "warnings": list(warnings.filters),
        "logging": {name: (one.level, list(one.handlers), one.propagate) for name, one in loggers.items()},
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, sys.unraisablehook, *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))),
        "collector": gc.isenabled(),
    }


def cnn():
    return SmallCNN(num_classes=10, in_channels=1, widths=[8, 16]).eval()


class Blocks(nn.Module):
    """Three residual blocks on images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(_Block() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def by_latency(model, _):
    with contextlib.suppress(UserError):  # a busy machine may show no cut that is near enough
        prune_structured(model, (IMAGES,), amount=0.3, budget="latency", threads=1)


def train(model, folder):
    task = Digits(limit=64)
    trainer = Trainer(epochs=1, batch_size=32, optimizer="adamw", lr=1e-3)
    trainer.fit(model, task, TaskLoss(task), seed=3, workdir=folder, device=torch.device("cpu"))


def distill(model, _):
    task, terms = Digits(limit=64), read_terms({"kd": 1.0, "hint": 1.0}, {"features.4": "features.4"}, 4.0)
    batch = next(task.batches("train", 8, training=True, seed=1))
    with DistillationObjective(task, model, TEACHER, terms, alpha=0.5, seed=5) as objective:
        objective(model, batch).backward()


def quantization_aware(model, _):
    prepared = prepare_qat(model, (IMAGES,), [(IMAGES,)])
    prepared.module(IMAGES)
    convert_qat(prepared)


TEACHER, BLOCKS = SmallCNN(num_classes=10, in_channels=1, widths=[8, 16]).eval(), Blocks().eval()
FUNCTIONS = {
    "prune_structured": lambda model, _: prune_structured(model, (IMAGES,), amount=0.3),
    "prune_structured, at random": lambda model, _: prune_structured(model, (IMAGES,), amount=0.3, criterion="random"),
    "prune_structured, by data": lambda model, _: prune_structured(
        model, (IMAGES,), amount=0.3, criterion="taylor", batches=BATCHES, loss_fn=loss
    ),
    "prune_structured, by latency": by_latency,
    "prune_depth": lambda model, _: prune_depth(
        BLOCKS, (IMAGES,), keep=2, evaluate=lambda m: loss(m, (IMAGES, torch.zeros(4, dtype=torch.int64))).item()
    ),
    "magnitude_masks": lambda model, _: magnitude_masks(model, 0.5),
    "sensitivity": lambda model, _: sensitivity(model, (IMAGES,), lambda m: loss(m, BATCHES[0]).item(), shares=[0.5]),
    "quantize_static": lambda model, _: quantize_static(model, (IMAGES,), [(IMAGES,)], rounding="gptq", equalize=True),
    "quantize_dynamic": lambda model, _: quantize_dynamic(model, (IMAGES,)),
    "quantize_weight_only": lambda model, _: quantize_weight_only(model),
    "prepare_qat": quantization_aware,
    "Trainer.fit": train,
    "DistillationObjective": distill,
    "compile": lambda model, _: compile_model(model, (IMAGES,), engine="eager")(IMAGES),
    "interleaved": lambda model, _: interleaved({"one": model}, (IMAGES,), 0.01, 0),
    "measure_peaks": lambda model, _: measure_peaks(1, size=64, seconds=0.001, copied=1 << 16, read=1 << 16),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_leaves_the_settings_of_the_process(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("optkit.prune.latency.table.time_session", lambda _, inputs: sum(x.numel() for x in inputs))
    monkeypatch.setattr("optkit.prune.latency.budget.SECONDS", 0.01)
    model, first = cnn(), tmp_path / "first"
    first.mkdir()
    FUNCTIONS[name](cnn(), first)  # the first call imports libraries, and these may change settings
    before = settings()
    FUNCTIONS[name](model, tmp_path)
    after = settings()
    assert [what for what in before if before[what] != after[what]] == []
