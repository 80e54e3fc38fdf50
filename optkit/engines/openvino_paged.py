"""From a stateful OpenVINO model to one of paged attention (Kwon et al., SOSP 2023).

Keys and values lie in blocks of tokens that the session holds, and rows need no padding: the tokens of all rows follow
each other. OpenVINO's kernels for this form read prompts several times as fast as those for a cache as state.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.compat.openvino import core, to_paged_attention
from optkit.core.errors import last_line
from optkit.engines.cached_program import INPUTS

log = logging.getLogger(__name__)
ATTENTION, PAGED = "ScaledDotProductAttention", "PagedAttentionExtension"
WINDOW_PLACE = 10  # of a paged attention's inputs: how many tokens it sees, 0 for all
WINDOWS = ["optkit", "attention_windows"]  # where a model keeps what `attention_windows` gave
LONGEST = 4096  # of a model that does not say how many tokens it takes
BLOCKED = -1e4  # what is added to scores of tokens that are not seen is below


def note_windows(model: Any, longest: int | None) -> None:
    """Writes into a model, whose cache is still inputs and outputs, what `attention_windows` says of it."""
    model.set_rt_info(json.dumps(attention_windows(model, longest or LONGEST)), WINDOWS)


def windows_of(model: Any) -> list[int | None] | None:
    """What `note_windows` wrote into a model; None where it wrote nothing."""
    return json.loads(model.get_rt_info(WINDOWS).astype(str)) if model.has_rt_info(WINDOWS) else None


def paged_model(model: Any) -> Any | None:
    """The same model with paged attention; None where it attends in ways of its own.

    Its inputs are ``input_ids`` and ``position_ids`` ``(tokens of all rows,)``, ``places``, which of these logits
    are of, and what OpenVINO's paged attention takes. ``logits`` are ``(K, 1, V)``.

    Args:
        model: stateful; not touched.
    """
    from openvino import opset13 as ops

    windows = windows_of(model)
    if windows is None:
        return None
    paged = model.clone()
    try:
        to_paged_attention(paged)
    except RuntimeError as error:
        log.info("the cache stays a state: OpenVINO cannot make this attention paged: %s", last_line(error))
        return None
    layers = [node for node in paged.get_ordered_ops() if node.get_type_name() == PAGED]
    names = {name for put in paged.inputs for name in put.get_names()}
    if len(layers) != len(windows) or "attention_mask" in names:
        return None
    for layer, window in zip(layers, windows, strict=True):
        if window is not None:
            layer.input(WINDOW_PLACE).replace_source_output(ops.constant(np.int32(window)).output(0))
    _take_places(paged)
    paged.validate_nodes_and_infer_types()
    return paged


def _take_places(model: Any) -> None:
    """Chooses the places along the first axis: there the tokens lie behind the transformation, and the second is 1."""
    from openvino import opset13 as ops

    places = next(put for put in model.inputs if "places" in put.get_names())
    gather = _reader(places.get_node(), "Gather")
    before = gather.input_value(0)
    while before.get_node().get_type_name() in ("Reshape", "Transpose"):  # of torch's indexing
        before = before.get_node().input_value(0)
    readers = before.get_target_inputs()
    chosen = ops.gather(before, places, ops.constant(np.int64(0)))
    for reader in readers:
        reader.replace_source_output(chosen.output(0))
    only = ops.constant(np.zeros(1, np.int64))
    for reader in places.get_target_inputs():
        if reader.get_node().get_friendly_name() != chosen.get_friendly_name():
            reader.replace_source_output(only.output(0))


def _reader(node: Any, kind: str) -> Any:
    """The first operation of a kind behind another one, along what reads it first."""
    while node.get_type_name() != kind:
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    return node


def attention_windows(model: Any, longest: int) -> list[int | None] | None:
    """How many tokens each attention sees, itself included; None for all. None at all if one of them does more.

    OpenVINO's transformation drops the masks, so that what they do besides causality must be known. The masks are
    computed for the last of ``longest`` tokens, and for a few padded ones.

    Args:
        model: of the inputs of `optkit.engines.cached_program.INPUTS`, keys and values, and weights.
        longest: the most tokens that the model takes.
    """
    import openvino as ov
    from openvino import opset13 as ops

    probe = model.clone()
    layers = [node for node in probe.get_ordered_ops() if node.get_type_name() == ATTENTION]
    if not layers or any(node.get_input_size() < 4 or node.get_attributes()["causal"] for node in layers):
        return None
    masks = [node.input_value(3) for node in layers]
    names = [_name(mask) for mask in masks]
    distinct = dict(zip(names, masks, strict=True))
    results = [ops.result(mask) for mask in distinct.values()]
    read = _parameters(results)
    compiled = core().compile_model(ov.Model(results, read), "CPU")

    def seen(new: int, earlier: int, padded: int) -> list[NDArray[np.bool_] | None]:
        given = [_example(node, new, earlier, padded) for node in read]
        found = compiled.create_infer_request().infer(given, share_inputs=True)
        return [_seen(found[place], (new, earlier + new)) for place in range(len(results))]

    few = seen(3, 2, 1)
    causal = np.tril(np.ones((3, 5), bool), 2) & (np.arange(5) >= 1)
    found: dict[str, int | None] = {}
    for name, short, last in zip(distinct, few, seen(1, longest - 1, 0), strict=True):
        if short is None or last is None or not last[0, -1]:
            return None
        window = int(np.argmin(last[0, ::-1])) or longest
        inside = np.triu(np.ones((3, 5), bool), 3 - window)
        if last.sum() != window or not np.array_equal(short, causal & inside):
            return None
        found[name] = window if window < longest else None
    return [found[name] for name in names]


def _name(put: Any) -> str:
    return f"{put.get_node().get_friendly_name()}:{put.get_index()}"


def _parameters(results: list[Any]) -> list[Any]:
    """The inputs of the model that some results are computed of."""
    todo, known, found = list(results), set[str](), []
    while todo:
        node = todo.pop()
        if node.get_friendly_name() in known:
            continue
        known.add(node.get_friendly_name())
        if node.get_type_name() == "Parameter":
            found.append(node)
        todo += [put.get_source_output().get_node() for put in node.inputs()]
    return found


def _example(node: Any, new: int, earlier: int, padded: int) -> NDArray[Any]:
    """What stands for an input in one row of tokens."""
    name = node.get_friendly_name()
    if name not in INPUTS:  # keys and values, whose sizes alone matter; memory that nobody writes to takes no room
        shape = [1 if put.is_dynamic else put.get_length() for put in node.get_output_partial_shape(0)]
        shape[2] = earlier
        return np.empty(shape, node.get_output_element_type(0).to_dtype())
    mask = np.ones((1, earlier + new), np.int64)
    mask[:, :padded] = 0
    return {
        "input_ids": np.zeros((1, new), np.int64),
        "attention_mask": mask,
        "position_ids": np.arange(earlier - padded, earlier - padded + new, dtype=np.int64)[None],
        "places": np.zeros(1, np.int64),
    }[name]


def _seen(mask: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Which tokens each new one sees; None where a mask differs by head or adds something to the scores."""
    if mask.shape != (1, 1, *shape):
        return None
    if mask.dtype == bool:
        return mask[0, 0]
    return mask[0, 0] == 0 if np.all((mask == 0) | (mask < BLOCKED)) else None
