"""OpenVINO's core, one for the process, and its transformations of models."""

from __future__ import annotations

from functools import cache
from typing import Any

from optkit.core.compat.versions import private


@cache
def core() -> Any:
    """The ``openvino.Core`` of this process; it is never freed.

    Each core loads its own CPU plugin, which gives the thread an alternate stack for signal handlers, and puts the one
    before back when it is freed (openvino 2026.4). Of two cores, the first freed first, that one is freed memory: the
    next signal ends the process by a segmentation fault, and a training saves nothing.
    """
    import openvino

    return openvino.Core()


@cache
def conversion_errors() -> tuple[type[Exception], ...]:
    """What converting a model of another framework raises; some of it is no RuntimeError (openvino 2026.4)."""
    from openvino import frontend

    names = (
        "OpConversionFailure",
        "OpValidationFailure",
        "NotImplementedFailure",
        "InitializationFailure",
        "GeneralFailure",
    )
    return (RuntimeError, *(getattr(frontend, name) for name in names if hasattr(frontend, name)))


def to_paged_attention(model: Any) -> None:
    """Makes a stateful model, in place, one of paged attention, keys and values as inputs (openvino 2026.4).

    Raises:
        RuntimeError: the model has no attention that OpenVINO knows as such.
    """
    private("openvino._offline_transformations.paged_attention_transformation")(model)
