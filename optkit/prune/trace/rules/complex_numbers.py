"""Rules for complex numbers and Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optkit.prune.trace.rules.pointwise import broadcast, zero_at
from optkit.prune.trace.values import Trace, Value


def transform(trace: Trace, out: Any, x: Value, dims: Sequence[int], *_: Any) -> Value:
    """A Fourier transform mixes what lies along its dimensions, and leaves the others alone."""
    axes = list(x.axes)
    for d in dims:
        axes[d] = trace.space.freeze(axes[d])
    return Value(out.sizes, axes, list(x.zero))


def fft(trace: Trace, out: Any, x: Value, n: int | None = None, dim: int = -1, norm: str | None = None) -> Value:
    """Along one dimension."""
    return transform(trace, out, x, [dim])


def fft2(trace: Trace, out: Any, x: Value, s: Any = None, dim: Sequence[int] = (-2, -1), norm: Any = None) -> Value:
    """Along two dimensions."""
    return transform(trace, out, x, dim)


def fftn(trace: Trace, out: Any, x: Value, s: Any = None, dim: Sequence[int] | None = None, norm: Any = None) -> Value:
    """Along several dimensions: those of ``dim``, or the last ones, as many as sizes are given, or all."""
    last = range(-len(s), 0) if s else range(-len(x.shape), 0)
    return transform(trace, out, x, last if dim is None else dim)


def parts(trace: Trace, out: Any, x: Value) -> Value:
    """Real and imaginary part side by side, in a new last dimension."""
    return Value(out.sizes, [*x.axes, None], [*x.zero, True])


def joined(trace: Trace, out: Any, x: Value) -> Value:
    """The inverse of ``parts``."""
    trace.space.freeze(x.axes[-1], "")
    return Value(out.sizes, x.axes[:-1], x.zero[:-1])


def same(trace: Trace, out: Any, x: Value) -> Value:
    """The real part, the imaginary part, the conjugate."""
    return Value(out.sizes, list(x.axes), list(x.zero))


def of_two(trace: Trace, out: Any, a: Value, b: Value) -> Value:
    """A complex number from two real ones; it is zero where both are."""
    value = broadcast(trace, [a, b])
    value.zero = [zero_at(a, k) and zero_at(b, k) for k in range(-len(value.shape), 0)]
    return value


def polar(trace: Trace, out: Any, length: Value, angle: Value) -> Value:
    """A complex number from its absolute value and angle; it is zero where the former is."""
    value = broadcast(trace, [length, angle])
    value.zero = [zero_at(length, k) for k in range(-len(value.shape), 0)]
    return value


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"), fft),
    **dict.fromkeys(("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"), fft2),
    **dict.fromkeys(("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn"), fftn),
    **dict.fromkeys(("_fft_c2c", "_fft_r2c", "_fft_c2r"), transform),
    **dict.fromkeys(("real", "imag", "conj", "_conj", "conj_physical", "resolve_conj", "resolve_neg"), same),
    "view_as_real": parts,
    "view_as_complex": joined,
    "complex": of_two,
    "polar": polar,
}
