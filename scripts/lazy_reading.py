"""Reads a folder of 1.3 million images: seconds to the first batch, memory and busy cores over 2,000 batches.

The files are hard links to 1,000 JPEG images that are made here, in class folders of a temporary folder, which is
removed at the end. The reading is a process of its own, which starts with nothing but the folder: it imports torch,
lists the files, makes the fingerprint, and trains a small network. Memory is that of the process and of its workers,
shared pages counted once (PSS). ``OMP_NUM_THREADS`` limits the threads that train and the workers that read:
leave it unset to see all cores busy.

    python -m scripts.lazy_reading

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

REAL, CLASSES = 1000, 1000
EVERY = 100  # batches between two looks at memory


def generate(folder: Path, files: int) -> None:
    """Writes ``train/`` with so many files, and ``test/`` with a hundredth of them."""
    real = folder / "real"
    real.mkdir()
    random = np.random.default_rng(0)
    for n in range(REAL):
        noise = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        noise.resize((96, 72), Image.Resampling.BICUBIC).save(real / f"{n}.jpg", quality=80)
    for split, count in (("train", files), ("test", files // 100)):
        for n in range(CLASSES):
            (folder / split / f"class_{n:03}").mkdir(parents=True)
        for n in range(count):
            os.link(real / f"{n % REAL}.jpg", folder / split / f"class_{n % CLASSES:03}" / f"{n:07}.jpg")


def measure(folder: Path, size: int, batch_size: int, batches: int) -> dict[str, object]:
    """Trains on the first batches, and looks at the clock, the memory and the processors."""
    started = psutil.Process().create_time()
    import torch

    from optkit.models import SmallCNN
    from optkit.tasks import ImageFolder

    task = ImageFolder(path=str(folder), image_size=size, mean=[0.5] * 3, std=[0.25] * 3)
    defaults = task.model_defaults()
    fingerprint = task.fingerprint
    listed = time.time() - started
    model = SmallCNN(in_channels=3, num_classes=defaults["num_classes"], widths=(8, 16))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    memory: list[float] = []
    first, before, clock, seconds, used, workers = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for n, batch in enumerate(task.batches("train", batch_size, training=True, seed=0)):
        if n == 0:
            first = time.time() - started
            before, clock, workers = _cpu_seconds(), time.perf_counter(), len(_processes()) - 1
        if n == batches:
            seconds, used = time.perf_counter() - clock, _cpu_seconds() - before
            break
        task.loss(task.forward(model, batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if n % EVERY == EVERY - 1:
            memory.append(_memory_mb())
    return {
        "images": task.size("train") + task.size("validation"),
        "fingerprint": fingerprint,
        "listed_s": round(listed, 1),
        "first_batch_s": round(first, 1),
        "first_batch_cpu_s": round(before, 1),
        "batches": batches,
        "images_per_s": round(batches * batch_size / seconds),
        "busy_cores": round(used / seconds, 2),
        "threads": torch.get_num_threads(),
        "workers": workers,
        "memory_mb": memory,
        "memory_halves_mb": [round(float(np.mean(half)), 1) for half in np.array_split(memory, 2)],
        "facts": task.facts(),
    }


def _processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _memory_mb() -> float:
    return round(sum(process.memory_full_info().pss for process in _processes()) / 1e6, 1)


def _cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


def main() -> None:
    """Makes the files, measures, and removes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_300_000)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="of an earlier run with --keep")
    parser.add_argument("--keep", action="store_true", help="do not remove the folder")
    parser.add_argument("--measure", action="store_true", help="only the reading, in this process")
    options = parser.parse_args()
    if options.measure:
        found = measure(options.folder, options.size, options.batch_size, options.batches)
        print(json.dumps(found))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lazy-reading-"))
    try:
        if options.folder is None:
            generate(folder, options.files)
            print(f"{options.files} files are in {folder}", file=sys.stderr)
        again = [f"--folder={folder}", f"--size={options.size}", f"--batch-size={options.batch_size}"]
        command = [sys.executable, "-m", "scripts.lazy_reading", "--measure", *again, f"--batches={options.batches}"]
        subprocess.run(command, check=True)
    finally:
        if not options.keep and options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
