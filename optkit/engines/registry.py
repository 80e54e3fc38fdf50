"""The engines by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from optkit.core.engine import Session
from optkit.core.variant import Variant
from optkit.engines.cuda import CUDA
from optkit.engines.eager import Eager
from optkit.engines.inductor import Inductor
from optkit.engines.onnxruntime import ONNXRuntime
from optkit.engines.openvino import OpenVINO
from optkit.engines.saved import Saved

ENGINES = {engine.name: engine for engine in (Eager, Inductor, ONNXRuntime, OpenVINO, CUDA)}


@runtime_checkable
class Opens(Protocol):
    """An engine whose sessions save a file of its own, which needs no module to be opened again."""

    def open(self, folder: Path, variant: Variant, saved: Saved) -> Session:
        """The session that was saved in a folder, for the example's shapes in ``saved``."""
        ...
