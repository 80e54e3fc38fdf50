"""Parts of a recipe, each named in it by its dotted path."""

import torch
from torch.nn import functional as F


def criterion(model, batches, loss_fn):
    """Scores of single weights: their squares. Those of a channel are summed."""
    return {name: weight.detach() ** 2 for name, weight in model.named_parameters()}


def loss(student, teacher, scale=1.0):
    """Mean square difference of logits; `scale` is an option."""
    return scale * F.mse_loss(student, teacher.detach())


def schedule(progress, warmup):
    """Factor of the learning rate; progress runs from 0 to 1."""
    return min(1.0, progress / warmup) * (1 - progress) ** 2 if warmup else (1 - progress) ** 2


class SignSGD(torch.optim.Optimizer):
    """Steps by the sign of the gradient."""

    def __init__(self, params, lr, scale=0.1):
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"] * group["scale"])


def augment(images, generator):
    """Inverts half of the training batches, uint8 (N, C, H, W)."""
    return 255 - images if generator.random() < 0.5 else images
