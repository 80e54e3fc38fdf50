"""Errors of ONNX Runtime."""

from __future__ import annotations

from optkit.core.compat.versions import private

_STATE = "onnxruntime.capi.onnxruntime_pybind11_state"


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What a session raises for a file or for inputs that it does not run (onnxruntime 1.32)."""
    kinds = ("Fail", "InvalidGraph", "NotImplemented", "InvalidArgument", "RuntimeException")
    return tuple(private(f"{_STATE}.{kind}") for kind in kinds)
