"""The ONNX Runtime engine: its CPU kernels, in fp32 or int8."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.core.checks import check_choice
from optkit.core.compat.onnxruntime import onnxruntime_errors
from optkit.core.engine import Engine, Served, Session, own_precision
from optkit.core.errors import StageError, first_line
from optkit.core.extras import missing
from optkit.core.generation import Generative
from optkit.core.macs import count_macs
from optkit.core.packed_weights import WEIGHT_ONLY
from optkit.core.variant import Variant
from optkit.engines.agreement import check_agreement
from optkit.engines.deployed import Outputs, arrays, other_shapes
from optkit.engines.int8_share import int8_share
from optkit.engines.matmul_nbits import FLOAT, INT8
from optkit.engines.onnx_cached import WEIGHTS, write_cached
from optkit.engines.onnx_file import EXPORTERS, to_onnx
from optkit.engines.onnxruntime_generation import ONNXRuntimeGenerator
from optkit.engines.saved import Saved, save_session

MODEL = "model.onnx"
ACTIVATIONS = {"float": FLOAT, "int8": INT8}
KERNELS = {
    "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QGemm",
}  # fmt: skip


@dataclass
class ONNXRuntime(Engine):
    """ONNX Runtime on the CPU, on the session's threads.

    Attributes:
        activations: what products with weights of few bits compute with: ``float``, or ``int8``, to which each product
            rounds its activations in blocks (accuracy level 4 of MatMulNBits).
    """

    activations: str = "float"

    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", *EXPORTERS)
    int8_target: ClassVar[str | None] = "onnxruntime"

    def __post_init__(self) -> None:
        check_choice("activations", self.activations, ACTIVATIONS)

    def unavailable(self) -> str | None:
        return missing(self.name, self.packages)

    def unsupported(self, traits: frozenset[str]) -> str | None:
        return None if WEIGHT_ONLY in traits else super().unsupported(traits)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> Session:
        """Compiles for any batch size that the model leaves free, on torch's number of threads.

        Raises:
            StageError: ONNX or ONNX Runtime lacks an operator of this module; the message names it. Or it does not
                compute what an int8 graph does, see `check_agreement`.
        """
        started = time.perf_counter()
        if own_precision(module) == "bf16":
            raise StageError("ONNX Runtime has no kernels for bfloat16 on a processor", fix="model.float()")
        if isinstance(module, Generative):
            return self._generator(module, variant, example, started)
        if WEIGHT_ONLY in variant.traits:
            message = "ONNX Runtime runs integer weights of language models only"
            raise StageError(message, fix="engine inductor or eager, or int8 by quantize/static")
        file, structure = to_onnx(module, example, turn_weights=True)
        runtime = _runtime(file)
        seconds = time.perf_counter() - started
        in_int8, executed = _int8_macs(file, example)
        looked_at = f"kernels in the profile of a call ({executed})"
        share = int8_share(self.name, variant, in_int8, count_macs(module, example), looked_at)
        facts = {"int8_share": share, "precision": own_precision(module), "compile_s": round(seconds, 3)}
        session = ONNXRuntimeSession(module, variant, self, file, runtime, example, Outputs(structure), facts)
        facts |= check_agreement(self.name, session, module, example)
        return session

    def _generator(
        self, module: Generative, variant: Variant, example: tuple[Tensor, ...], started: float
    ) -> ONNXRuntimeGenerator:
        assert isinstance(module, nn.Module)
        folder = TemporaryDirectory(prefix="optkit-")
        path = Path(folder.name) / MODEL
        written = write_cached(module, path, ACTIVATIONS[self.activations])
        runtime = _runtime(path)
        facts = {
            "int8_share": 0.0,
            "precision": own_precision(module),
            "compile_s": round(time.perf_counter() - started, 3),
            **({"packed_layers": written.packed, "activations": self.activations} if written.packed else {}),
        }
        return ONNXRuntimeGenerator(module, variant, self, path, runtime, example, facts, folder)

    def open(self, folder: Path, variant: Variant, saved: Saved) -> Session:
        """Opens what a session saved, without torch's export."""
        started = time.perf_counter()
        if (folder / (MODEL + WEIGHTS)).is_file():
            runtime = _runtime(folder / MODEL)
            facts = saved.facts | {"compile_s": round(time.perf_counter() - started, 3)}
            return ONNXRuntimeGenerator(folder, variant, self, folder / MODEL, runtime, saved.example, facts)
        file = (folder / MODEL).read_bytes()
        runtime = _runtime(file)
        facts = saved.facts | {"compile_s": round(time.perf_counter() - started, 3)}
        return ONNXRuntimeSession(folder, variant, self, file, runtime, saved.example, Outputs(saved.returns), facts)


@dataclass
class ONNXRuntimeSession(Served):
    """A file that ONNX Runtime has optimized; takes all shapes that the file leaves free."""

    source: nn.Module | Path
    variant: Variant
    engine: ONNXRuntime
    file: bytes
    runtime: Any
    example: tuple[Tensor, ...]
    outputs: Outputs
    engine_facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.names = [put.name for put in self.runtime.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Any:
        try:
            found = self.runtime.run(None, dict(zip(self.names, arrays(inputs), strict=True)))
        except onnxruntime_errors() as error:
            raise other_shapes(inputs, self.example, first_line(error)) from error
        return self.outputs.of_arrays(found)

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        """Writes the variant and the ONNX file, whose batch size stays free."""
        saved = Saved.of(self.engine, self.example, self.facts(), self.outputs.structure)
        save_session(
            directory, self.variant, self.source, saved, lambda folder: (folder / MODEL).write_bytes(self.file)
        )


def _runtime(file: bytes | Path, profile: Path | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # between calls its threads would spin, at the cost of whatever runs next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # a product and a sum become a Gemm, of which there is no int8 kernel for activations that are scaled at every call
    disabled = ["MatMulAddFusion"] if isinstance(file, bytes) and b"DynamicQuantizeLinear" in file else None
    try:
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    except onnxruntime_errors() as error:
        reason = first_line(error)
        raise StageError(f"ONNX Runtime cannot run this model: {reason}") from error


def _int8_macs(file: bytes, example: tuple[Tensor, ...]) -> tuple[int, str]:
    """MACs of the int8 kernels in one call, and which kernels there were at all, from the profile of what ran."""
    with TemporaryDirectory(prefix="optkit-") as folder:
        runtime = _runtime(file, Path(folder) / "profile")
        runtime.run(None, dict(zip([put.name for put in runtime.get_inputs()], arrays(example), strict=True)))
        events = json.loads(Path(runtime.end_profiling()).read_text())
    windows = _windows(file)
    named = [event for event in events if event.get("args", {}).get("op_name")]
    kernels = [event for event in named if event["args"]["op_name"] in KERNELS]
    executed = ", ".join(sorted({event["args"]["op_name"] for event in named}))
    return sum(_macs(event["name"], event["args"], windows) for event in kernels), executed


def _macs(name: str, kernel: dict[str, Any], windows: dict[str, int]) -> int:
    """MACs of one kernel: outputs, times the products that each sums up."""
    first, out = (next(iter(kernel[put][0].values())) for put in ("input_type_shape", "output_type_shape"))
    if "Conv" not in kernel["op_name"]:
        return math.prod(out) * first[-1]
    # a kernel is named after the convolution that it was made from
    origin = max((node for node in windows if name.startswith(f"{node}_")), key=len)
    return math.prod(out) * windows[origin]


def _windows(file: bytes) -> dict[str, int]:
    """How many products each convolution of a file sums up for one output; the profile does not show weights."""
    import onnx

    graph = onnx.load_from_string(file).graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return {
        n.name: math.prod(weights[name][1:])
        for n in convolutions
        if (name := sources.get(n.input[1], n.input[1])) in weights
    }
