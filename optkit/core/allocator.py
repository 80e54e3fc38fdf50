"""The C library's allocator, told to keep what is freed, so that no step and no call waits for the kernel."""

from __future__ import annotations

import ctypes
import logging
import platform
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1
log = logging.getLogger(__name__)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation, until this process ends; the log says so once.

    By default glibc gives a freed tensor of some MB back to the system, and the next one of the same size is mapped and
    zeroed anew: thousands of page faults in every step of a training and every call of a model. How many depends on the
    blocks that the process freed before, for the thresholds adapt, and so would a latency. See mallopt(3): freed memory
    is never trimmed, and large blocks are not mapped by themselves. What the process holds is then the most it ever
    needed. It cannot be undone, since setting a threshold ends its adapting. Another C library has no such setting.
    """
    _set()


def keeps_freed_memory() -> bool:
    """Whether this process keeps freed memory; changes nothing."""
    return _set.cache_info().currsize > 0 and _set()


@cache
def _set() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
    if done:
        log.debug("this process keeps the memory that it frees until it ends (mallopt)")
    return done
