"""Where a variant runs. What is named here is imported when it is first used."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

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
    from optkit.engines.registry import ENGINES
    from optkit.engines.saved import Saved, save_session
else:
    __getattr__, __dir__ = lazy_names(__name__)

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
