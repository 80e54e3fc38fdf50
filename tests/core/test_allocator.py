"""Freed memory is kept where that is asked for: then a process allocates without a page fault."""

import json
import platform
import subprocess
import sys

import pytest

from optkit.core import allocator

FAULTS = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 << 20)  # 64 MB, beyond what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
{what}
faults()  # the first blocks are new to the heap
print(json.dumps([before, faults()]))
"""
RUNNING = """
from optkit.pipeline import run
try:
    run(None)
except AttributeError:  # this is no plan
    pass
"""
LOOKING = """
from optkit.core.environment import environment
assert environment(1, ())["freed_memory"] == "returned"
"""
TIMING = """
from optkit.measure.latency import interleaved
interleaved({"one": torch.neg}, (torch.ones(1),), 0.01, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("what", "kept"), [(RUNNING, True), (TIMING, True), (LOOKING, False)])
def test_a_process_that_runs_or_times_keeps_what_it_frees_and_one_that_looks_does_not(what, kept):
    command = [sys.executable, "-c", FAULTS.format(what=what)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert (before > 4 * after + 100) == kept


def test_the_environment_says_whether_freed_memory_is_kept(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("another", ""))
    allocator._set.cache_clear()
    assert not allocator.keeps_freed_memory()
    allocator.keep_freed_memory()
    assert not allocator.keeps_freed_memory()
    allocator._set.cache_clear()
