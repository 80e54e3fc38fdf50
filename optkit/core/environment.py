"""What a figure depends on besides the model: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from optkit.core.allocator import keep_freed_memory
from optkit.core.compat.versions import version_of
from optkit.core.cores import default_threads, usable_cores
from optkit.core.errors import UserError

PACKAGES = (
    "optkit",
    "torch",
    "torchvision",
    "torchao",
    "accelerate",
    "transformers",
    "datasets",
    "evaluate",
    "onnxruntime",
    "openvino",
)
ENGINES = ("torch", "onnxruntime", "openvino")  # the packages whose versions latencies depend on
INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def versions() -> dict[str, str | None]:
    """Versions of what optkit builds on, without importing any of it; None where a package is not installed."""
    return {name: version_of(name) for name in PACKAGES}


@cache
def cpu() -> dict[str, Any]:
    """The processor's name, the cores this process may use, and the vector instructions that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
        "amx_fp16",
        "asimddp",
        "i8mm",
        "bf16",
    )
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores().count,
        "isa": [flag for flag in wanted if flag in flags],
    }


@cache
def gpu() -> dict[str, Any] | None:
    """The CUDA device that torch takes first, and the version of its driver; None where there is no device."""
    import torch

    if not torch.cuda.is_available():
        return None
    driver = Path("/sys/module/nvidia/version")
    return {"name": torch.cuda.get_device_name(), "driver": driver.read_text().strip() if driver.exists() else None}


def available_cores() -> int:
    """As many threads as optkit takes by itself: cores this process may use, and no more than ``OMP_NUM_THREADS``."""
    return default_threads().count


def has_int8_dot_product(recorded: Mapping[str, Any]) -> bool | None:
    """Whether the processor of a recorded environment multiplies int8 faster than floats; None if it is not known."""
    isa = recorded.get("cpu", {}).get("isa")
    return None if isa is None else not INT8_DOT_PRODUCTS.isdisjoint(isa)


def same_timing(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether latencies of two recorded environments compare: processor, cores, GPU, threads, engines' versions."""

    def described(recorded: Mapping[str, Any]) -> list[Any]:
        packages = recorded.get("packages", {})
        return [*(recorded.get(key) for key in ("cpu", "gpu", "threads")), *(packages.get(name) for name in ENGINES)]

    return described(one) == described(other)


def environment(threads: int) -> dict[str, Any]:
    """What goes into every record."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": threads,
        "freed_memory": "kept" if keep_freed_memory() else "returned",
        "cpu": cpu(),
        "gpu": gpu(),
        "packages": versions(),
    }


def check_single_process() -> None:
    """Refuses to work as one of several processes of ``torchrun``: each would do all of the work.

    Raises:
        UserError: this is such a process.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world not in ("", "1") and ("RANK" in os.environ or "LOCAL_RANK" in os.environ):
        fix = "start optkit without torchrun, or unset WORLD_SIZE"
        raise UserError(f"optkit trains in one process so far, and torchrun started {world}", fix=fix)
