"""How many cores this process may use, how many threads it takes by itself, and what says so."""

from __future__ import annotations

import os
from dataclasses import dataclass

from optkit.core.cgroup import cpu_quota
from optkit.core.processes import OMP, ignored_omp_num_threads


@dataclass(frozen=True)
class Limit:
    """A number of cores or threads, and where it comes from."""

    count: int
    source: str

    def __str__(self) -> str:
        return f"{self.count}: {self.source}"


def default_threads() -> Limit:
    """Threads that a run takes by itself: the cores that it may use, and no more than ``OMP_NUM_THREADS``."""
    return _tightest(usable_cores(), _omp_num_threads())


def usable_cores() -> Limit:
    """Cores that the machine has, that the affinity mask allows, and that the quotas of control groups pay for."""
    return _tightest(Limit(os.cpu_count() or 1, "all cores of the machine"), _affinity(), _quota())


def _tightest(*limits: Limit | None) -> Limit:
    """The smallest; of equals the first."""
    return min((limit for limit in limits if limit is not None), key=lambda limit: limit.count)


def _affinity() -> Limit | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    return Limit(len(os.sched_getaffinity(0)), "affinity mask")


def _quota() -> Limit | None:
    """Whole cores only: one thread more would be stopped in every period, and the others would wait for it."""
    quota = cpu_quota()
    if quota is None:
        return None
    return Limit(max(int(quota.cores), 1), f"cgroup quota {100 * quota.cores:.0f}% ({quota.file})")


def _omp_num_threads() -> Limit | None:
    """OpenMP's variable: a number, or a list of which the first is for the outermost level; nothing else counts.

    Nor does the 1 that torchrun sets: a run plans, and measures, with the threads that it has in one process.
    """
    if ignored_omp_num_threads():
        return None
    text = os.environ.get(OMP, "").split(",")[0].strip()
    return Limit(int(text), "OMP_NUM_THREADS") if text.isdecimal() and int(text) > 0 else None
