"""A few calibration examples that stay with an int8 graph: its answers on them are compared with an engine's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.fx import GraphModule

PROBE = "probe"  # in a graph's ``meta``
PROBE_FILE = "probe.safetensors"
EXAMPLES, MAX_BYTES = 8, 4 * 2**20


def keep_probe(graph: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Keeps the first examples of a batch with a graph: 8, or fewer if they take more than 4 MiB; at least one.

    Args:
        graph: in whose ``meta`` they are kept.
        inputs: of the graph, batch first.
    """
    size = sum(x[:1].numel() * x.element_size() for x in inputs if x.dim())
    count = max(1, min(EXAMPLES, MAX_BYTES // max(size, 1)))
    graph.meta[PROBE] = tuple((x[:count] if x.dim() else x).detach().cpu().clone() for x in inputs)


def probe_of(module: nn.Module) -> tuple[Tensor, ...] | None:
    """The examples kept with a module; None for one that has none, such as a float model."""
    found = getattr(module, "meta", None)
    return found.get(PROBE) if isinstance(found, dict) else None


def save_probe(module: nn.Module, folder: Path) -> None:
    """Writes the examples kept with a module, if there are any."""
    from safetensors.torch import save_file

    if (probe := probe_of(module)) is not None:
        save_file({str(place): x.contiguous() for place, x in enumerate(probe)}, folder / PROBE_FILE)


def load_probe(module: nn.Module, folder: Path) -> None:
    """Gives a module the examples that `save_probe` wrote, if it did."""
    from safetensors.torch import load_file

    if isinstance(module, GraphModule) and (folder / PROBE_FILE).is_file():
        tensors = load_file(folder / PROBE_FILE)
        module.meta[PROBE] = tuple(tensors[str(place)] for place in range(len(tensors)))
