"""Several processes of one command, with the variables that torchrun sets, and a recipe that trains for long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

LONG = """
defaults:
  - optkit
  - stage@stages.train: train
  - _self_
  - override model: mlp
  - override engine@engines.inductor: eager
name: long
chain: [train]
model: {widths: [16]}
task: {image_size: 8, limit: 64}
stages: {train: {trainer: {epochs: 100000, batch_size: 16, precision: fp32}}}
measure: {seconds: 0.05, batch_sizes: [1], memory: false}
threads: 1
"""


def start(*arguments: str, count: int = 2, cwd: Path | None = None) -> list[subprocess.Popen[str]]:
    """Starts ``python -m ...`` so many times; who starts them waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torchruns = {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(Path(__file__).parents[1])}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=os.environ | of_all | torchruns | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str, str]:
    """Exit codes, and what all of them said to standard output and to standard error."""
    said = [process.communicate(timeout=300) for process in processes]
    return [p.returncode for p in processes], "".join(out for out, _ in said), "".join(err for _, err in said)
