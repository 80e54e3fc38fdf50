"""A cache of keys and values for transformers' models, held in tensors that come in and go out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Growing(CacheLayerMixin):
    """Keys and values of one layer ``(N, heads, tokens, width)``: all of them, also where attention slides."""

    is_sliding = False
    is_compileable = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


def cache_of(past: Sequence[Tensor]) -> Cache:
    """A cache that holds keys and values, first the keys and then the values of each layer."""
    return Cache(layers=[Growing(keys, values) for keys, values in zip(past[::2], past[1::2], strict=True)])


def empty_cache() -> Cache:
    """A cache that takes a layer for each that asks."""
    return Cache(layer_class_to_replicate=Growing)


def held(cache: Cache) -> tuple[Tensor, ...]:
    """Keys and values of all layers, in the order of `cache_of`."""
    layers: list[Any] = cache.layers
    return tuple(x for layer in layers for x in (layer.keys, layer.values))
