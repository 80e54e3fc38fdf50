"""Where a variant runs."""

from optkit.engines.compiling import compile  # noqa: A004
from optkit.engines.cuda import CUDA
from optkit.engines.eager import Eager
from optkit.engines.inductor import Inductor
from optkit.engines.loading import load
from optkit.engines.onnxruntime import ONNXRuntime
from optkit.engines.openvino import OpenVINO
from optkit.engines.program import save_program
from optkit.engines.registry import ENGINES

__all__ = ["CUDA", "ENGINES", "Eager", "Inductor", "ONNXRuntime", "OpenVINO", "compile", "load", "save_program"]
