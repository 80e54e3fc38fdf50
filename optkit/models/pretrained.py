"""Saves a Hugging Face model so that plain ``from_pretrained`` loads it, if its own config can express it."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import first_line
from optkit.models.causal_lm import CausalLM
from optkit.models.classifiers import ImageClassifier, TextClassifier
from optkit.models.hf_config import REFUSALS
from optkit.models.huggingface import quietly

log = logging.getLogger(__name__)
ROUNDING = 1e-4
HUGGINGFACE = ("optkit.models.huggingface", "optkit.models.language_model")
TOKENS = 64  # on which answers of language models are compared
Shapes = dict[str, tuple[int, ...]]
Misfits = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def is_huggingface(module: nn.Module) -> bool:
    """Whether there is a Hugging Face model of its own class inside."""
    return isinstance(module, (TextClassifier, ImageClassifier, CausalLM))


def save_pretrained(module: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str | None:
    """Saves a model as ``config.json`` and ``model.safetensors`` for ``from_pretrained``, if that gives it back.

    It is decided by trying: the config entries are found with which the class has the very shapes of this model, the
    model is saved with them, loaded by its class alone, and asked on `example`.

    Args:
        module: what `optkit.models.huggingface` or `language_model` gave, after any stages that keep its class.
        example: inputs of the model.
        folder: is made, or removed again if the model cannot be expressed.

    Returns:
        None if it was saved; else why it cannot be, and reloads through optkit only.
    """
    assert isinstance(module, (TextClassifier, ImageClassifier, CausalLM))
    if isinstance(module, CausalLM):
        example = (example[0][:1, :TOKENS],)
    model: Any = module.model
    config = expressed(model)
    if config is None:
        differing = _misfits(_shapes(model), _built(type(model), model.config))
        name, (ours, theirs) = next(iter(differing.items()))
        return f"no config of {type(model).__name__} has {name} of {list(ours)}: it makes it {list(theirs)}"
    before = model.config
    with quietly():
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
    held = {name for module in model.modules() for name in vars(module)}

    def likely(config: Any, left: Misfits) -> Iterator[dict[str, Any]]:
        """Those that no module holds: one that holds another value would contradict it."""
        return (entries for entries in _candidates(config, left) if not entries.keys() & held)

    while left:
        tried = (_nearer(model, wanted, config, left, found) for found in (likely, _candidates, _open))
        best = next((found for found in tried if found is not None), None)
        if best is None:
            return None
        config, left = best
    return _changed(config, dict(_numbers(model, config)))


def _nearer(
    model: Any, wanted: Shapes, config: Any, left: Misfits, candidates: Callable[[Any, Misfits], Iterator[dict]]
) -> tuple[Any, Misfits] | None:
    """The config with the entries that leave fewest misfits, and these; None if none leaves fewer."""
    best = None
    for entries in candidates(config, left):
        changed = _changed(config, entries)
        built = None if changed is None else _built(type(model), changed)
        misfits = _misfits(wanted, built)
        if built is not None and len(misfits) < len(best[1] if best else left):
            best = (changed, misfits)
    return best


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _misfits(ours: Shapes, theirs: Shapes | None) -> Misfits:
    """Tensors of another shape, or that one side lacks (an empty shape)."""
    theirs = theirs or {}
    names = [*ours, *(n for n in theirs if n not in ours)]
    return {n: (ours.get(n, ()), theirs.get(n, ())) for n in names if ours.get(n) != theirs.get(n)}


def _numbers(model: Any, config: Any) -> Iterator[tuple[str, float]]:
    """Entries for numbers that all modules hold another value of, such as the epsilon of narrower norms."""
    built = _empty(type(model), config)
    assert built is not None
    others = dict(built.named_modules())
    changes: dict[float, set[float]] = {}
    for path, module in model.named_modules():
        for name, ours in vars(module).items():
            theirs = vars(others[path]).get(name) if path in others else None
            if type(ours) is float and type(theirs) is float:
                changes.setdefault(theirs, set()).add(ours)
    for name, value in config.to_dict().items():
        found = changes.get(value, set()) if type(value) is float else set()
        if len(found) == 1 and found != {value}:
            yield name, found.pop()


def _built(kind: type[nn.Module], config: Any, level: int = logging.DEBUG) -> Shapes | None:
    """The shapes of a model that the class builds from a config; None if it refuses."""
    built = _empty(kind, config, level)
    return None if built is None else _shapes(built)


def _empty(kind: type[nn.Module], config: Any, level: int = logging.DEBUG) -> nn.Module | None:
    """What the class builds from a config, without memory for weights; None, and a line in the log, if it refuses."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    try:
        with init_empty_weights():
            return kind(copy.deepcopy(config))
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


def _differing(left: Misfits) -> list[tuple[int, int]]:
    """The sizes that differ: ours, and that of the config."""
    sizes = [zip(ours, theirs, strict=True) for ours, theirs in left.values() if len(ours) == len(theirs)]
    return sorted({(new, old) for pairs in sizes for new, old in pairs if new != old})


def _open(config: Any, left: Misfits) -> Iterator[dict[str, Any]]:
    """Entries that leave a size to the others, such as the ``n_inner`` of GPT-2."""
    for name, value in config.to_dict().items():
        if value is None and not name.endswith("_id"):  # of tokens
            yield from ({name: new} for new, _ in _differing(left))


def _candidates(config: Any, left: Misfits) -> Iterator[dict[str, Any]]:
    """Entries, and places in lists, that are as large as a dimension that differs, or have a part in it."""
    pairs = _differing(left)
    for name, value in config.to_dict().items():
        for new, old in pairs:
            if type(value) is int and value > 1 and value * new % old == 0:
                yield {name: value * new // old}
            if isinstance(value, (list, tuple)):
                for place, item in enumerate(value):
                    if type(item) is int and item > 1 and item * new % old == 0:
                        yield {name: [*value[:place], item * new // old, *value[place + 1 :]]}
