"""Where a variant runs. What is named here is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from optkit.engines.registry import ENGINES

if TYPE_CHECKING:
    from optkit.core.engine import Engine, Served, Session
    from optkit.engines.agreement import check_agreement
    from optkit.engines.compiling import compile  # noqa: A004
    from optkit.engines.cuda import CUDA
    from optkit.engines.deployed import Outputs
    from optkit.engines.eager import Eager
    from optkit.engines.inductor import Inductor
    from optkit.engines.loading import load
    from optkit.engines.onnxruntime import ONNXRuntime
    from optkit.engines.openvino import OpenVINO
    from optkit.engines.program import export_program, save_program
    from optkit.engines.saved import Saved, save_session

# the module of each name
_HOMES = {
    **dict.fromkeys(("Engine", "Served", "Session"), "optkit.core.engine"),
    **dict.fromkeys(("Saved", "save_session"), "optkit.engines.saved"),
    **dict.fromkeys(("export_program", "save_program"), "optkit.engines.program"),
    "CUDA": "optkit.engines.cuda",
    "Eager": "optkit.engines.eager",
    "Inductor": "optkit.engines.inductor",
    "ONNXRuntime": "optkit.engines.onnxruntime",
    "OpenVINO": "optkit.engines.openvino",
    "Outputs": "optkit.engines.deployed",
    "check_agreement": "optkit.engines.agreement",
    "compile": "optkit.engines.compiling",
    "load": "optkit.engines.loading",
}

__all__ = [
    "CUDA",
    "ENGINES",
    "Eager",
    "Engine",
    "Inductor",
    "ONNXRuntime",
    "OpenVINO",
    "Outputs",
    "Saved",
    "Served",
    "Session",
    "check_agreement",
    "compile",
    "export_program",
    "load",
    "save_program",
    "save_session",
]


def __getattr__(name: str) -> Any:
    """An engine or a function, imported when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'optkit.engines' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
