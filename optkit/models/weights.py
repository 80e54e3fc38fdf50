"""Loads weights from a checkpoint file into a model, also if the saved model was wrapped."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optkit.core.errors import UserError, first_line
from optkit.models.checkpoint_summary import listed, summary

log = logging.getLogger(__name__)
# modules that torch.compile, FSDP and activation checkpointing put around others, at any depth
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# what torch.load raises on files that are none of its own, or broken
BROKEN = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, ArithmeticError, OSError)
COUNTER = "num_batches_tracked"  # old checkpoints lack it, and nothing here reads it
FOREIGN = re.compile(r"GLOBAL (\S+)")
Tensors = dict[str, Tensor]


def load_weights(module: nn.Module, path: Path, key: str = "checkpoint") -> None:
    """Loads a checkpoint into a model. The checkpoint must hold all tensors of the model.

    The names may have anything in front of them (``module.``, ``model.``, ``_orig_mod.``), and the tensors may lie in
    dictionaries within the file (``state_dict``, ``ema``). Tensors that lie elsewhere in the file are left out.

    Raises:
        UserError: not a readable checkpoint, tensors that do not fit the model or would fit in several ways, or values
            that are not finite.
    """
    held = read_tensors(path, key)
    wanted = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    place = _place(held, wanted, path, key)
    found = place.tensors(held, wanted)
    if len(found) < sum(map(place.holds, held)):
        message = f"{path} holds tensors that have one name without {' and '.join(WRAPPERS)}"
        raise UserError(message, key=key, fix="save the model anew")
    found |= {name: wanted[name] for name in wanted if name.endswith(COUNTER) and name not in found}
    for name, twin in _shared(wanted):
        if name not in found and twin in found:
            found[name] = found[twin]
    if problems := _problems(found, wanted):
        message = f"{path} does not fit {type(module).__name__}: it holds {summary(held)}; {problems}"
        raise UserError(message, key=key, fix="pick the model it is of")
    found = {name: tensor.to(wanted[name].dtype) for name, tensor in found.items()}
    _check_finite(found, wanted, str(path), key)
    if place.prefix or place.added:
        rest = [name for name in held if not _plain(name).startswith(place.prefix)]
        others = f"; left out {listed(rest, 3)}" if rest else ""
        log.info("%s: took the %d tensors under '%s'%s", path, len(held) - len(rest), place.prefix, others)
    module.load_state_dict(found, strict=len(found) == len(module.state_dict()))


def read_tensors(path: Path, key: str) -> Tensors:
    """All tensors of a .safetensors file, or of a .pt file read with ``weights_only``, by name.

    Tensors in dictionaries within the file have the names of these in front.

    Raises:
        UserError: the file cannot be read as data, or holds no tensors.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        data = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, *BROKEN) as error:
        foreign = FOREIGN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        reason = f"it names code ({foreign[1]}), which is not run" if foreign else first_line(error)
        fix = "give a .safetensors file, or a .pt file that holds tensors only"
        raise UserError(f"cannot read {path}: {reason}", key=key, fix=fix) from error
    found = dict(_tensors_in(data, ""))
    if not found:
        kind = f"a dictionary of {listed(list(map(str, data)))}" if isinstance(data, Mapping) else type(data).__name__
        raise UserError(f"{path} holds no tensors by name, but {kind}", key=key, fix="save model.state_dict()")
    return found


def check_finite(module: nn.Module, key: str = "model") -> None:
    """Raises UserError if a parameter holds NaN or infinity, or a buffer NaN."""
    known = {name: t.detach() for name, t in module.named_parameters() if not (is_lazy(t) or t.is_meta)}
    _check_finite(known, {}, type(module).__name__, key)
    buffers = {name: t for name, t in module.named_buffers() if not (is_lazy(t) or t.is_meta)}
    _check_finite(buffers, buffers, type(module).__name__, key)


@dataclass(frozen=True)
class _Place:
    """Where in a file a model's tensors are: what stands before their names, and what these lack of the model's own."""

    prefix: str = ""
    added: str = ""

    def tensors(self, held: Tensors, wanted: Tensors) -> Tensors:
        """The tensors under the prefix, by the model's names, or by their own where the model has none such."""
        own = {_plain(name): name for name in wanted}
        plain = {self.added + _plain(name)[len(self.prefix) :]: t for name, t in held.items() if self.holds(name)}
        return {own.get(name, name): tensor for name, tensor in plain.items()}

    def holds(self, name: str) -> bool:
        return _plain(name).startswith(self.prefix)


def _place(held: Tensors, wanted: Tensors, path: Path, key: str) -> _Place:
    """The place where most of the model's tensors are, of several the one that is no moving average.

    Raises:
        UserError: several hold them all.
    """
    own = {_plain(name): tensor.shape for name, tensor in wanted.items()}
    fits, named, starts = Counter[_Place](), Counter[_Place](), _common_starts(own)
    for name, tensor in held.items():
        for start, rest in _ends(_plain(name)):
            for added in starts:
                if added + rest in own:
                    named[_Place(start, added)] += 1
                    fits[_Place(start, added)] += own[added + rest] == tensor.shape
    best = max(((fits[place], named[place]) for place in named), default=None)
    places = [place for place in named if (fits[place], named[place]) == best]
    if len(places) > 1 and _Place() not in places:
        places = [place for place in places if "ema" not in place.prefix.lower()] or places
    if _Place() in places or not places:
        return _Place()
    if len(places) > 1:
        names = " and ".join(f"'{place.prefix}'" for place in places)
        raise UserError(f"{path} fits {names}", key=key, fix="save one of them alone")
    return places[0]


def _problems(found: Tensors, wanted: Tensors) -> str:
    """What of a model is missing in the tensors for it, what is too much, and what is of another shape."""
    missing, more = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    others = [
        f"{n} {tuple(found[n].shape)}, the model's {tuple(wanted[n].shape)}"
        for n in wanted
        if n in found and found[n].shape != wanted[n].shape
    ]
    said = [f"missing: {len(missing)} of the model's {len(wanted)} ({listed(missing, 2)})"] * bool(missing)
    said += [f"not in the model: {len(more)} ({listed(more, 2)})"] * bool(more)
    said += [f"of another shape: {len(others)} ({listed(others, 2)})"] * bool(others)
    return "; ".join(said)


def _check_finite(found: Tensors, own: Tensors, where: str, key: str) -> None:
    """Raises UserError for values that are not finite, where a model's own are not the same (a mask of -inf)."""
    bad = {}
    for name, tensor in found.items():
        if tensor.is_floating_point() or tensor.is_complex():
            off = ~tensor.isfinite()
            if off.any() and not (name in own and torch.equal(tensor[off], own[name].to(tensor.device)[off])):
                bad[name] = int(off.sum())
    if bad:
        first = next(iter(bad))
        more = f", and so do {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        message = f"{where}: {first} holds {bad[first]} of {found[first].numel()} values that are NaN or infinite{more}"
        raise UserError(message, key=key, fix="take one from before the training diverged")


def _tensors_in(data: Any, start: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            if isinstance(value, Tensor):
                yield f"{start}{name}", value
            else:
                yield from _tensors_in(value, f"{start}{name}.")


def _plain(name: str) -> str:
    """A name without the wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _ends(name: str) -> Iterator[tuple[str, str]]:
    """A dotted name cut in two before each of its parts: ``("", "a.b")``, ``("a.", "b")``."""
    parts = name.split(".")
    for cut in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])


def _common_starts(names: Mapping[str, Any]) -> list[str]:
    """What all of some dotted names begin with, in whole parts: nothing, and more."""
    first = next(iter(names), "")
    return [start for start, _ in _ends(first) if all(name.startswith(start) for name in names)]


def _shared(wanted: Tensors) -> Iterator[tuple[str, str]]:
    """Pairs of names of one tensor (tied weights), of which a file may hold one only."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in wanted.items():
        if not tensor.is_meta and tensor.numel():
            seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    for names in seen.values():
        yield from ((one, other) for one in names for other in names if one != other)
