"""What int8 costs, layer by layer: an analysis beside the stages, of a float model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.cache import write_text
from optkit.core.errors import StageError
from optkit.quantize.graph.layers import int8_layers, layer_errors, simulated
from optkit.quantize.mixed_precision import Evaluate, losses_in_float


@dataclass(frozen=True)
class LayerCost:
    """One layer.

    Attributes:
        path: of the layer, as in ``protect``.
        sqnr_db: power of its output over that of the error which its own rounding makes, in dB.
        gain: by how much the loss of the int8 model falls when this layer alone is in float.
    """

    path: str
    sqnr_db: float
    gain: float


@dataclass(frozen=True)
class LayerCosts:
    """All int8 layers of a model, the noisiest first.

    Attributes:
        model: class name of the model.
        float_loss, int8_loss: of the model as it came, and with every layer in int8.
        layers: their costs.
    """

    model: str
    float_loss: float
    int8_loss: float
    layers: list[LayerCost]

    def save(self, path: Path) -> None:
        """Writes a JSON file; a layer without any error has no SQNR."""
        data: dict[str, Any] = asdict(self)
        for layer in data["layers"]:
            layer["sqnr_db"] = layer["sqnr_db"] if math.isfinite(layer["sqnr_db"]) else None
        write_text(path, json.dumps(data, indent=1) + "\n")

    def summary(self) -> str:
        """A line for each layer."""
        width = max(len(layer.path) for layer in self.layers)
        lines = [f"{self.model}: loss {self.float_loss:.4f} in float, {self.int8_loss:.4f} in int8; for each layer"]
        lines += ["its signal to noise when it alone is rounded, and what the loss falls by when it alone is not"]
        for layer in self.layers:
            lines.append(f"  {layer.path:<{width}}  {layer.sqnr_db:5.1f} dB  {layer.gain:+.5f}")
        return "\n".join(lines)


def cost_of_layers(
    model: nn.Module, graph: GraphModule, batches: Iterable[tuple[Tensor, ...]], loss: Evaluate
) -> LayerCosts:
    """Measures every int8 layer of a calibrated graph.

    Args:
        model: the float model.
        graph: with observers, from `Calibrated.choose`.
        batches: inputs for the signal to noise ratios.
        loss: of a model, on examples that are not test.

    Raises:
        StageError: no layer would run in int8.
    """
    if not int8_layers(graph):
        message = f"no layer of this {type(model).__name__} would run in int8"
        raise StageError(message, fix="fewer patterns in protect, or another target")
    noise = {error.path: error.sqnr_db for error in layer_errors(graph, batches)}
    with torch.no_grad():
        whole = loss(simulated(graph))
        alone = losses_in_float(graph, loss)
        layers = [LayerCost(path, ratio, whole - alone[path]) for path, ratio in noise.items()]
        return LayerCosts(type(model).__name__, loss(model), whole, layers)
