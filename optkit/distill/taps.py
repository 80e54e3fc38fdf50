"""Feature taps: the outputs of modules of a model, by path, and the attention inside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from optkit.core.attention import spelled_out
from optkit.core.checks import check_pattern
from optkit.models.stacks import first_tensor

_ATTENTION = F.scaled_dot_product_attention


@dataclass
class Attention:
    """One attention operation, as it was called.

    Attributes:
        scores: before the softmax, ``(N, heads, L, S)``; None where they follow from query and key.
        query, key, value: ``(N, heads, L or S, head size)``; None where the model does not call
            ``scaled_dot_product_attention``.
        mask: what is added to the scores, or bool: which pairs may attend; None for none.
        scale: of the products; None for one over the root of the head size.
    """

    scores: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    scale: float | None = None


@dataclass
class Tapped:
    """The output of a module in its last call: its (first) tensor, and the attention operations inside it."""

    output: Tensor
    attention: list[Attention] = field(default_factory=list)


class Taps:
    """Keeps the outputs of some modules of a model while the ``with`` block lasts.

    Args:
        model: its hooks are removed when the block ends, in whatever way.
        paths: of modules.
        attention: keep the attention operations inside them, too: calls of ``scaled_dot_product_attention``, or else
            softmaxes over ``(N, heads, L, S)``. The model must be run under `watching`.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], attention: bool = False):
        self.model, self.paths, self.attention = model, tuple(dict.fromkeys(paths)), attention
        self._found: dict[str, Tapped] = {}
        self._watch = _AttentionWatch() if attention else None
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for path in self.paths:
            module = self.model.get_submodule(path)
            if self._watch is not None:
                self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The block in which the model is to be run."""
        if self._watch is None:
            yield
            return
        with spelled_out(), self._watch:
            yield

    def pop(self) -> dict[str, Tapped]:
        """The outputs of the last run, by path; the taps forget them."""
        found, self._found = self._found, {}
        return found

    def _before(self, *_: object) -> None:
        assert self._watch is not None
        self._watch.taken()

    def _after(self, path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                self._found[path] = Tapped(tensor, self._watch.taken() if self._watch else [])

        return hook


class _AttentionWatch(TorchFunctionMode):
    """Notes the attention operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Attention] = []

    def taken(self) -> list[Attention]:
        """What was called since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append(_attention(*args, **kwargs))
        elif func in (F.softmax, torch.softmax, Tensor.softmax) and isinstance(args[0], Tensor) and args[0].dim() == 4:
            self.calls.append(Attention(scores=args[0]))
        elif func is F.multi_head_attention_forward:  # a mode does not see what is called inside it
            with patch.object(F, "scaled_dot_product_attention", self._noted):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _noted(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(_attention(*args, **kwargs))
        return _ATTENTION(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return Attention(None, query, key, value, attn_mask, scale)


@contextmanager
def tapping(model: nn.Module, paths: Sequence[str], attention: bool = False) -> Iterator[Taps]:
    """`Taps` with the attention watched for the whole block."""
    with Taps(model, paths, attention) as taps, taps.watching():
        yield taps


def matching(model: nn.Module, pattern: str, key: str) -> list[str]:
    """The paths of a model's modules that match a pattern (as in :mod:`fnmatch`), in the model's order.

    Raises:
        UserError: none does.
    """
    paths = [path for path, _ in model.named_modules() if path]
    return check_pattern(key, pattern, paths, f"module of {type(model).__name__}")
