"""Hugging Face classifiers behind the call that every model here answers: tensors to logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from optkit.models.hf_config import whole_config


class TextClassifier(nn.Module):
    """A ``...ForSequenceClassification`` that takes tensors by position and returns its logits.

    Attributes:
        model: the Hugging Face model, of its own class.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._takes_kinds = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits ``(N, num_classes)`` of tokens ``(N, length)``."""
        kinds = {} if token_type_ids is None or not self._takes_kinds else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds).logits

    def skeleton(self) -> dict[str, Any]:
        return _skeleton(self.model, ["input_ids", "attention_mask"])


class ImageClassifier(nn.Module):
    """A ``...ForImageClassification`` that returns its logits.

    Attributes:
        model: the Hugging Face model, of its own class.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        return self.model(pixel_values=pixel_values).logits

    def skeleton(self) -> dict[str, Any]:
        return _skeleton(self.model, ["pixel_values"])


def _skeleton(model: Any, inputs: Sequence[str]) -> dict[str, Any]:
    """What builds the same structure again without the hub: the whole config."""
    return {"target": "optkit.models.huggingface", "params": {"config": whole_config(model), "inputs": list(inputs)}}
