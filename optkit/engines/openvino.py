"""The OpenVINO engine: its CPU plugin, in fp32, bf16, fp16 or int8."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.checks import check_choice, check_count
from optkit.core.compat.openvino import core
from optkit.core.engine import Engine, Served, own_precision
from optkit.core.errors import StageError, last_line
from optkit.core.extras import missing
from optkit.core.generation import Generative
from optkit.core.macs import count_macs
from optkit.core.packed_weights import WEIGHT_ONLY
from optkit.core.variant import Variant
from optkit.engines.agreement import check_agreement
from optkit.engines.deployed import Outputs, arrays, other_shapes, same_shapes
from optkit.engines.int8_share import int8_share
from optkit.engines.onnx_file import EXPORTERS, to_onnx
from optkit.engines.saved import Saved, save_session

MODEL = "model.xml"
KERNELS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"}
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@cache
def _capabilities() -> list[str]:
    """The precisions that OpenVINO has kernels for on this processor, ``FP32`` among them."""
    return core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@dataclass
class OpenVINO(Engine):
    """OpenVINO's CPU plugin, one request at a time on the session's threads.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``, for all that is not int8.
        cache_precision: of the keys and values that a language model keeps: ``fp32``, ``bf16``, ``fp16`` or ``int8``;
            None for `precision`.
        dynamic_quantization_group_size: of language models: activations that meet integer weights are rounded to int8
            in groups of so many, where the processor has instructions for it; 0 leaves them in float.
    """

    precision: str = "fp32"
    cache_precision: str | None = None
    dynamic_quantization_group_size: int = 0

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)
    packages: ClassVar[tuple[str, ...]] = ("openvino", *EXPORTERS)
    int8_target: ClassVar[str | None] = "openvino"

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, self.precisions)
        if self.cache_precision is not None:
            check_choice("cache_precision", self.cache_precision, (*self.precisions, "int8"))
        check_count("dynamic_quantization_group_size", self.dynamic_quantization_group_size, 0)

    def unavailable(self) -> str | None:
        if reason := missing(self.name, self.packages):
            return reason
        if self.precision != "fp32" and self.precision.upper() not in _capabilities():
            return f"this processor has no {self.precision} products"
        return None

    def unsupported(self, traits: frozenset[str]) -> str | None:
        return None if WEIGHT_ONLY in traits else super().unsupported(traits)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> OpenVINOSession:
        """Compiles for the example's shapes, or a language model for all, on torch's number of threads.

        Raises:
            StageError: OpenVINO or ONNX lacks an operator of this module; the message names it. Or it does not compute
                what an int8 graph does, see `check_agreement`.
        """
        if own_precision(module) == "bf16":
            fix = "model.float(), and OpenVINO(precision='bf16'), which computes in bfloat16"
            raise StageError("OpenVINO takes no models in bfloat16", fix=fix)
        if isinstance(module, Generative):
            from optkit.engines.openvino_generation import compile_generator

            return compile_generator(self, module, variant, example)
        if WEIGHT_ONLY in variant.traits:
            message = "OpenVINO runs integer weights of language models only"
            raise StageError(message, fix="engine inductor or eager, or int8 by quantize/static")
        started = time.perf_counter()
        file, structure = to_onnx(module, example)
        try:
            model = core().read_model(file)
        except RuntimeError as error:
            raise StageError(f"OpenVINO cannot read this model: {last_line(error)}") from error
        if "int8" in variant.traits:
            _keep_zero_biases(model)
        compiled = self.compile_model(model, example)
        seconds = time.perf_counter() - started
        in_int8, executed = _int8_macs(compiled)
        looked_at = f"kernels in the graph that it executes ({executed})"
        facts = {
            "int8_share": int8_share(self.name, variant, in_int8, count_macs(module, example), looked_at),
            "precision": self.precision,
            "compile_s": round(seconds, 3),
        }
        session = OpenVINOSession(module, variant, self, model, compiled, example, Outputs(structure), facts)
        facts |= check_agreement(self.name, session, module, example)
        return session

    def open(self, folder: Path, variant: Variant, saved: Saved) -> OpenVINOSession:
        """Opens what a session saved, without torch's export or ONNX."""
        started = time.perf_counter()
        model = core().read_model(folder / MODEL)
        if model.get_sinks():
            from optkit.engines.openvino_generation import open_generator

            return open_generator(self, folder, variant, saved.example, model)
        compiled = self.compile_model(model, saved.example)
        facts = saved.facts | {"compile_s": round(time.perf_counter() - started, 3)}
        return OpenVINOSession(folder, variant, self, model, compiled, saved.example, Outputs(saved.returns), facts)

    def compile_model(
        self,
        model: Any,
        example: tuple[Tensor, ...] | None,
        threads: int | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compiled for the example's shapes, or without one for all that the model takes."""
        # for one shape OpenVINO plans its memory and chooses its kernels ahead; the model itself keeps its free sizes
        chosen = model.clone()
        options = {
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "ENABLE_CPU_PINNING": False,
            **(further or {}),
        }
        if example is not None and len(chosen.inputs) != len(example):
            message = f"the model reads {len(chosen.inputs)} of its {len(example)} inputs, the others are dropped"
            raise StageError(message, fix="leave out of the model's arguments what it does not read")
        try:
            if example is not None:
                chosen.reshape(dict(zip(chosen.inputs, [list(x.shape) for x in example], strict=True)))
            return core().compile_model(chosen, "CPU", options)
        except RuntimeError as error:
            raise StageError(f"OpenVINO cannot compile this model: {last_line(error)}") from error


@dataclass
class OpenVINOSession(Served):
    """A model compiled for one shape; for others that its file leaves free, compiled once more at the first of them."""

    source: nn.Module | Path
    variant: Variant
    engine: OpenVINO
    model: Any
    compiled: Any
    example: tuple[Tensor, ...]
    outputs: Outputs
    engine_facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.request = self.compiled.create_infer_request()
        self.places = range(len(self.compiled.outputs))
        self.of_any_shape: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        request = self.request if same_shapes(inputs, self.example) else self._for_other_shapes(inputs)
        try:
            found = request.infer(arrays(inputs), share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise other_shapes(inputs, self.example, last_line(error)) from error
        return self.outputs.of_arrays([found[place] for place in self.places])

    def _for_other_shapes(self, inputs: tuple[Tensor, ...]) -> Any:
        """A request that takes all shapes that the file leaves free."""
        free = [put.get_partial_shape() for put in self.model.inputs]
        if not all(shape.compatible(_shape(x)) for shape, x in zip(free, inputs, strict=True)):
            raise other_shapes(inputs, self.example, f"the file takes {', '.join(map(str, free))}")
        if self.of_any_shape is None:
            threads = self.compiled.get_property("INFERENCE_NUM_THREADS")
            self.of_any_shape = self.engine.compile_model(self.model, None, threads).create_infer_request()
        return self.of_any_shape

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        """Writes the variant, and the model as OpenVINO's own files: the batch size stays free in them."""
        import openvino as ov

        saved = Saved.of(self.engine, self.example, self.facts(), self.outputs.structure)

        def write(folder: Path) -> None:
            ov.save_model(self.model, folder / MODEL, compress_to_fp16=False)

        save_session(directory, self.variant, self.source, saved, write)


def _shape(x: Tensor) -> Any:
    import openvino as ov

    return ov.PartialShape(list(x.shape))


def _keep_zero_biases(model: Any) -> None:
    """Lets OpenVINO see a bias where a linear's is zero, or it has none: the first of its values becomes 1e-30.

    OpenVINO 2026.4 drops a bias of zeros, and where it fuses int8 linears into one kernel, it then reads their int32
    sums as floats, in silence. 1e-30 changes no sum.
    """
    from openvino import Type
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        shape = node.get_output_partial_shape(0) if node.get_type_name() == "Add" else None
        if shape is None or shape.rank.is_dynamic or len(shape) != 2 or shape[1].is_dynamic:
            continue
        if node.get_output_element_type(0) != Type.f32:
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


def _int8_macs(compiled: Any) -> tuple[int, str]:
    """MACs of the int8 kernels in the graph that OpenVINO executes, and its kernels with their precisions.

    Products of attention that it fuses with their softmax are not told apart there, and count as float.
    """
    total, executed = 0, set()
    for node in compiled.get_runtime_model().get_ops():
        kind, precision = _layer(node), _layer(node, "runtimePrecision")
        if kind == "Subgraph" and (weights := _int8_weights(node)):
            # several linears in one kernel, which is listed under what it gives
            precision, macs = "i8", math.prod(_shape_of(node)[:-1]) * sum(weights)
        elif kind in KERNELS:
            macs = _macs(node, kind)
        else:
            continue
        executed.add(f"{kind} in {precision}")
        total += macs if precision in ("u8", "i8") else 0
    return total, ", ".join(sorted(executed)) or "no products"


def _macs(node: Any, kind: str) -> int:
    """MACs of one kernel: outputs, times the products that each sums up."""
    out, (first, second) = _shape_of(node), (list(node.input_value(place).get_shape()) for place in (0, 1))
    if kind == "MatMul":
        return math.prod(out) * first[-1]
    if kind == "Deconvolution":
        # each element that it reads meets the weights of its channel
        return math.prod(first) * math.prod(second) // first[1]
    return math.prod(out) * math.prod(second) // out[-1 if kind == "FullyConnected" else 1]


def _int8_weights(node: Any) -> list[int]:
    """How many int8 weights each linear of a fused kernel has."""
    sources = [put.get_source_output().get_node() for put in node.inputs()]
    found = [x for x in sources if _layer(x) == "Const" and _layer(x, "runtimePrecision") == "i8"]
    return [math.prod(_shape_of(x)) for x in found if len(_shape_of(x)) == 2]


def _shape_of(node: Any) -> list[int]:
    return list(node.output(0).get_shape())


def _layer(node: Any, key: str = "layerType") -> str | None:
    """What the executed graph says of a node."""
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else None
