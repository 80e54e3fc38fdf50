"""torchao's quantizers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from optkit.core.compat.versions import gone


def annotation(inputs: Mapping[Any, Any]) -> Any:
    """What tells torchao to quantize the inputs of a node, and that other rules leave the node alone (torchao 0.18).

    Args:
        inputs: specifications by the nodes that are read.

    Raises:
        UserError: torchao's annotations take no such mark.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    mark = "_annotated"
    if mark not in inspect.signature(QuantizationAnnotation).parameters:
        raise gone(f"torchao.quantization.pt2e.quantizer.QuantizationAnnotation({mark})")
    return QuantizationAnnotation(input_qspec_map=dict(inputs), **{mark: True})
