"""Train on own images, make the model int8, and run it where there is neither optkit nor torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import optkit

# images of two classes, as files: stripes that lie, and stripes that stand
random = np.random.default_rng(0)
for split, count in (("train", 60), ("test", 40)):
    for name in ("lying", "standing"):
        folder = Path("stripes", split, name)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            wave = 127 + 60 * np.sin(np.arange(40) * random.uniform(0.8, 1.2) + random.uniform(0, 6))
            pixels = np.tile(wave, (30, 1)) if name == "standing" else np.tile(wave[:30, None], (1, 40))
            pixels = np.clip(pixels[..., None] + random.normal(0, 400, (30, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")

# a recipe: train, then int8 for ONNX Runtime
Path("stripes.yaml").write_text("""\
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.quantize: quantize/static
  - engine@engines.onnxruntime: onnxruntime
  - _self_
  - override model: small_cnn
  - override task: imagefolder
name: stripes
chain: [train, quantize]
task: {path: stripes, image_size: 24, crop: 0, flip: false, mean: null, std: null}
stages:
  train: {trainer: {epochs: 4, batch_size: 16}}
  quantize: {target: onnxruntime, batches: 4}
measure: {batch_sizes: [8], seconds: 0.2}
""")
subprocess.run([sys.executable, "-m", "optkit", "run", "stripes.yaml", "~engines.inductor", "--quiet"], check=True)
(run,) = Path("runs").glob("stripes-*")

# the int8 variant as files; of a run's folder this is the last variant of its chain
exported = optkit.export(run, "served", engine="onnxruntime")
print(exported.summary())

# infer.py imports numpy, pillow and onnxruntime alone
command = [sys.executable, "infer.py", "../stripes/test"]
found = subprocess.run(command, cwd=exported.folder, check=True, capture_output=True, text=True)
print(found.stdout)
recorded = exported.recorded
assert found.stdout.startswith(f"accuracy {recorded['value']:.6f} ")
