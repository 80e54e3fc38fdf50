"""Causal language models: tokens to logits, with a cache for generation."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from optkit.core.errors import StageError
from optkit.core.generation import CachedModel
from optkit.models.growing_cache import cache_of, empty_cache, held
from optkit.models.hf_config import whole_config
from optkit.models.static_cache import static_cache


class CausalLM(nn.Module):
    """A ``...ForCausalLM`` that takes tokens ``(N, T)`` and returns logits ``(N, T, V)``.

    Attributes:
        model: the Hugging Face model, of its own class.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits

    @property
    def longest(self) -> int | None:
        """The most tokens that the model takes, as its config has it; None where it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def cached(self) -> CachedModel:
        """The same model with a cache; see `optkit.core.generation`."""
        return CachedCausalLM(self.model)

    def skeleton(self) -> dict[str, Any]:
        """What builds the same structure again without the hub: the whole config."""
        return {"target": "optkit.models.language_model", "params": {"config": whole_config(self.model)}}


class CachedCausalLM(CachedModel):
    """A Hugging Face model with its cache as inputs and outputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._takes = inspect.signature(model.forward).parameters.keys()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, places: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        cache = cache_of(past)
        return (self._logits(input_ids, attention_mask, position_ids, places, cache), *held(cache))

    def _logits(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, places: Tensor, cache: Cache
    ) -> Tensor:
        named: dict[str, Any] = {"position_ids": position_ids} if "position_ids" in self._takes else {}
        if "logits_to_keep" in self._takes:
            named["logits_to_keep"] = places
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **named
        )
        return found.logits if "logits_to_keep" in named else found.logits[:, places]

    def nothing_read(self, rows: int) -> tuple[Tensor, ...]:
        cache = empty_cache()
        device = next(self.model.parameters()).device
        try:
            with torch.no_grad():
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), past_key_values=cache)
            layers = held(cache)
            if not layers or any(x.dim() != 4 or x.shape[2] != 1 for x in layers):
                raise IndexError("no keys and values of the token")
            return tuple(x.new_zeros(rows, x.shape[1], 0, x.shape[3]) for x in layers)
        except (AttributeError, IndexError, TypeError) as error:
            message = f"{type(self.model).__name__} keeps a state between tokens that is no keys and values"
            raise StageError(message, fix="optkit generates with attention in all layers") from error

    def in_place(self) -> nn.Module:
        if "local" in (getattr(self.model.config, "attention_layers", None) or ()):  # GPT-Neo
            message = f"the local attention of {type(self.model).__name__} lies at the end of the cache, filled or not"
            raise StageError(message, fix="another engine: eager or openvino")
        return InPlaceCausalLM(self)


class InPlaceCausalLM(nn.Module):
    """See `CachedModel.in_place`."""

    def __init__(self, cached: CachedCausalLM):
        super().__init__()
        self.cached = cached

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        places: Tensor,
        slots: Tensor,
        *cache: Tensor,
    ) -> Tensor:
        return self.cached._logits(input_ids, attention_mask, position_ids, places, static_cache(cache, slots))
