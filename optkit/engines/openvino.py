"""The OpenVINO engine: its CPU plugin, in fp32, bf16, fp16 or int8."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.checks import check_choice
from optkit.core.engine import not_made_for
from optkit.core.errors import StageError
from optkit.core.macs import count_macs
from optkit.core.variant import Variant
from optkit.engines.agreement import check_agreement
from optkit.engines.deployed import arrays, check_shapes, tensor
from optkit.engines.onnx_file import missing, to_onnx
from optkit.engines.saved import Saved, save_session

MODEL = "model.xml"
KERNELS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"}
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@cache
def _capabilities() -> list[str]:
    """The precisions that OpenVINO has kernels for on this processor, ``FP32`` among them."""
    import openvino as ov

    return ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@dataclass
class OpenVINO:
    """OpenVINO's CPU plugin, one request at a time on the session's threads.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``, for all that is not int8.
    """

    precision: str = "fp32"

    name: ClassVar[str] = "openvino"

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)

    def unavailable(self) -> str | None:
        if reason := missing("openvino"):
            return reason
        if self.precision != "fp32" and self.precision.upper() not in _capabilities():
            return f"this processor has no {self.precision} products"
        return None

    def unsupported(self, traits: frozenset[str]) -> str | None:
        return not_made_for(self.name, traits)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> OpenVINOSession:
        """Compiles for the example's shapes, on torch's number of threads.

        Raises:
            StageError: OpenVINO or ONNX lacks an operator of this module; the message names it. Or it does not compute
                what an int8 graph does, see `check_agreement`.
        """
        import openvino as ov

        started = time.perf_counter()
        file = to_onnx(module, example)
        try:
            model = ov.Core().read_model(file)
        except RuntimeError as error:
            raise StageError(f"OpenVINO cannot read this model: {_last_line(error)}") from error
        if "int8" in variant.traits:
            _keep_zero_biases(model)
        compiled = self._compile(model, example)
        seconds = time.perf_counter() - started
        macs = count_macs(module, example)
        facts = {
            "int8_share": min(1.0, _int8_macs(compiled) / max(macs, 1)),
            "precision": self.precision,
            "compile_s": round(seconds, 3),
        }
        session = OpenVINOSession(module, variant, self, model, compiled, example, facts)
        facts |= check_agreement(self.name, session, module, example)
        return session

    def open(self, folder: Path, variant: Variant, saved: Saved) -> OpenVINOSession:
        """Opens what a session saved, without torch's export or ONNX."""
        import openvino as ov

        started = time.perf_counter()
        model = ov.Core().read_model(folder / MODEL)
        compiled = self._compile(model, saved.example)
        facts = saved.facts | {"compile_s": round(time.perf_counter() - started, 3)}
        return OpenVINOSession(folder, variant, self, model, compiled, saved.example, facts)

    def _compile(self, model: Any, example: tuple[Tensor, ...]) -> Any:
        import openvino as ov

        # for one shape OpenVINO plans its memory and chooses its kernels ahead; the model itself keeps its free sizes
        fixed = model.clone()
        shapes = [list(x.shape) for x in example]
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "ENABLE_CPU_PINNING": False,
        }
        try:
            fixed.reshape(dict(zip(fixed.inputs, shapes, strict=True)))
            return ov.Core().compile_model(fixed, "CPU", options)
        except RuntimeError as error:
            raise StageError(f"OpenVINO cannot compile this model: {_last_line(error)}") from error


@dataclass
class OpenVINOSession:
    """A model compiled for one shape."""

    source: nn.Module | Path
    variant: Variant
    engine: OpenVINO
    model: Any
    compiled: Any
    example: tuple[Tensor, ...]
    engine_facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.request = self.compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        check_shapes(inputs, self.example)
        return tensor(self.request.infer(arrays(inputs), share_inputs=True, share_outputs=True)[0])

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        """Writes the variant, and the model as OpenVINO's own files: the batch size stays free in them."""
        import openvino as ov

        saved = Saved(self.engine.name, asdict(self.engine), self.example, self.facts())
        folder = save_session(directory, self.variant, self.source, saved)
        ov.save_model(self.model, folder / MODEL, compress_to_fp16=False)


def _keep_zero_biases(model: Any) -> None:
    """Lets OpenVINO see a bias where a linear's is zero, or it has none: the first of its values becomes 1e-30.

    OpenVINO 2026.4 drops a bias of zeros, and where it fuses int8 linears into one kernel, it then reads their int32
    sums as floats, in silence. 1e-30 changes no sum.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        shape = node.get_output_partial_shape(0) if node.get_type_name() == "Add" else None
        if shape is None or shape.rank.is_dynamic or len(shape) != 2 or shape[1].is_dynamic:
            continue
        for term in node.inputs():
            if _is_zero(term.get_source_output().get_node()):
                bias = np.zeros(shape[1].get_length(), np.float32)
                bias[0] = 1e-30
                term.replace_source_output(ops.constant(bias).output(0))


def _is_zero(node: Any) -> bool:
    """Whether a node gives zeros, a constant or such times another."""
    if node.get_type_name() == "Constant":
        return not node.get_data().any()
    factors = [factor.get_source_output().get_node() for factor in node.inputs()]
    return node.get_type_name() == "Multiply" and any(map(_is_zero, factors))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _int8_macs(compiled: Any) -> int:
    """MACs of the int8 kernels in the graph that OpenVINO executes.

    Products of attention that it fuses with their softmax are not told apart there, and count as float.
    """
    total = 0
    for node in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        if info.get("runtimePrecision") not in ("u8", "i8") or info.get("layerType") not in KERNELS:
            continue
        out = list(node.output(0).get_shape())
        first, second = (list(node.input_value(place).get_shape()) for place in (0, 1))
        if info["layerType"] == "MatMul":
            total += math.prod(out) * first[-1]
        else:
            total += math.prod(out) * math.prod(second) // out[1 if info["layerType"] != "FullyConnected" else -1]
    return total
