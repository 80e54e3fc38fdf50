"""What a figure depends on besides the model: versions, processor, threads."""

from __future__ import annotations

import hmac
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from optkit.core.allocator import keeps_freed_memory
from optkit.core.compat.versions import version_of
from optkit.core.cores import usable_cores

PACKAGES = (
    "optkit",
    "torch",
    "torchvision",
    "torchao",
    "accelerate",
    "transformers",
    "datasets",
    "evaluate",
)
# the packages whose versions latencies depend on in older records, which have no `engine_packages`
ENGINE_PACKAGES = ("torch", "onnxruntime", "openvino")
INT8_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def versions(engine_packages: Iterable[str] = ()) -> dict[str, str | None]:
    """Versions of what optkit and its engines build on, without importing any of it; None for what is not installed."""
    return {name: version_of(name) for name in (*PACKAGES, *engine_packages)}


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


@cache
def machine() -> str:
    """8 hex digits that tell this machine from others: of a keyed hash of its id and its name, which stay here."""
    ids = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
    own = next((path.read_text().strip() for path in ids if path.is_file()), "")
    return hmac.digest(b"optkit", f"{own} {platform.node()}".encode(), "sha256").hex()[:8]


def has_int8_dot_product(recorded: Mapping[str, Any]) -> bool | None:
    """Whether the processor of a recorded environment multiplies int8 faster than floats; None if it is not known."""
    isa = recorded.get("cpu", {}).get("isa")
    return None if isa is None else not INT8_DOT_PRODUCTS.isdisjoint(isa)


def timing_packages(recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages whose versions the latencies of a recorded environment depend on."""
    return tuple(recorded.get("engine_packages", ENGINE_PACKAGES))


def same_timing(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether latencies of two recorded environments compare: processor, cores, GPU, threads, engines' versions.

    The version of an engine that only one of them used makes no difference.
    """
    if any(one.get(key) != other.get(key) for key in ("cpu", "gpu", "threads")):
        return False
    used = set(timing_packages(one)) & set(timing_packages(other))
    versions_of = [recorded.get("packages", {}) for recorded in (one, other)]
    return all(versions_of[0].get(name) == versions_of[1].get(name) for name in used)


def environment(threads: int, engine_packages: Iterable[str]) -> dict[str, Any]:
    """What goes into every record.

    Args:
        threads: of the run.
        engine_packages: the packages of the engines that were measured, which latencies depend on.
    """
    engine_packages = tuple(engine_packages)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": threads,
        "freed_memory": "kept" if keeps_freed_memory() else "returned",
        "cpu": cpu(),
        "gpu": gpu(),
        "packages": versions(engine_packages),
        "engine_packages": list(engine_packages),
    }
