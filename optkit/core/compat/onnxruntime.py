"""Errors of ONNX Runtime."""

from __future__ import annotations

from optkit.core.compat.versions import private


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What a session raises for a file or for inputs that it does not run (onnxruntime 1.32)."""
    return (
        private("onnxruntime.capi.onnxruntime_pybind11_state.Fail"),
        private("onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph"),
        private("onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf"),
        private("onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented"),
        private("onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument"),
        private("onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException"),
    )
