"""Freed memory is kept: a fresh process trains or times, and then allocates without a page fault."""

import json
import platform
import subprocess
import sys

import pytest

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
TRAINING = """
from optkit.models import MLP
from optkit.tasks import Digits
from optkit.training import TaskLoss, Trainer
task = Digits(limit=64)
trainer = Trainer(epochs=1, batch_size=64)
trainer.fit(MLP((1, 16, 16)), task, TaskLoss(task), seed=0, workdir=Path(sys.argv[1]), device=torch.device("cpu"))
"""
TIMING = """
from optkit.measure.latency import interleaved
interleaved({"one": torch.neg}, (torch.ones(1),), 0.01, 0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("what", [TRAINING, TIMING], ids=["training", "timing"])
def test_a_process_that_trains_or_times_keeps_what_it_frees(what, tmp_path):
    command = [sys.executable, "-c", FAULTS.format(what=what), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before > 4 * after + 100
