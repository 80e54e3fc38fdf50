"""Scales of activations, taken in by the layer or norm that gives them, which is found by running a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optkit.models.stacks import first_tensor
from optkit.quantize.weights.blocks import Stop
from optkit.quantize.weights.selection import is_linear, set_weight, weight_of

SPREAD = 4.0  # the largest of the factors by which channels are told apart; the smallest is 1
NEAR = 1e-3  # of the answer's size: what rounding may change in it
Run = Callable[[], Any]


@dataclass(frozen=True)
class Site:
    """Linear layers of a block that read one activation, and what gives it.

    Attributes:
        readers: paths of the layers within the block, in the order in which they run.
        producer: path of the norm or linear layer that can take a scale in; None where there is none.
        channels: for each channel of the activation, the producer's that it comes from ``(C,)``.
        shifted: whether the producer multiplies by 1 + its weight, as Gemma's norms do.
    """

    readers: tuple[str, ...]
    producer: str | None = None
    channels: Tensor | None = None
    shifted: bool = False

    def shared(self, scale: Tensor) -> Tensor:
        """One scale for all channels that come from the same one: their geometric mean ``(C,)``."""
        assert self.channels is not None
        count = torch.bincount(self.channels)
        total = torch.zeros(len(count)).index_add_(0, self.channels, scale.log())
        return (total / count.clamp(min=1)).exp()[self.channels]

    def fold(self, block: nn.Module, scale: Tensor) -> None:
        """Divides the activation by a scale, equal for channels of one origin; the readers' weights are multiplied."""
        assert self.producer is not None
        assert self.channels is not None
        producer = block.get_submodule(self.producer)
        own = torch.ones(int(self.channels.max()) + 1)
        own[self.channels] = scale
        _divide(producer, own, self.shifted)
        for path in self.readers:
            reader = block.get_submodule(path)
            set_weight(reader, weight_of(reader) * scale)


def find_sites(block: nn.Module, run: Run, sources: bool = True) -> list[Site]:
    """The activations that linear layers of a block read, in the order in which they are read.

    A producer is what makes an activation's channels grow by any factors if its own answer's grow by them, and after
    whose scaling the block answers as before: so no other reader is missed.

    Args:
        block: is run, and has its weights back afterwards.
        run: runs the block once on an example.
        sources: whether to look for producers.
    """
    groups, order = _calls(block, run)
    sites = []
    for readers in groups:
        site = Site(readers)
        before = [path for path in order[: order.index(readers[0])] if path not in readers] if sources else []
        for path in reversed(before):
            channels = _channels(block, path, readers[0], run)
            if channels is not None and (found := _proved(block, readers, path, channels, run)):
                site = found
                break
        sites.append(site)
    return sites


def same_answer(found: Tensor, expected: Tensor) -> bool:
    """Whether two answers differ by no more than rounding."""
    return bool((found - expected).abs().max() <= NEAR * expected.abs().max())


def answer_of(run: Run) -> Tensor:
    """The tensor that a block answers with."""
    found = first_tensor(run())
    assert found is not None
    return found


def _calls(block: nn.Module, run: Run) -> tuple[list[tuple[str, ...]], list[str]]:
    """Linear layers by the activation that they read, and all modules that may give one, as they run."""
    read: list[tuple[Tensor, list[str]]] = []
    order: list[str] = []

    def note(path: str, module: nn.Module) -> Callable[[nn.Module, tuple], None]:
        def before(_: nn.Module, args: tuple) -> None:
            if is_linear(module):
                same = [paths for x, paths in read if x is args[0]]
                same[0].append(path) if same else read.append((args[0], [path]))
            order.append(path)

        return before

    modules = {path: x for path, x in block.named_modules() if path and (is_linear(x) or _is_norm(x))}
    with _hooks([module.register_forward_pre_hook(note(path, module)) for path, module in modules.items()]):
        run()
    once = {path for path in order if order.count(path) == 1}
    groups = [tuple(dict.fromkeys(paths)) for _, paths in read]
    return [paths for paths in groups if once.issuperset(paths)], order


def _channels(block: nn.Module, producer: str, reader: str, run: Run) -> Tensor | None:
    """Which channel of a producer each channel of what a layer reads comes from; None where it is not so simple."""
    module = block.get_submodule(producer)
    weight = module.weight
    assert isinstance(weight, Tensor)
    own = weight_of(module).shape[0] if is_linear(module) else weight.numel()
    plain = _read(block, reader, run)
    if plain.shape[-1] % own:
        return None
    factors = torch.logspace(0, 1, own, SPREAD)
    scaled = _read(block, reader, run, (producer, factors))
    plain, scaled = plain.flatten(0, -2).double(), scaled.flatten(0, -2).double()
    energy = plain.square().sum(0)
    ratio = (plain * scaled).sum(0) / energy.clamp(min=1e-30)
    left = (scaled - ratio * plain).square().sum(0)
    place = ratio.clamp(1, SPREAD).log() / torch.tensor(SPREAD).log() * (own - 1)
    silent = energy == 0
    clear = (left <= 1e-6 * energy) & ((place - place.round()).abs() < 0.25)
    if own == plain.shape[-1]:  # a channel that says nothing comes from its namesake
        place = torch.where(silent, torch.arange(own, dtype=place.dtype), place)
        clear |= silent
    return place.round().long() if bool(clear.all()) and own > 1 else None


def _proved(block: nn.Module, readers: tuple[str, ...], producer: str, channels: Tensor, run: Run) -> Site | None:
    """The site, if a scale can be folded and the block's answer stays."""
    expected = answer_of(run)
    scale = torch.logspace(0, 1, int(channels.max()) + 1, 2.0)[channels]
    for shifted in (False, True):
        site = Site(readers, producer, channels, shifted)
        with kept(block, (producer, *readers)):
            site.fold(block, scale)
            if same_answer(answer_of(run), expected):
                return site
        if is_linear(block.get_submodule(producer)):
            return None
    return None


@contextmanager
def kept(block: nn.Module, paths: tuple[str, ...]) -> Iterator[None]:
    """Gives modules their own parameters back afterwards."""
    modules = [block.get_submodule(path) for path in paths]
    parameters = [dict(module.named_parameters(recurse=False)) for module in modules]
    try:
        yield
    finally:
        for module, own in zip(modules, parameters, strict=True):
            for name, parameter in own.items():
                setattr(module, name, parameter)


@torch.no_grad()
def _divide(producer: nn.Module, scale: Tensor, shifted: bool) -> None:
    if is_linear(producer):
        set_weight(producer, weight_of(producer) / scale[:, None])
    else:
        weight = producer.weight
        assert isinstance(weight, Tensor)
        producer.weight = nn.Parameter((weight + int(shifted)) / scale - int(shifted), requires_grad=False)
    if isinstance(bias := getattr(producer, "bias", None), Tensor):
        producer.bias = nn.Parameter(bias / scale, requires_grad=False)


def _read(block: nn.Module, reader: str, run: Run, scaled: tuple[str, Tensor] | None = None) -> Tensor:
    """What a layer reads, if another one's answer is multiplied."""
    found: list[Tensor] = []

    def note(_: nn.Module, args: tuple) -> None:
        found.append(args[0].detach().clone())
        raise Stop

    handles = [block.get_submodule(reader).register_forward_pre_hook(note)]
    if scaled is not None:
        path, factors = scaled
        handles.append(block.get_submodule(path).register_forward_hook(lambda _, __, answer: answer * factors))
    with _hooks(handles), suppress(Stop):
        run()
    return found[0]


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    """Whether all that it learns is a factor for each channel, and perhaps a shift."""
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    return weight is not None and weight.dim() == 1 and own.keys() <= {"weight", "bias"} and not list(module.children())
