"""An own network, pruned and quantized, and compared on three engines."""

import math

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optkit


def stripes(count, seed):
    """Noisy images ``(N, 1, 32, 32)`` of stripes in sixteen directions, and the directions ``(N,)``."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randint(0, 16, (count,), generator=random)
    phases, angles = 2 * math.pi * torch.rand(count, 1, 1, generator=random), math.pi / 16 * directions[:, None, None]
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    waves = torch.sin(0.8 * (x * angles.cos() + y * angles.sin()) + phases)
    return (waves + 1.5 * torch.randn(count, 32, 32, generator=random))[:, None], directions


def fit(model, loader, epochs):
    """Trains the model in place."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-3)
    for _ in range(epochs):
        for images, directions in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), directions).backward()
            optimizer.step()
    return model.eval()


torch.manual_seed(0)
loader = DataLoader(TensorDataset(*stripes(2000, seed=0)), batch_size=50, shuffle=True)
images, directions = stripes(1000, seed=1)
example = (images[:32],)

layers = [
    layer
    for inputs, outputs in ((1, 32), (32, 64), (64, 64))
    for layer in (nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
]
model = fit(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 16)), loader, epochs=5)

pruned = optkit.prune_structured(model, example, amount=0.5, budget="macs").module  # half the work
pruned = fit(pruned, loader, epochs=2)
int8 = {
    f"int8 for {engine}": optkit.quantize_static(pruned, example, loader, inputs=lambda batch: batch[0], target=engine)
    for engine in ("onnxruntime", "openvino")
}
comparison = optkit.compare(
    {"own": model, "pruned": pruned, **int8},
    example,
    engines=["eager", "onnxruntime", "openvino"],
    evaluate=lambda session: session(images).argmax(1) == directions,
)
print(comparison)
comparison.plot().save("comparison.svg")
