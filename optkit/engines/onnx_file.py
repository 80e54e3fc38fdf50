"""A module as an ONNX file, for the engines that read one; int8 as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import StageError
from optkit.core.task import free_dims


def missing(*packages: str) -> str | None:
    """Which packages an engine lacks, with the extra that brings them; None when all are there."""
    absent = [name for name in (*packages, "onnx", "onnxscript") if find_spec(name) is None]
    return f"{', '.join(absent)} not installed (pip install 'optkit[{packages[0]}]')" if absent else None


def to_onnx(module: nn.Module, example: tuple[Tensor, ...], *, turn_weights: bool = False) -> bytes:
    """The module as the bytes of an ONNX file; batch size and length of texts stay free where the model lets them.

    Args:
        module: in eval mode.
        example: inputs of any batch size.
        turn_weights: store the int8 weights of linears as ONNX's products read them, ``(in, out)``.

    Raises:
        StageError: torch cannot export it, or ONNX has no operator for a part of it; the message names it.
    """
    # an export with one example would fix the batch size at one
    rows = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in example)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, rows, dynamic_shapes=free_dims(rows, module), strict=False)
            if not _batch_is_free(program):
                program = torch.export.export(module, example, strict=False)
            exported = torch.onnx.export(program, example, dynamo=True, verbose=False)
    except _failures() as error:
        raise StageError(f"cannot write this model as ONNX: {_reason(error)}") from error
    assert exported is not None
    _drop_zero_points(exported.model)
    if turn_weights:
        _turn_weights(exported.model)
    return exported.model_proto.SerializeToString()


def _failures() -> tuple[type[Exception], ...]:
    """What exporting raises; looked up late, for these take seconds to import."""
    from torch.onnx.errors import OnnxExporterError

    return (OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError)


def _reason(error: BaseException) -> str:
    """The innermost cause's first line: the exporter wraps it in reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def _batch_is_free(program: Any) -> bool:
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return all(isinstance(value.shape[0], torch.SymInt) for value in values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
        dequantize = node.inputs[0].producer()
        weight = dequantize.inputs[0] if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer() or len(dequantize.outputs[0].uses()) > 1:
            continue
        turned = _constant(model, f"{weight.name}_transposed", weight.const_value.numpy().T.copy())
        dequantize.replace_input_with(0, turned)
        if dequantize.attributes.get_int("axis", 1) == 0:
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 1)
        elif len(dequantize.inputs[1].shape or ()) == 1:
            dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
        ir.convenience.replace_all_uses_with(node.outputs[0], dequantize.outputs[0])
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]


def _constant(model: Any, name: str, array: Any) -> Any:
    """An initializer."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value
