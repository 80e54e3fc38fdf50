"""ONNX Runtime sessions of generating models: keys and values that a call gives are bound to the next one's inputs."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.compat.onnxruntime import onnxruntime_errors
from optkit.core.errors import StageError, first_line
from optkit.core.generation import CachedSession
from optkit.core.structure import Value
from optkit.core.variant import Variant
from optkit.engines.cached_program import INPUTS
from optkit.engines.deployed import arrays
from optkit.engines.onnx_cached import WEIGHTS
from optkit.engines.saved import Saved, save_session

if TYPE_CHECKING:
    from optkit.engines.onnxruntime import ONNXRuntime


@dataclass
class ONNXRuntimeGenerator(CachedSession):
    """A file as `optkit.engines.onnx_cached` writes it, which takes any number of rows and tokens.

    Attributes:
        source: the module, or the folder that the session was opened from.
        file: what ONNX Runtime reads.
        temporary: the folder of the file, if it goes with the session.
    """

    source: nn.Module | Path
    variant: Variant
    engine: ONNXRuntime
    file: Path
    runtime: Any
    example: tuple[Tensor, ...]
    engine_facts: dict[str, Any]
    temporary: TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        self.past_inputs = self.runtime.get_inputs()[len(INPUTS) :]
        self.logits, *self.present = self.runtime.get_outputs()
        self.past: list[Any] = []

    def __call__(self, *inputs: Tensor) -> Any:
        (tokens,) = inputs
        return self._all_logits(tokens)

    def _forget(self, rows: int) -> None:
        self.past = [_on_cpu(np.zeros((rows, put.shape[1], 0, put.shape[3]), np.float32)) for put in self.past_inputs]

    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        logits = torch.empty(len(tokens), len(places), self.logits.shape[-1])
        bound = self.runtime.io_binding()
        try:
            for name, array in zip(INPUTS, arrays((tokens, mask, positions, places)), strict=True):
                bound.bind_cpu_input(name, array)
            for put, value in zip(self.past_inputs, self.past, strict=True):
                bound.bind_ortvalue_input(put.name, value)
            bound.bind_output(self.logits.name, "cpu", 0, np.float32, tuple(logits.shape), logits.data_ptr())
            for put in self.present:
                bound.bind_output(put.name)
            self.runtime.run_with_iobinding(bound)
        except onnxruntime_errors() as error:
            message = f"ONNX Runtime cannot read {list(tokens.shape)} tokens behind {mask.shape[1] - tokens.shape[1]}"
            raise StageError(f"{message}: {first_line(error)}") from error
        self.past = bound.get_outputs()[1:]
        return logits

    def _keep(self, length: int) -> None:
        self.past = [_on_cpu(np.ascontiguousarray(value.numpy()[:, :, :length])) for value in self.past]

    @property
    def cache_bytes(self) -> int:
        return sum(math.prod(value.shape()) for value in self.past) * np.dtype(np.float32).itemsize

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        """Writes the variant, the ONNX file and its weights."""
        saved = Saved.of(self.engine, self.example, self.facts(), Value(torch.float32))

        def write(folder: Path) -> None:
            for name in (self.file.name, self.file.name + WEIGHTS):
                shutil.copyfile(self.file.with_name(name), folder / name)

        save_session(directory, self.variant, self.source, saved, write)


def _on_cpu(array: Any) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array)
