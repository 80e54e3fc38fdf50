"""Weights of few bits in an ONNX file: ONNX Runtime's MatMulNBits and GatherBlockQuantized, which read the integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import StageError
from optkit.core.packed_weights import PackedWeights
from optkit.engines.onnx_file import constant

DOMAIN = "com.microsoft"
SMALLEST, LARGEST = 16, 256  # blocks that share a scale in these kernels, powers of 2
FLOAT, INT8 = 1, 4  # accuracy levels: what activations are rounded to within MatMulNBits


@dataclass(frozen=True)
class Blocks:
    """Weights ``(out, in)`` as the kernels read them: without signs, in blocks of inputs that share a scale.

    Attributes:
        bits: 4 or 8.
        size: inputs of a block.
        data: ``(out, blocks, bytes of a block)`` uint8, the lower half of a byte first.
        scales: ``(out, blocks)`` float32.
        zeros: ``(out, bytes)`` uint8; None where all are in the middle, ``2 ** (bits - 1)``.
    """

    bits: int
    size: int
    data: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None

    @classmethod
    def of(cls, layer: PackedWeights) -> Blocks:
        """Of a layer; its groups become one block or several.

        Raises:
            StageError: groups that no such blocks make up.
        """
        integers, scales, points = layer.integers().numpy(), layer.scales().float().numpy(), layer.zero_points()
        out, inputs = integers.shape
        bits = 4 if layer.bits <= 4 else 8
        middle = 2 ** (bits - 1)
        group = layer.group_size or inputs
        size = math.gcd(group, LARGEST)
        if size < SMALLEST:
            if layer.group_size is not None and group < inputs:
                fix = f"a group size that is a multiple of {SMALLEST}"
                raise StageError(f"ONNX Runtime has no kernel for weights in groups of {group}", fix=fix)
            size = SMALLEST
        blocks = -(-inputs // size)
        digits = np.full((out, blocks * size), middle, np.uint8)
        digits[:, :inputs] = integers.astype(np.int16) + middle
        of_blocks = [np.repeat(x, -(-group // size), 1)[:, :blocks] for x in (scales, _plain(points)) if x is not None]
        zeros = _bytes((of_blocks[1].astype(np.int16) + middle).astype(np.uint8), bits) if len(of_blocks) > 1 else None
        data = _bytes(digits.reshape(out, blocks, size), bits)
        return cls(bits, size, data, np.ascontiguousarray(of_blocks[0]), zeros)


def _plain(points: Any) -> NDArray[np.int8] | None:
    return None if points is None else points.numpy()


def _bytes(digits: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers of 4 bits two to a byte along the last axis, which is filled up to an even length; others as they are."""
    if bits == 8:
        return digits
    if digits.shape[-1] % 2:
        digits = np.concatenate([digits, np.zeros_like(digits[..., :1])], -1)
    return (digits[..., ::2] | (digits[..., 1::2] << 4)).astype(np.uint8)


def read_integers(model: Any, weight: Any, layer: PackedWeights, accuracy_level: int) -> None:
    """Puts kernels that read integers in the place of the nodes that read a float weight.

    Args:
        model: of onnx_ir.
        weight: its input ``(out, in)``, which nothing reads afterwards.
        layer: whose integers these are.
        accuracy_level: of MatMulNBits, `FLOAT` or `INT8`.

    Raises:
        StageError: something else than a product or a lookup reads the weight, or its groups have no kernel.
    """
    blocks = Blocks.of(layer)
    scales = constant(model, f"{weight.name}_scales", blocks.scales)
    zeros = [] if blocks.zeros is None else [constant(model, f"{weight.name}_zeros", blocks.zeros)]
    out, inputs = layer.integers().shape
    data = {}

    def stored(shape: tuple[int, ...]) -> Any:
        if shape not in data:
            data[shape] = constant(model, f"{weight.name}_{len(shape)}d", blocks.data.reshape(shape))
        return data[shape]

    sizes = {"bits": blocks.bits, "block_size": blocks.size}
    for node in [use.node for use in weight.uses()]:
        if node.op_type == "Gather":
            given = [stored((out, blocks.data[0].size)), node.inputs[1], scales, *zeros]
            axes = {"gather_axis": 0, "quantize_axis": 1}
            _replace(model, node, "GatherBlockQuantized", given, sizes | axes)
            continue
        products = [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else [node]
        for product in products:
            if product.op_type not in ("MatMul", "Gemm") or product.inputs[1] not in (weight, node.outputs[0]):
                raise StageError(f"ONNX Runtime has no kernel for a {product.op_type} of packed weights")
            given = [product.inputs[0], stored(blocks.data.shape), scales, *zeros]
            bias = list(product.inputs[2:])
            given += [None] * (5 - len(given) if bias else 0) + bias
            _replace(
                model, product, "MatMulNBits", given, {"K": inputs, "N": out, "accuracy_level": accuracy_level} | sizes
            )
        if node.op_type == "Transpose":
            model.graph.remove(node, safe=True)


def _replace(model: Any, node: Any, kind: str, inputs: list[Any], attributes: dict[str, int]) -> None:
    """Puts a kernel of ONNX Runtime in the place of a node."""
    import onnx_ir as ir

    made = ir.node(kind, inputs, attributes, domain=DOMAIN)
    made.name = node.name
    made.outputs[0].type, made.outputs[0].shape, made.outputs[0].name = (
        node.outputs[0].type, node.outputs[0].shape, node.outputs[0].name
    )  # fmt: skip
    model.graph.insert_before(node, made)
    node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
