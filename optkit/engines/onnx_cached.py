"""A generating module as an ONNX file: keys and values of earlier tokens come in, those of all tokens go out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optkit.core.errors import StageError
from optkit.core.generation import Generative
from optkit.engines.cached_program import INPUTS, export_cached
from optkit.engines.matmul_nbits import DOMAIN, read_integers
from optkit.engines.onnx_file import drop_origin, onnx_failures, quiet
from optkit.engines.program import innermost_reason

WEIGHTS = ".data"  # behind the name of a file: the file of its weights, of which ONNX allows 2 GB in the file itself
LOGITS = "logits"


@dataclass(frozen=True)
class CachedFile:
    """What was written.

    Attributes:
        past: keys and values of no tokens, ``(1, heads, 0, width)`` each.
        packed: how many layers read integers, by bits.
    """

    past: tuple[Tensor, ...]
    packed: dict[str, int]


def write_cached(module: Generative, path: Path, accuracy_level: int) -> CachedFile:
    """Writes the form of a module with a cache, and its weights beside it.

    Inputs are `INPUTS`, then ``past_0``, ``past_1``, ...; outputs are ``logits``, ``present_0``, ...; see
    `CachedModel`. The numbers of rows, tokens, earlier tokens and places are free.

    Args:
        module: in eval mode.
        path: of the file; its weights go to the same path with ``.data`` behind it.
        accuracy_level: of products with weights of few bits, see `optkit.engines.matmul_nbits`.

    Raises:
        StageError: torch cannot export it, or ONNX has no operator for a part of it; the message names it.
    """
    import onnx_ir as ir

    found = export_cached(module.cached())
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(found.program, dynamo=True, verbose=False)
    except onnx_failures() as error:
        raise StageError(f"cannot write this model as ONNX: {innermost_reason(error)}") from error
    assert exported is not None
    model = exported.model
    drop_origin(model)
    given = list(model.graph.inputs)
    first_weight = len(INPUTS) + len(found.past)
    for value, layer in zip(given[first_weight:], found.packed, strict=True):
        read_integers(model, value, layer, accuracy_level)
    if found.packed:
        model.opset_imports[DOMAIN] = 1
    del model.graph.inputs[first_weight:]
    past, present = (tuple(f"{name}_{n}" for n in range(len(found.past))) for name in ("past", "present"))
    for value, name in zip(model.graph.inputs, (*INPUTS, *past), strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, (LOGITS, *present), strict=True):
        value.name = name
    ir.save(model, path, external_data=path.name + WEIGHTS)
    return CachedFile(found.past, dict(Counter(str(layer.bits) for layer in found.packed)))
