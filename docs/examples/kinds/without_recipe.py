"""A classifier, a U-Net and a detector without a recipe: train, prune, int8, compare. scenes.py makes the files."""

import numpy as np
import torch

import optkit
from optkit import models, tasks

EPOCHS, SECONDS, ENGINES = 20, 1.0, ["onnxruntime", "openvino"]


def fit(model, task, epochs):
    """Trains the model in place."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for epoch in range(epochs):
        for batch in task.batches("train", 16, training=True, seed=epoch):
            optimizer.zero_grad()
            task.loss(model(*batch.inputs), batch).backward()
            optimizer.step()
    return model.eval()


def smaller(model, task):
    """Prunes and quantizes the model, and compares the variants."""
    inputs, metric = [batch.inputs for batch in task.batches("train", 16)], task.metrics[0]
    pruned = optkit.prune_structured(fit(model, task, EPOCHS), inputs[0], amount=0.3).module
    fit(pruned, task, EPOCHS // 2)
    int8 = {f"int8 {name}": optkit.quantize_static(pruned, inputs[0], inputs[:8], target=name) for name in ENGINES}

    def evaluate(session):  # a score for each picture, with the metric as their mean
        rows = [metric.observe(session(*batch.inputs), batch) for batch in task.batches("test", 16)]
        return metric.pseudo_values(np.concatenate(rows))

    variants = {"fp32": model, "pruned": pruned, **int8}
    print(
        metric.name, optkit.compare(variants, inputs[0], engines=ENGINES, evaluate=evaluate, seconds=SECONDS), sep="\n"
    )


smaller(models.SmallCNN(num_classes=3), tasks.ImageFolder(path="shapes", image_size=32))
smaller(models.UNet(num_classes=4, widths=[8, 16, 32]), tasks.Segmentation(path="scenes", image_size=32))
smaller(models.DenseDetector(num_classes=3, widths=[16, 32, 32]), tasks.Detection(path="scenes", image_size=64))
