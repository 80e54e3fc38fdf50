"""Energy a request, if the machine has readable counters: RAPL for processors, NVML for GPUs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from optkit.core.records import Measurement
from optkit.core.turns import timing_turn
from optkit.core.workload import Request

log = logging.getLogger(__name__)
RAPL = Path("/sys/class/powercap")
SECONDS = 1.0
CALLS = 5  # before requests that leave something behind are reset
# name to a function that gives joules since some moment, and joules after which that starts again (0: never)
Counters = dict[str, tuple[Callable[[], float], float]]


def energy_counters(root: Path = RAPL) -> Counters:
    """The readable counters: a RAPL package or an NVML device each; empty if there are none.

    RAPL's ``psys`` is the whole board, packages included, and is left out.
    """
    found: Counters = {}
    for package in sorted(root.glob("intel-rapl:?")):
        try:
            name = (package / "name").read_text().strip()
            wraps = int((package / "max_energy_range_uj").read_text()) / 1e6
            _joules(package)
        except PermissionError:
            continue  # not for this user to read
        except (OSError, ValueError) as error:
            log.info("no energy of %s: %s", package.name, error)
            continue
        if name.startswith("package"):
            found[f"rapl {name}"] = (partial(_joules, package), wraps)
    return found | _nvml()


def _joules(package: Path) -> float:
    return int((package / "energy_uj").read_text()) / 1e6


def _nvml() -> Counters:
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        log.info("no energy of GPUs: %s", error)
        return {}

    def joules(handle: Any) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    return {f"nvml {n}": (partial(joules, handle), 0.0) for n, handle in enumerate(handles)}


def measure_energy(request: Request, conditions: dict, counters: Counters, seconds: float = SECONDS) -> Measurement:
    """Joules a request while it is made for a second, idle power of the counted parts included.

    Without counters the value is None.
    """
    if not counters:
        return Measurement("energy", None, unit="J", conditions=conditions)
    with timing_turn("measuring energy"):
        request.call()
        before = {name: read() for name, (read, _) in counters.items()}
        calls, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            if request.reset is not None and calls % CALLS == 0:
                request.reset()
            request.call()
            calls += 1
        after = {name: read() for name, (read, _) in counters.items()}
    used = 0.0
    for name, (_, wraps) in counters.items():
        difference = after[name] - before[name]
        used += difference + wraps if difference < 0 else difference
    return Measurement("energy", used / calls, "J", n=calls, conditions=conditions | {"counters": sorted(counters)})
