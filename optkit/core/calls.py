"""Calls of a model with the inputs of an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Inputs = tuple[Any, ...] | Mapping[str, Any]
# what a model, or an operator of it, raises that cannot do with what it is given
ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError, AttributeError, KeyError)
TOKENS = 64  # show how a language model works; with thousands, its activations and logits take gigabytes


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a tuple of arguments or a mapping of keyword arguments."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


@contextmanager
def same_draws(inputs: Inputs, seed: int = 0) -> Iterator[None]:
    """Inside, a model draws the random numbers of this seed; afterwards the generators are as before."""
    import torch

    from optkit.core.nested import tensors_of

    devices = sorted({t.device.index for t in tensors_of(inputs) if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def few_tokens(model: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs that are all token numbers ``(N, T)``, cut to 64 tokens if the model takes so few; others as they are."""
    import torch

    from optkit.core.compat import torch_trees as pytree
    from optkit.core.model_copy import sharing

    given = inputs.values() if isinstance(inputs, Mapping) else inputs
    lengths = {x.shape[1] if _is_tokens(x) else 0 for x in given}
    if len(lengths) != 1 or max(lengths) <= TOKENS:
        return inputs
    fewer = pytree.tree_map_only(torch.Tensor, lambda x: x[:, :TOKENS], inputs)
    with torch.no_grad(), same_draws(fewer):
        try:
            call(sharing(model).eval(), fewer)
        except ERRORS:
            return inputs
    return fewer


def _is_tokens(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor) and x.dim() == 2 and not (x.is_floating_point() or x.is_complex())
