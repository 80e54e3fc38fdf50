"""What int8 graphs are refused for: models that generate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optkit.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def refuse_generative(module: nn.Module, what: str) -> None:
    """Raises UserError for a model that generates: an int8 graph has no form with a cache.

    Args:
        module: the model.
        what: was asked for.
    """
    from optkit.core.generation import Generative

    if isinstance(module, Generative):
        fix = "quantize/weight_only with smooth=0.5, on openvino with dynamic_quantization_group_size"
        raise UserError(f"{what} makes a graph without a cache, and this model generates", key="stages", fix=fix)
