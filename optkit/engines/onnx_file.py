"""A module as an ONNX file, for the engines that read one; int8 as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.compat.torch_operators import register_int8_operators
from optkit.core.errors import StageError
from optkit.core.structure import Structure, names
from optkit.engines.program import export_failures, export_program, innermost_reason

EXPORTERS = ("onnx", "onnxscript")  # the packages that write an ONNX file


def to_onnx(module: nn.Module, example: tuple[Tensor, ...], *, turn_weights: bool = False) -> tuple[bytes, Structure]:
    """The module as the bytes of an ONNX file; batch size and length of texts stay free where the model lets them.

    The file's outputs are the tensors that the module returns, named by their paths (`structure.names`): ``logits``,
    ``boxes``, ``0.scores``. A name that an input has already gets ``_out`` behind it.

    Args:
        module: in eval mode.
        example: inputs of any batch size.
        turn_weights: store the int8 weights of linears as ONNX's products read them, ``(in, out)``, and write all
            linears with int8 weights as products.

    Returns:
        The file, and the structure of what the module returns.

    Raises:
        StageError: torch cannot export it, or ONNX has no operator for a part of it; the message names it.
    """
    try:
        with quiet(), torch.no_grad():
            program, structure = export_program(module, example)
            table = _dynamic_quantization()
            exported = torch.onnx.export(program, example, dynamo=True, verbose=False, custom_translation_table=table)
    except onnx_failures() as error:
        raise StageError(f"cannot write this model as ONNX: {innermost_reason(error)}") from error
    assert exported is not None
    _drop_zero_points(exported.model)
    _quantize_once(exported.model)
    _dequantize_apart(exported.model)
    if turn_weights:
        _turn_weights(exported.model)
        _multiply(exported.model)
    _name_outputs(exported.model, names(structure))
    drop_origin(exported.model)
    return exported.model_proto.SerializeToString(), structure


def _name_outputs(model: Any, wanted: list[str]) -> None:
    """Names a file's outputs; what is returned twice, or returned as it was given, becomes a value of its own.

    Engines give numpy's arrays, which have no bfloat16: it leaves the file as float32.
    """
    import onnx_ir as ir

    outputs = model.graph.outputs
    given = {value.name for value in model.graph.inputs}
    for place, output in enumerate(outputs):
        if output.dtype == ir.DataType.BFLOAT16:
            added, kind = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}), ir.TensorType(ir.DataType.FLOAT)
        elif output.producer() is None or any(output is other for other in outputs[:place]):
            added, kind = ir.node("Identity", [output]), output.type
        else:
            continue
        added.outputs[0].type, added.outputs[0].shape = kind, output.shape
        model.graph.append(added)
        outputs[place] = added.outputs[0]
    taken = {value.name: value for node in model.graph for value in node.outputs if value.name}
    taken |= {value.name: value for value in model.graph.initializers.values()}
    for output, name in zip(outputs, wanted, strict=True):
        name = f"{name}_out" if name in given else name
        if (other := taken.get(name, output)) is not output:
            other.name = f"{name}_within"
        output.name = name


def drop_origin(model: Any) -> None:
    """Removes what torch's exporter notes of each node: the paths and lines of the source that it came from."""
    for part in (model.graph, *model.functions.values()):
        for node in part.all_nodes():
            node.metadata_props.clear()


def onnx_failures() -> tuple[type[Exception], ...]:
    """What exporting raises; looked up late, for these take seconds to import."""
    from torch.onnx.errors import OnnxExporterError

    return (OnnxExporterError, *export_failures())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and onnxscript say to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _dynamic_quantization() -> dict[Any, Any]:
    """Activations that are scaled at every call, whose operators torch's exporter does not know."""
    from onnxscript import opset18 as op

    def choose(x: Any, low: int, high: int, eps: float, dtype: int) -> Any:
        _, scale, zero_point = op.DynamicQuantizeLinear(x)
        return scale, zero_point

    def quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int, dtype: int) -> Any:
        return op.QuantizeLinear(x, scale, zero_point)

    def dequantize(x: Any, scale: Any, zero_point: Any, low: int, high: int, dtype: int) -> Any:
        return op.DequantizeLinear(x, scale, zero_point)

    register_int8_operators()
    ops = torch.ops.quantized_decomposed
    return {
        ops.choose_qparams.tensor: choose,
        ops.quantize_per_tensor.tensor: quantize,
        ops.dequantize_per_tensor.tensor: dequantize,
    }


def _quantize_once(model: Any) -> None:
    """DynamicQuantizeLinear gives the quantized tensor, too: what else quantizes with its scale reads that."""
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type == "DynamicQuantizeLinear":
            for output, dtype in zip(node.outputs[1:], (ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
                output.type = ir.TensorType(dtype)
            continue
        made = node.inputs[1].producer() if node.op_type == "QuantizeLinear" else None
        if made is not None and made.op_type == "DynamicQuantizeLinear" and made.inputs[0] is node.inputs[0]:
            ir.convenience.replace_all_uses_with(node.outputs[0], made.outputs[0])
            model.graph.remove(node, safe=True)


def _dequantize_apart(model: Any) -> None:
    """Gives each reader of a dynamically quantized tensor a DequantizeLinear of its own.

    Of two linears ``(N, in)`` that share one, ONNX Runtime makes Gemms of floats.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        made = node.inputs[0].producer() if node.op_type == "DequantizeLinear" else None
        if made is None or made.op_type != "DynamicQuantizeLinear":
            continue
        for reader, place in list(node.outputs[0].uses())[1:]:
            copied = ir.node("DequantizeLinear", list(node.inputs))
            copied.outputs[0].type, copied.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_after(node, copied)
            reader.replace_input_with(place, copied.outputs[0])


def _drop_zero_points(model: Any) -> None:
    """Leaves out the zero points of weights, all 0: the exporter makes one constant of all that are of one length.

    OpenVINO, at fixed shapes, takes what a convolution and a linear share for float, and both stay in float.
    """
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 and node.inputs[0].is_initializer():
            point = node.inputs[2]
            if point.is_initializer() and not point.const_value.numpy().any():
                node.resize_inputs(2)
                if not point.uses():
                    del model.graph.initializers[point.name]


def _turn_weights(model: Any) -> None:
    """Stores int8 weights the way products read them: a transpose behind DequantizeLinear hides them from fusion."""
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        if (dequantize := _int8_weight(node.inputs[0])) is not None:
            _turn(model, dequantize)
            ir.convenience.replace_all_uses_with(node.outputs[0], dequantize.outputs[0])
            model.graph.remove(node, safe=True)


def _multiply(model: Any) -> None:
    """Writes a Gemm of int8 weights in a way of which there is an int8 kernel: none takes a float bias.

    Between int8 tensors the bias becomes whole numbers in steps of the product's own, as a convolution's does; else the
    Gemm becomes a product and a sum.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type != "Gemm" or (dequantize := _int8_weight(node.inputs[1])) is None:
            continue
        scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
        if scaled or node.attributes.get_int("transA", 0) or _round_bias(model, node, dequantize):
            continue
        if node.attributes.get_int("transB", 0):
            _turn(model, dequantize)
        added = [ir.node("MatMul", list(node.inputs[:2]))]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            added.append(ir.node("Add", [added[0].outputs[0], node.inputs[2]]))
        added[0].name, added[-1].outputs[0].name = node.name, node.outputs[0].name
        for made in added:
            made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(node, added)
        node.outputs[0].replace_all_uses_with(added[-1].outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _round_bias(model: Any, gemm: Any, weight: Any) -> bool:
    """Stores the bias of a Gemm of int8 as int32; False where its input or its steps do not allow it.

    ONNX Runtime has a kernel for such a Gemm if the weights' zero points are named.
    """
    import onnx_ir as ir

    given, bias = gemm.inputs[0].producer(), gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if given is None or given.op_type != "DequantizeLinear" or bias is None or not bias.is_initializer():
        return False
    if not (given.inputs[1].is_initializer() and weight.inputs[1].is_initializer()):
        return False
    steps = given.inputs[1].const_value.numpy() * weight.inputs[1].const_value.numpy()
    whole = np.round(bias.const_value.numpy().astype(np.float64) / steps)
    if steps.size not in (1, whole.size) or not (np.abs(whole) < 2**31).all():
        return False
    stored = constant(model, f"{bias.name}_whole", whole.astype(np.int32))
    scale = constant(model, f"{bias.name}_steps", np.broadcast_to(steps, whole.shape).astype(np.float32).copy())
    made = ir.node("DequantizeLinear", [stored, scale], attributes={"axis": 0})
    made.outputs[0].type, made.outputs[0].shape, made.outputs[0].name = bias.type, bias.shape, f"{bias.name}_rounded"
    model.graph.insert_before(gemm, made)
    gemm.replace_input_with(2, made.outputs[0])
    if len(weight.inputs) == 2:
        zeros = np.zeros(weight.inputs[1].const_value.shape, np.int8)
        weight.resize_inputs(3)
        weight.replace_input_with(2, constant(model, f"{weight.inputs[0].name}_zeros", zeros))
    if not bias.uses():
        del model.graph.initializers[bias.name]
    return True


def _int8_weight(value: Any) -> Any | None:
    """The DequantizeLinear that alone gives a value to its reader, from stored integers."""
    made = value.producer()
    stored = made is not None and made.op_type == "DequantizeLinear" and made.inputs[0].is_initializer()
    return made if stored and len(value.uses()) == 1 else None


def _turn(model: Any, dequantize: Any) -> None:
    """Stores a matrix of integers transposed, and its scales along the other axis."""
    import onnx_ir as ir

    weight = dequantize.inputs[0]
    dequantize.replace_input_with(0, constant(model, f"{weight.name}_transposed", weight.const_value.numpy().T.copy()))
    if dequantize.attributes.get_int("axis", 1) == 0:
        dequantize.attributes["axis"] = ir.AttrInt64("axis", 1)
    elif len(dequantize.inputs[1].shape or ()) == 1:
        dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
    if not weight.uses():
        del model.graph.initializers[weight.name]


def constant(model: Any, name: str, array: Any) -> Any:
    """An initializer."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value
