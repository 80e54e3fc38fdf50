"""Saves a Hugging Face model so that plain ``from_pretrained`` loads it, if its own config can express it."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import first_line
from optkit.models.classifiers import ImageClassifier, TextClassifier
from optkit.models.hf_config import REFUSALS
from optkit.models.huggingface import _quietly

log = logging.getLogger(__name__)
ROUNDING = 1e-4
HUGGINGFACE = "optkit.models.huggingface"
Shapes = dict[str, tuple[int, ...]]


def is_huggingface(module: nn.Module) -> bool:
    """Whether there is a Hugging Face model of its own class inside."""
    return isinstance(module, (TextClassifier, ImageClassifier))


def save_pretrained(module: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str | None:
    """Saves a model as ``config.json`` and ``model.safetensors`` for ``from_pretrained``, if that gives it back.

    It is decided by trying: the config entries are found with which the class has the very shapes of this model, the
    model is saved with them, loaded by its class alone, and asked on `example`.

    Args:
        module: what `optkit.models.huggingface` gave, after any stages that keep its class.
        example: inputs of the model.
        folder: is made, or removed again if the model cannot be expressed.

    Returns:
        None if it was saved; else why it cannot be, and reloads through optkit only.
    """
    assert isinstance(module, (TextClassifier, ImageClassifier))
    model: Any = module.model
    config = expressed(model)
    if config is None:
        differing = _misfits(_shapes(model), _built(type(model), model.config))
        name, (ours, theirs) = next(iter(differing.items()))
        return f"no config of {type(model).__name__} has {name} of {list(ours)}: it makes it {list(theirs)}"
    before = model.config
    with _quietly():
        try:
            model.config = config
            model.save_pretrained(folder)
        finally:
            model.config = before
        loaded = type(module)(type(model).from_pretrained(folder, dtype=torch.float32)).eval()
    with torch.no_grad():
        ours, theirs = module.eval()(*example), loaded(*example)
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-9))
    if not difference <= ROUNDING:
        shutil.rmtree(folder)
        return f"{type(model).__name__} of these shapes answers otherwise (by {difference:.1e} relative)"
    return None


def expressed(model: Any) -> Any | None:
    """A config from which the model's class is built with the model's own shapes; None if none is found.

    No names are known here. An entry is tried with the value that modules hold under its name
    (``num_attention_heads``), and entries that are as large as a dimension that was cut with what is left of it; what
    brings the shapes nearer stays.
    """
    wanted = _shapes(model)
    config = copy.deepcopy(model.config)
    # a config that a model came from builds it: that it does not is unexpected
    left = _misfits(wanted, _built(type(model), config, logging.WARNING))
    for entries in _held_by_modules(model):
        changed = _changed(config, entries)
        if changed is not None and (built := _built(type(model), changed)) is not None:
            config, left = changed, _misfits(wanted, built)
    while left:
        best = None
        for entries in _candidates(config, left):
            changed = _changed(config, entries)
            built = None if changed is None else _built(type(model), changed)
            misfits = _misfits(wanted, built)
            if built is not None and len(misfits) < len(left) and (best is None or len(misfits) < len(best[1])):
                best = (changed, misfits)
        if best is None:
            return None
        config, left = best
    return config


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfits(ours: Shapes, theirs: Shapes | None) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Tensors of another shape, or that one side lacks (an empty shape)."""
    theirs = theirs or {}
    names = [*ours, *(n for n in theirs if n not in ours)]
    return {n: (ours.get(n, ()), theirs.get(n, ())) for n in names if ours.get(n) != theirs.get(n)}


def _built(kind: type[nn.Module], config: Any, level: int = logging.DEBUG) -> Shapes | None:
    """The shapes of a model that the class builds from a config; None, and a line in the log, if it refuses."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    try:
        with init_empty_weights():
            return _shapes(kind(copy.deepcopy(config)))
    except (*REFUSALS, StrictDataclassError) as error:
        log.log(level, "%s is not built from its config: %s", kind.__name__, first_line(error))
        return None


def _changed(config: Any, entries: dict[str, Any]) -> Any | None:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return type(config).from_dict(copy.deepcopy(config.to_dict()) | entries)
    except (*REFUSALS, StrictDataclassError) as error:
        log.debug("%s does not take %s: %s", type(config).__name__, entries, first_line(error))
        return None


def _held_by_modules(model: Any) -> Iterator[dict[str, int]]:
    """Entries that modules hold under the same name, all of them with the same other value."""
    for name, value in model.config.to_dict().items():
        if type(value) is int:
            held = {v for module in model.modules() if type(v := vars(module).get(name)) is int}
            if len(held) == 1 and held != {value}:
                yield {name: held.pop()}


def _candidates(config: Any, left: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[dict[str, Any]]:
    """Entries, and places in lists, that are as large as a dimension that differs, or have a part in it."""
    pairs = {
        pair
        for ours, theirs in left.values()
        if len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True)
        if pair[0] != pair[1]
    }
    for name, value in config.to_dict().items():
        for new, old in sorted(pairs):
            if type(value) is int and value > 1 and value * new % old == 0:
                yield {name: value * new // old}
            if isinstance(value, (list, tuple)):
                for place, item in enumerate(value):
                    if type(item) is int and item > 1 and item * new % old == 0:
                        yield {name: [*value[:place], item * new // old, *value[place + 1 :]]}
