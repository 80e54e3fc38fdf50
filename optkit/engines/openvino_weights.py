"""Weights of few bits in OpenVINO: compressed constants, which its CPU plugin multiplies by without a float copy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.packed_weights import PackedWeights

INTEGERS = ("i4", "u4", "i8", "u8")
FUSED = {"LLMMLP": 3, "QKVProjection": 3}
BETWEEN = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose"}  # a compressed constant and its product


def compressed(layer: PackedWeights) -> Any:
    """The output of a graph that gives a layer's weights ``(out, in)``: (integers - zero points) * scales.

    Integers of more than 4 bits are kept in int8, others in int4; beside zero points without signs, as OpenVINO's
    kernels want them.
    """
    from openvino import opset13 as ops

    integers, scales, zeros = layer.integers(), layer.scales(), layer.zero_points()
    shape = tuple(integers.shape)
    wide, signed = layer.bits > 4, zeros is None
    grouped = (*scales.shape, shape[1] // scales.shape[1]) if layer.group_size is not None else shape
    scale_shape = (*scales.shape, 1) if layer.group_size is not None else tuple(scales.shape)
    found = ops.convert(_constant(integers.numpy(), grouped, wide, signed), "f32")
    if zeros is not None:
        found = ops.subtract(found, ops.convert(_constant(zeros.numpy(), scale_shape, wide, signed), "f32"))
    found = ops.multiply(found, ops.constant(scales.float().numpy().reshape(scale_shape)))
    if layer.group_size is not None:
        found = ops.reshape(found, ops.constant(np.array(shape, np.int64)), special_zero=False)
    return found.output(0)


def _constant(values: NDArray[np.int8], shape: tuple[int, ...], wide: bool, signed: bool) -> Any:
    """Integers as a constant: a byte each, or two to a byte."""
    import openvino as ov
    from openvino import opset13 as ops

    if not signed:
        values = (values.astype(np.int16) + (128 if wide else 8)).astype(np.uint8)
    if wide:
        return ops.constant(np.ascontiguousarray(values).reshape(shape))
    digits = np.resize(values.reshape(-1).view(np.uint8) & 15, values.size + values.size % 2)
    # memory of OpenVINO's own: a tensor over that of numpy would not keep it alive
    tensor = ov.Tensor(ov.Type.i4 if signed else ov.Type.u4, ov.Shape(shape))
    tensor.data.reshape(-1)[:] = (digits[::2] | (digits[1::2] << 4)).view(tensor.data.dtype)
    return ops.constant(tensor)


def compressed_products(model: Any) -> int:
    """How many matrix products of a model are with a compressed constant."""
    products = (node for node in model.get_ops() if node.get_type_name() == "MatMul")
    return sum(_kind_of_constant(node.input_value(1).get_node()) in INTEGERS for node in products)


def _kind_of_constant(node: Any) -> str | None:
    """The element type of the constant that a weight is computed of; None where it is none."""
    while node.get_type_name() in BETWEEN:
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else None


def executed_products(compiled: Any) -> dict[str, int]:
    """How many linear layers the graph that OpenVINO executes multiplies by weights of each element type.

    A kernel that fuses a feed-forward block or the projections of attention stands for three linear layers.
    """
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind = str(node.get_rt_info()["layerType"].astype(str))
        if kind == "FullyConnected":
            found[node.input_value(1).get_element_type().get_type_name()] += 1
        elif kind in FUSED:
            found[node.input_value(1).get_element_type().get_type_name()] += FUSED[kind]
    return dict(sorted(found.items()))
