"""A cache of keys and values for transformers' models in tensors of a fixed length, which new tokens are written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Static(CacheLayerMixin):
    """Keys and values of one layer ``(N, heads, length, width)``: of all tokens, also where attention slides.

    Args:
        keys, values: of earlier tokens; they are written to.
        slots: where those of the new tokens go, ``(T,)``.
    """

    is_sliding = False
    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor):
        super().__init__()
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.slots = slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the tensors are given."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # where products are in half precision, so are the new keys and values
        self.keys.index_copy_(2, self.slots, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.slots, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        """A tensor, so that a compiled model does not depend on its value."""
        return self.slots[0]

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


def static_cache(tensors: Sequence[Tensor], slots: Tensor) -> Cache:
    """A cache that writes to tensors, first the keys and then the values of each layer."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache(layers=[Static(keys, values, slots) for keys, values in pairs])
