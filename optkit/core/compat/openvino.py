"""Transformations of OpenVINO's models."""

from __future__ import annotations

from typing import Any

from optkit.core.compat.versions import private


def to_paged_attention(model: Any) -> None:
    """Makes a stateful model, in place, one of paged attention, keys and values as inputs (openvino 2026.4).

    Raises:
        RuntimeError: the model has no attention that OpenVINO knows as such.
    """
    private("openvino._offline_transformations.paged_attention_transformation")(model)
