"""Weights rounded by calibration data, block after block: GPTQ, AWQ, or both. A kill loses one block's work at most."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.cache import read_json, write_json
from optkit.core.errors import StageError, UserError
from optkit.quantize.accuracy.folding import Site, answer_of, find_sites, same_answer
from optkit.quantize.accuracy.gptq import DAMPING, Moments, gptq
from optkit.quantize.accuracy.scaling import search_scale, smoothing_scale
from optkit.quantize.weights.blocks import Blocks, Stop, read_tensors, write_tensors
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.scheme import Scheme
from optkit.quantize.weights.selection import Selection, empty_linear, set_weight, weight_of

PROGRESS = "weights.json"
SAMPLE = 256  # numbers of a parameter


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded by data.

    Attributes:
        smooth: alpha of SmoothQuant, which scales activations first, see `smoothing_scale`; None: not.
        awq: scale activations first, by `search_scale`.
        gptq: round by GPTQ; otherwise to the nearest.
        activation_order: in GPTQ, round the inputs with the largest second moments first.
        damping: in GPTQ, the share of the mean of the moments' diagonal that is added to it.
    """

    smooth: float | None = None
    awq: bool = False
    gptq: bool = False
    activation_order: bool = True
    damping: float = DAMPING


@dataclass
class Report:
    """What was done.

    Attributes:
        blocks: that were handled one after another; 0: the model was run as a whole.
        calibration_batches: that were read.
        scaled: activations that AWQ or SmoothQuant scaled.
        unscaled: activations that nothing before them can be scaled for.
        resumed_s: seconds that earlier, killed processes spent on blocks which were taken over.
    """

    blocks: int = 0
    calibration_batches: int = 0
    scaled: int = 0
    unscaled: int = 0
    resumed_s: float = 0.0


@torch.no_grad()
def round_linears(
    model: nn.Module,
    selection: Selection,
    rounding: Rounding,
    batches: Iterable[tuple[Tensor, ...]],
    folder: Path,
) -> Report:
    """Puts quantized layers into a model, in place.

    The inputs of a block are the answers of the blocks before it as they were rounded, and within a block the inputs
    of a layer those of the layers before it ("true sequential"). Hidden states are kept in files, so beside the model
    there are a block's moments and one batch in memory.

    Args:
        model: in eval mode, its embeddings quantized already; its parameters are replaced, never written to.
        selection: of linear layers.
        rounding: how.
        batches: inputs; read once.
        folder: for hidden states and finished blocks; called again with it after a kill, the work goes on.

    Raises:
        UserError: AWQ of a model without blocks; a folder of another work.
        StageError: the model does not answer as before with its activations scaled.
    """
    work = _Work(selection, rounding, folder, _digest(model))
    work.resume()
    blocks = Blocks.of(model, batches, folder, fresh=not work.done)
    if work.scales and not blocks.paths:
        message = (
            f"activations are scaled in a stack of residual blocks, and this {type(model).__name__} has no single one"
        )
        raise UserError(message, key="rounding" if rounding.awq else "smooth", fix="rounding=gptq, without smooth")
    for number in range(len(blocks.paths)):
        work.block(blocks, number)
    work.rest(blocks)
    work.report.blocks, work.report.calibration_batches = len(blocks.paths), blocks.batches
    return work.report


@dataclass
class _Work:
    selection: Selection
    rounding: Rounding
    folder: Path
    model: str
    report: Report = field(default_factory=Report)
    done: int = 0
    seconds: float = 0.0
    _sites: dict[Any, list[Site]] = field(default_factory=dict)

    def resume(self) -> None:
        """Takes over what an earlier process wrote."""
        path = self.folder / PROGRESS
        if (state := read_json(path)) is None:
            return
        if state["of"] != self._of():
            fix = "another folder, or remove it"
            raise UserError("another quantization stands in it", key="workdir", value=str(self.folder), fix=fix)
        self.done, self.seconds = state["done"], state["seconds"]
        self.report = Report(**state["report"])
        self.report.resumed_s = self.seconds

    def block(self, blocks: Blocks, number: int) -> None:
        """Quantizes a block, or loads it."""
        path, block, file = blocks.paths[number], blocks.block(number), self.folder / f"block-{number:05d}.safetensors"
        inside = [x for x in self.selection.layers if x.startswith(f"{path}.")]
        own = {x.removeprefix(f"{path}."): self.selection.scheme_of(x) for x in inside}
        if number < self.done:
            for name, scheme in own.items():
                block.set_submodule(name, empty_linear(block.get_submodule(name), scheme))
            block.load_state_dict(read_tensors(file))
            return
        started = time.perf_counter()
        grids = self._round(blocks, number, own)
        blocks.advance(number)
        _replace(block, grids)
        write_tensors(file, block.state_dict())
        self.seconds += time.perf_counter() - started
        state = {"of": self._of(), "done": number + 1, "seconds": self.seconds, "report": asdict(self.report)}
        write_json(self.folder / PROGRESS, state, key="workdir")
        blocks.forget(number)

    def rest(self, blocks: Blocks) -> None:
        """Quantizes the layers that are in no block."""
        inside = tuple(f"{path}." for path in blocks.paths)
        paths = [x for x in self.selection.layers if not x.startswith(inside) and x not in self.selection.tied]
        if not paths:
            return
        moments = Moments()
        if self.rounding.gptq or self.rounding.awq:
            with _watched(blocks.model, paths, moments):
                blocks.finish()
        of = {path: self.selection.scheme_of(path) for path in paths}
        grids = {path: self._nearest(blocks.model, path, of[path]) for path in paths if path not in moments.found}
        for path in moments.found:
            grids |= self._rounded(blocks.model, (path,), moments.found[path][0], of[path])
        _replace(blocks.model, grids)

    def _round(self, blocks: Blocks, number: int, own: dict[str, Scheme]) -> dict[str, Grid]:
        """Rounds the weights of a block's layers, which stay float layers, and gives their grids.

        Args:
            own: the layers, by their paths in the block, and what their weights become.
        """
        block = blocks.block(number)
        sites = [site for site in self._find_sites(blocks, number) if any(path in own for path in site.readers)]
        moments: dict[str, Tensor] = {}
        if self.scales:
            expected = answer_of(lambda: next(blocks.run(number, 1)))
            moments = self._scale(blocks, number, own, sites)
            if not same_answer(answer_of(lambda: next(blocks.run(number, 1))), expected):
                raise StageError(f"{blocks.paths[number]} does not answer as before with scaled activations")
        grids: dict[str, Grid] = {}
        for site in sites:
            first = site.readers[0]
            if self.rounding.gptq:
                moments = _moments(blocks, number, [first], stop=True)
            if first in moments:
                moment = moments.pop(first)
                for scheme, readers in _by_scheme(own, site.readers).items():
                    grids |= self._rounded(block, readers, moment, scheme)
        return grids | {path: self._nearest(block, path, own[path]) for path in own if path not in grids}

    @property
    def scales(self) -> bool:
        """Whether activations are scaled."""
        return self.rounding.awq or self.rounding.smooth is not None

    def _scale(self, blocks: Blocks, number: int, own: dict[str, Scheme], sites: list[Site]) -> dict[str, Tensor]:
        """Scales the activations of a block; for AWQ gives their second moments afterwards, by their first reader."""
        block, firsts = blocks.block(number), [site.readers[0] for site in sites]
        moments = _moments(blocks, number, firsts) if self.rounding.awq else {}
        reaches = _reaches(blocks, number, firsts) if self.rounding.smooth is not None else {}
        for site, first in zip(sites, firsts, strict=True):
            if site.producer is None:
                self.report.unscaled += 1
                continue
            weights = [weight_of(block.get_submodule(path)) for path in site.readers if path in own]
            if self.rounding.smooth is not None:
                site.fold(block, smoothing_scale(weights, reaches[first], self.rounding.smooth, site))
                self.report.scaled += 1
                continue
            schemes = [own[path] for path in site.readers if path in own]
            scale, left = search_scale(weights, moments[first], schemes, site)
            if left < 1:
                site.fold(block, scale)
                moments[first] = moments[first] / scale / scale[:, None]
                self.report.scaled += 1
        return moments

    def _rounded(self, module: nn.Module, paths: Sequence[str], moment: Tensor, scheme: Scheme) -> dict[str, Grid]:
        """Rounds layers that read one activation."""
        weights = {path: weight_of(module.get_submodule(path)) for path in paths}
        grids = {path: _grid(weight, moment, scheme) for path, weight in weights.items()}
        if self.rounding.gptq:
            rounded = self._gptq(torch.cat(list(weights.values())), list(grids.values()), moment)
        else:
            rounded = torch.cat([grids[path].nearest(weight) for path, weight in weights.items()])
        for path, new in zip(paths, rounded.split([len(weight) for weight in weights.values()]), strict=True):
            set_weight(module.get_submodule(path), new)
        return grids

    def _gptq(self, weight: Tensor, grids: list[Grid], moment: Tensor) -> Tensor:
        scale = torch.cat([grid.scale for grid in grids]).double()
        zero_point = torch.cat([grid.zero_point for grid in grids]).double()
        size, scheme = weight.shape[1] // scale.shape[1], grids[0].scheme

        def nearest(value: Tensor, column: int) -> Tensor:
            group = column // size
            step, zero = scale[:, group], zero_point[:, group]
            return ((value / step + zero).round().clamp(scheme.lowest, scheme.highest) - zero) * step

        damping, order = self.rounding.damping, self.rounding.activation_order
        return gptq(weight[None], moment[None], nearest, damping, order)[0]

    def _nearest(self, module: nn.Module, path: str, scheme: Scheme) -> Grid:
        """Rounds a layer that no data reached."""
        linear = module.get_submodule(path)
        grid = Grid.minmax(weight_of(linear), scheme)
        set_weight(linear, grid.nearest(weight_of(linear)))
        return grid

    def _find_sites(self, blocks: Blocks, number: int) -> list[Site]:
        """The activations of a block; those of an equal one are known already."""
        block = blocks.block(number)
        key = (type(block), tuple((name, tuple(x.shape)) for name, x in block.named_parameters()))
        if key not in self._sites:
            self._sites[key] = find_sites(block, lambda: next(blocks.run(number, 1)), sources=self.scales)
        return self._sites[key]

    def _of(self) -> dict[str, Any]:
        """What tells this work from another one in the same folder."""
        selection = {key: value for key, value in asdict(self.selection).items() if key != "left"}
        found = {"selection": selection, "rounding": asdict(self.rounding), "model": self.model}
        return json.loads(json.dumps(found))


def _digest(model: nn.Module) -> str:
    """Tells models of equal shapes apart, by a part of each parameter: all of a large model would take a minute."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(parameter.detach().flatten()[:SAMPLE].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _grid(weight: Tensor, moment: Tensor, scheme: Scheme) -> Grid:
    if scheme.bits == 8:  # fine enough to reach over everything
        return Grid.minmax(weight, scheme)
    return Grid.fitted(weight, scheme, moment)


def _by_scheme(own: Mapping[str, Scheme], paths: Sequence[str]) -> dict[Scheme, list[str]]:
    """Those of some layers that are quantized, by what their weights become."""
    found: dict[Scheme, list[str]] = {}
    for path in paths:
        if path in own:
            found.setdefault(own[path], []).append(path)
    return found


def _replace(module: nn.Module, grids: dict[str, Grid]) -> None:
    """Puts quantized layers in the place of float ones whose weights are on their grids."""
    for path, grid in grids.items():
        linear = module.get_submodule(path)
        layer = empty_linear(linear, grid.scheme)
        layer.take(weight_of(linear), grid)
        module.set_submodule(path, layer)


def _moments(blocks: Blocks, number: int, paths: list[str], stop: bool = False) -> dict[str, Tensor]:
    """Second moments ``(in, in)`` of what layers of a block read; ``stop`` ends a pass behind the first."""
    moments = Moments()
    with _watched(blocks.block(number), paths, moments, stop):
        for _ in blocks.run(number):
            pass
    return {path: moments.found[path][0] for path in paths}


def _reaches(blocks: Blocks, number: int, paths: list[str]) -> dict[str, Tensor]:
    """The largest magnitude of each channel ``(in,)`` of what layers of a block read."""
    found: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def note(_: nn.Module, args: tuple) -> None:
            reach = args[0].flatten(0, -2).abs().amax(0)
            found[path] = torch.maximum(found[path], reach) if path in found else reach

        return note

    handles = [blocks.block(number).get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        for _ in blocks.run(number):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _watched(module: nn.Module, paths: list[str], moments: Moments, stop: bool = False) -> Iterator[None]:
    def hook(path: str) -> Any:
        def note(_: nn.Module, args: tuple) -> None:
            moments.add(path, args[0].reshape(1, -1, args[0].shape[-1]).float())
            if stop:
                raise Stop

        return note

    handles = [module.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
