"""From a model with a cache to an OpenVINO model that holds the cache as its state."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from optkit.core.compat.openvino import conversion_errors
from optkit.core.errors import StageError, last_line
from optkit.core.generation import CachedModel
from optkit.engines.cached_program import INPUTS, export_cached
from optkit.engines.openvino_paged import note_windows
from optkit.engines.openvino_weights import compressed

LOGITS, ORDER = "logits", "beam_idx"  # the names of optimum and of OpenVINO GenAI


def stateful_model(cached: CachedModel, longest: int | None = None) -> Any:
    """The OpenVINO model of a language model, keys and values of earlier tokens as its state.

    Its inputs and its output are named as those of optimum's models: ``input_ids``, ``attention_mask``,
    ``position_ids`` where the model reads them, ``beam_idx`` ``(N,)``, which row each row continues, and ``logits``;
    and ``places`` ``(K,)``, which of the new tokens logits are of. OpenVINO's CPU plugin fuses attention with a cache
    of this form.

    Args:
        cached: the model.
        longest: the most tokens that it takes; None where it does not say.

    Raises:
        StageError: torch cannot export the model, or OpenVINO lacks an operator of it.
    """
    import openvino as ov

    exported = export_cached(cached)
    try:
        model = ov.convert_model(exported.program)
    except conversion_errors() as error:
        raise StageError(f"OpenVINO cannot read this model: {last_line(error)}") from error
    _fold_scalars(model)
    puts = list(model.inputs)
    first_weight = len(INPUTS) + len(exported.past)
    for put, layer in zip(puts[first_weight:], exported.packed, strict=True):
        put.get_node().output(0).replace(compressed(layer))
        model.remove_parameter(put.get_node())
    for put, name in zip(puts, INPUTS, strict=False):
        _name(put, name)
    _name(model.outputs[0], LOGITS)
    note_windows(model, longest)
    _hold(model, puts[0], puts[len(INPUTS) : first_weight], exported.past)
    for put in puts[: len(INPUTS)]:
        if not put.get_target_inputs():
            model.remove_parameter(put.get_node())
    model.validate_nodes_and_infer_types()
    return model


def _fold_scalars(model: Any) -> None:
    """Makes converted scalars constants of the type that they are converted to.

    OpenVINO's reader of torch programs takes a negation, a product with an integer -1, for a compressed weight, and
    keeps its conversion. Rotary embeddings are then not recognized, and run as seven operations instead of one.
    """
    from openvino import opset13 as ops

    for node in model.get_ops():
        source = node.input_value(0).get_node() if node.get_type_name() == "Convert" else None
        if source is not None and source.get_type_name() == "Constant" and source.data.size == 1:
            scalar = ops.constant(source.data.astype(node.get_element_type().to_dtype()))
            node.output(0).replace(scalar.output(0))


def _name(put: Any, name: str) -> None:
    put.get_tensor().set_names({name})
    put.get_node().set_friendly_name(name)


def _hold(model: Any, tokens: Any, past: list[Any], empty: tuple[Tensor, ...]) -> None:
    """Makes inputs and outputs of keys and values a state, which starts with no tokens for each row of the input."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino.passes import MakeStateful, Manager

    order = ops.parameter(ov.PartialShape([-1]), ov.Type.i32, name=ORDER)
    order.output(0).get_tensor().set_names({ORDER})
    axis = ops.constant(np.int64(0))
    pairs = {}
    for number, (put, x) in enumerate(zip(past, empty, strict=True)):
        node = put.get_node()
        node.set_partial_shape(ov.PartialShape([-1, x.shape[1], -1, x.shape[3]]))
        readers = put.get_target_inputs()
        chosen = ops.gather(put, order, axis)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
        part = f"{number // 2}.{'value' if number % 2 else 'key'}"
        _name(put, f"past_key_values.{part}")
        _name(model.outputs[1 + number], f"present.{part}")
        pairs[f"past_key_values.{part}"] = f"present.{part}"
    model.add_parameters([order])
    model.validate_nodes_and_infer_types()
    manager = Manager()
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(model)
    shape_of = ops.shape_of(tokens, output_type="i64")
    rows = ops.gather(shape_of, ops.constant(np.array([0], np.int64)), axis)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            heads, _, width = (size for size in list(node.get_output_partial_shape(0))[1:])
            rest = np.array([heads.get_length(), 0, width.get_length()], np.int64)
            shape = ops.concat([rows, ops.constant(rest)], 0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape).output(0)])
