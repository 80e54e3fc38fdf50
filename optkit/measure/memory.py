"""A fresh process that loads a variant and serves it: its peak memory, and how long it takes to the first answer.

The same process proves that the variant reloads. Run as ``python -m optkit.measure.memory FOLDER THREADS TRUST START``:
reads the session saved in FOLDER and its ``inputs.safetensors``, writes ``outputs.safetensors``, and prints the peak in
MB and the seconds since START, on the clock that all processes of a machine share, as JSON.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from optkit.core.allocator import keep_freed_memory
from optkit.core.engine import Session
from optkit.core.errors import StageError
from optkit.core.generation import Generator
from optkit.core.probe import PROBE_FILE
from optkit.core.records import Measurement
from optkit.core.structure import tensors

log = logging.getLogger(__name__)
INPUTS, OUTPUTS = "inputs.safetensors", "outputs.safetensors"
CALLS = 3
STEPS = 4  # tokens behind a prompt
SAME = 1e-4
SAME_ON_GPU = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}  # a fresh process may choose other kernels there


def measure_memory(
    session: Session, inputs: tuple[Tensor, ...], threads: int, trusted: tuple[str, ...], conditions: dict
) -> list[Measurement]:
    """Saves the session and opens it in a fresh process.

    Returns:
        ``peak_memory``, its peak resident memory while serving, and ``load``, from its start to its first answer.

    Raises:
        StageError: the fresh process failed, or gave other answers than this one.
    """
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="optkit-") as name:
        folder = Path(name)
        session.save(folder)
        # its answers are compared with ours here; the check of int8 would need memory of its own
        (folder / PROBE_FILE).unlink(missing_ok=True)
        save_file({str(n): x.contiguous() for n, x in enumerate(inputs)}, folder / INPUTS)
        command = [sys.executable, "-m", "optkit.measure.memory", str(folder), str(threads), ",".join(trusted)]
        command.append(str(time.monotonic()))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StageError(f"the saved variant does not run in a fresh process: {reason}")
        theirs = load_file(folder / OUTPUTS)
    ours = [x.float() for x in _answers(session, inputs) if x.numel()]
    differences = [float((theirs[str(n)] - x).abs().max() / x.abs().max().clamp(min=1e-9)) for n, x in enumerate(ours)]
    difference = max(differences, default=0.0)
    facts = session.facts()
    if not difference <= (SAME_ON_GPU[facts["precision"]] if "device" in facts else SAME):
        raise StageError(f"the variant reloaded in a fresh process differs by {difference:.1e} relative")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    conditions = conditions | {"reload_difference": difference}
    return [
        Measurement("peak_memory", found["peak_mb"], unit="MB", conditions=conditions),
        Measurement("load", found["load_s"], unit="s", conditions=conditions),
    ]


def _serve(folder: Path, threads: int, trusted: tuple[str, ...], start: float) -> None:
    from safetensors.torch import load_file, save_file

    from optkit.engines.loading import load

    torch.set_num_threads(threads)
    keep_freed_memory()  # as where it is timed
    given = load_file(folder / INPUTS)
    inputs = tuple(given[str(n)] for n in range(len(given)))
    session = load(folder, trust=trusted)
    _answers(session, inputs)
    ready = time.monotonic() - start
    # from here on the kernel's high-water mark counts serving alone, not the compiler that ran before
    marked = _reset_peak()
    for _ in range(CALLS):
        answers = _answers(session, inputs)
    print(json.dumps({"peak_mb": _peak_mb() if marked else None, "load_s": ready}))
    found = [x.float().clone(memory_format=torch.contiguous_format) for x in answers if x.numel()]
    save_file({str(n): x for n, x in enumerate(found)}, folder / OUTPUTS)


def _answers(session: Session | nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a session gives; one that generates reads the prompts, and behind them their first tokens once more."""
    if not isinstance(session, Generator):
        return tensors(session(*inputs))
    (prompts,) = inputs
    return [session.start(prompts), *(session.step(prompts[:, n]) for n in range(min(STEPS, prompts.shape[1])))]


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        log.info("no peak of memory here: %s", error)
        return False
    return True


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e6


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), tuple(t for t in sys.argv[3].split(",") if t), float(sys.argv[4]))
