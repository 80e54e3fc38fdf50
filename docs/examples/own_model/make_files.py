"""Makes what an own project has already: a folder of images, and a checkpoint of an own network trained on them."""

from pathlib import Path

import numpy as np
import torch
from mypkg import Net
from PIL import Image, ImageDraw
from torch.nn import functional as F

SHAPES = {"circle": "ellipse", "square": "rectangle", "line": "line"}
random = np.random.default_rng(0)

for split, count in (("train", 80), ("test", 40)):
    for name, draw in SHAPES.items():
        folder = Path("data") / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(count):
            image = Image.fromarray(random.integers(0, 120, (32, 32, 3), dtype=np.uint8))
            left, top, size = random.integers(2, 14), random.integers(2, 14), random.integers(8, 16)
            colour = tuple(int(c) for c in random.integers(140, 256, 3))
            how = {"width": 3} if draw == "line" else {}
            getattr(ImageDraw.Draw(image), draw)([left, top, left + size, top + size], fill=colour, **how)
            image.save(folder / f"{n}.png")

files = [(path, label) for label, name in enumerate(sorted(SHAPES)) for path in Path("data/train", name).glob("*.png")]
images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _ in files])
inputs, labels = (images / 255 - 0.5) / 0.25, torch.tensor([label for _, label in files])

torch.manual_seed(0)
net = Net(num_classes=3)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(30):
    for part in torch.randperm(len(labels)).split(32):
        loss = F.cross_entropy(net(inputs[part]), labels[part])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
torch.save(net.state_dict(), "net.pt")
print(f"data/ has {len(list(Path('data').rglob('*.png')))} images, net.pt the weights; the last loss was {loss:.3f}")
