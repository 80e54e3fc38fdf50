"""This machine's own peaks: matrix products at each precision and memory bandwidth, measured once and kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from optkit.core.cache import cache_dir, read_json, write_json
from optkit.core.environment import cpu
from optkit.core.errors import UserError, first_line
from optkit.core.locks import exclusive
from optkit.core.threads import use_threads
from optkit.core.turns import timing_turn
from optkit.core.variant import variant_id

log = logging.getLogger(__name__)
SMALLEST, SIZE = 256, 2048
SECONDS = 0.5
COPIED = 1 << 27
READING = "read_gb_s"
READ = 1 << 30  # bytes, more than a last-level cache holds


def peaks(threads: int, again: bool = False) -> dict[str, float]:
    """The peaks at so many torch threads, in 1e9 operations a second, and of memory in 1e9 bytes a second.

    The best of repeated products of square matrices, up to 2048 wide or as wide as half a second allows, of copies of
    128 MB (``memory_gb_s``), and of products of a matrix of 1 GB with a vector, which read it once (``read_gb_s``):
    what this machine reaches at all, not what it reaches on average. Kept in the cache by processor, threads and torch;
    ``again`` measures them anew. A precision without kernels here has no entry.
    """
    path = peaks_file(threads)
    found = None if again else read_json(path)
    if found is None or READING not in found:
        try:
            with exclusive(path.with_suffix(".lock"), "measuring this machine's peaks"):
                found = _completed(None if again else read_json(path), threads)
                write_json(path, found, key="OPTKIT_CACHE")
        except UserError as error:
            log.warning("this machine's peaks are not kept: %s", error)
            found = _completed(found, threads)
    return found


def _completed(found: dict[str, float] | None, threads: int) -> dict[str, float]:
    """The peaks, with what is missing measured."""
    if found is None:
        return measure_peaks(threads)
    # peaks that were written before reading was measured
    return found if READING in found else found | {READING: measure_reading(threads)}


def peaks_file(threads: int) -> Path:
    """Where the peaks at so many threads are kept."""
    return cache_dir() / "peaks" / f"{variant_id(cpu(), threads, torch.__version__, sorted(PRODUCTS))}.json"


def measure_peaks(
    threads: int, size: int = SIZE, seconds: float = SECONDS, copied: int = COPIED, read: int = READ
) -> dict[str, float]:
    """The same, measured now, ``seconds`` for each."""
    found = {}
    with use_threads(threads), timing_turn("timing this machine's peaks"):
        for name, product in PRODUCTS.items():
            try:
                found[name] = _rate(product, size, seconds)
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                log.info("no peak for %s, which has no kernels here: %s", name, first_line(error))
        source, target = torch.ones(copied, dtype=torch.uint8), torch.empty(copied, dtype=torch.uint8)
        found["memory_gb_s"] = 2 * copied / _best(lambda: target.copy_(source), seconds) / 1e9
        found = {name: round(value, 2) for name, value in found.items()}
    return found | {READING: measure_reading(threads, seconds, read)}


def measure_reading(threads: int, seconds: float = SECONDS, read: int = READ) -> float:
    """1e9 bytes a second that a product of a matrix and a vector reads: what limits a model that generates.

    Args:
        threads: of torch.
        seconds: of measuring.
        read: bytes of the matrix.
    """
    width = 1024
    with use_threads(threads), timing_turn("timing this machine's memory"):
        matrix, vector = torch.ones(max(read // (4 * width), 1), width), torch.ones(width)
        return round(matrix.numel() * 4 / _best(lambda: matrix @ vector, seconds) / 1e9, 2)


def _of_floats(size: int, dtype: torch.dtype) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    return lambda: left @ right


def _of_int8(size: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 127, (size, size), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 127, (size, size), dtype=torch.int8, generator=generator)
    packed = torch.ops.onednn.qlinear_prepack(weight, [size, size])
    scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.long)
    options: tuple[object, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(rows, 1.0, 0, packed, scales, zeros, *options)


# a matrix size -> a product of two such matrices
PRODUCTS: dict[str, Callable[[int], Callable[[], object]]] = {
    "fp32": lambda size: _of_floats(size, torch.float32),
    "bf16": lambda size: _of_floats(size, torch.bfloat16),
    "fp16": lambda size: _of_floats(size, torch.float16),
    "int8": _of_int8,
}


def _rate(product: Callable[[int], Callable[[], object]], size: int, seconds: float) -> float:
    """1e9 operations a second, at the best of the sizes up to this one.

    Sizes double until one takes an eighth of the time there is: a processor without instructions for a precision needs
    minutes for the largest.
    """
    best, side = 0.0, min(SMALLEST, size)
    while True:
        took = _best(product(side), seconds if side == size else seconds / 8)
        best = max(best, 2 * side**3 / took / 1e9)
        if side >= size or 8 * took > seconds:
            return best
        side = min(2 * side, size)


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
