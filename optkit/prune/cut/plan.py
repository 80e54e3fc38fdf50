"""The cut as data: plain JSON that turns a fresh instance of the model into the pruned one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from optkit.core.document import Document
from optkit.core.errors import UserError
from optkit.core.model_copy import duplicate


def to_ranges(kept: np.ndarray) -> str:
    """Sorted indices as text: ``0-3,7``."""
    if kept.size == 0:
        return ""
    starts = np.flatnonzero(np.diff(kept, prepend=kept[0] - 2) != 1)
    ends = np.append(starts[1:], kept.size) - 1
    return ",".join(f"{kept[a]}-{kept[b]}" if a != b else f"{kept[a]}" for a, b in zip(starts, ends, strict=True))


def from_ranges(text: str) -> torch.Tensor:
    """The inverse of :func:`to_ranges`."""
    spans = [part.split("-") for part in text.split(",") if part]
    return torch.from_numpy(
        np.concatenate([np.zeros(0, np.int64), *(np.arange(int(s[0]), int(s[-1]) + 1) for s in spans)])
    )


@dataclass
class CutPlan(Document):
    """What is kept of every tensor, and which attributes change with it.

    Attributes:
        model: class name of the model it was made for.
        kept: the different sets of kept indices, as ranges.
        cuts: tensor name -> dimension (as text) -> which of these sets stays.
        shapes: the dense shape of each of these tensors, checked before cutting.
        attributes: ``[module, attribute, dense value, cut value]``.
        scales: tensor name -> factor and offset: what stays of w becomes ``(w + offset) * factor - offset``.
        norms: name of the g of a weight norm g * v / |v| -> name of its v and the dimension with norms of their own; g
            is scaled by what the cut leaves of these norms.
        spared: tensor name -> dimensions whose removed slices cannot be zero, as the dense model divides by them.
        facts: criterion, budget, and what was reached, for the record.
        layers: for each group of units how many there were and how many are kept.
        frozen: for each layer dimension that stays whole, the operators that froze it.
    """

    model: str
    kept: list[str]
    cuts: dict[str, dict[str, int]]
    shapes: dict[str, list[int]]
    attributes: list[list[Any]]
    scales: dict[str, list[float]] = field(default_factory=dict)
    norms: dict[str, list[Any]] = field(default_factory=dict)
    spared: dict[str, list[int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    frozen: dict[str, list[str]] = field(default_factory=dict)

    what: ClassVar[str] = "cut plan"
    format: ClassVar[str] = "optkit.cut-plan/1"

    def indices(self) -> dict[str, dict[int, torch.Tensor]]:
        """Kept indices of every dimension that is cut: tensor name -> dimension -> sorted indices."""
        sets = [from_ranges(text) for text in self.kept]
        return {name: {int(dim): sets[which] for dim, which in dims.items()} for name, dims in self.cuts.items()}

    def apply(self, model: nn.Module) -> nn.Module:
        """A cut copy of a dense instance; the instance itself is not touched.

        Raises:
            UserError: if the instance is not the dense model that the plan was made for.
        """
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        sliced: dict[str, torch.Tensor] = {}
        for name, dims in self.indices().items():
            tensor = tensors.get(name)
            if tensor is None or list(tensor.shape) != self.shapes[name]:
                found = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, not {self.shapes[name]}"
                raise UserError(f"{name} {found}", fix=f"apply the plan to a fresh dense {self.model}")
            sliced[name] = _sliced(tensor, dims, *self.scales.get(name, (1.0, 0.0)))
        for name, (direction, dim) in self.norms.items():
            whole = self.indices().get(name, {})
            shrunk = index_all(norms(tensors[direction], dim), whole), norms(sliced[direction], dim)
            sliced[name] = like(tensors[name], scaled(sliced.get(name, tensors[name]), *shrunk))
        cut = duplicate(model, {id(tensors[name]): tensor for name, tensor in sliced.items()})
        self._resize(cut)
        return cut

    def apply_again(self, cut: nn.Module, earlier: CutPlan) -> nn.Module:
        """The same model under this plan, which keeps of every tensor what the earlier one kept, in place."""
        for path, name, old, _ in earlier.attributes:
            module = cut.get_submodule(path)
            setattr(module, name, tuple(old) if isinstance(getattr(module, name, None), tuple) else old)
        self._resize(cut)
        return cut

    def _resize(self, cut: nn.Module) -> None:
        for path, name, old, new in self.attributes:
            module = cut.get_submodule(path)
            found = getattr(module, name, None)
            if (list(found) if isinstance(found, tuple) else found) != old:
                raise UserError(f"{path}.{name} is {found}, not {old}", fix="apply the plan to a fresh dense model")
            setattr(module, name, tuple(new) if isinstance(found, tuple) else new)

    def summary(self) -> str:
        """What each layer keeps, and which operators froze what."""
        lines = [f"{self.model}: " + ", ".join(f"{key} {value}" for key, value in self.facts.items())]
        width = max([len(layer["name"]) for layer in self.layers] or [0])
        for layer in self.layers:
            size = f" of {layer['width']}" if layer["width"] > 1 else ""
            lines.append(f"  {layer['name']:<{width}}  keeps {layer['kept']} of {layer['units']} units{size}")
        if self.frozen:
            lines.append("kept whole:")
            lines += [f"  {name}: {', '.join(reasons)}" for name, reasons in self.frozen.items()]
        return "\n".join(lines)


def norms(v: torch.Tensor, dim: int) -> torch.Tensor:
    """The Euclidean norms of the slices of ``v`` along ``dim``, or of all of it (-1), in double precision."""
    squares = v.detach().double().square()
    dims = [d for d in range(v.ndim) if d != dim]
    return squares.sum(dims, keepdim=dim >= 0).sqrt() if dims else squares.sqrt()


def scaled(g: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The g of a weight norm g * v / |v| whose norms were ``before`` and are ``after``, so that it stays as it is."""
    factor = torch.where(before > 0, after / before, 1.0)
    return (g.detach() * factor.view_as(g)).to(g.dtype)


def index_all(data: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    """Kept indices of several dimensions."""
    for dim, index in kept.items():
        data = data.index_select(dim, index.to(data.device))
    return data


def _sliced(tensor: torch.Tensor, kept: dict[int, torch.Tensor], factor: float, offset: float) -> torch.Tensor:
    data = index_all(tensor.detach(), kept)
    return like(tensor, (data + offset) * factor - offset if factor != 1.0 else data)


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer in place of another."""
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
