"""Copies of a model whose tensors are given."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optkit.core.nested import tensors_of


def duplicate(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """A copy of a model that holds ``tensors`` (by the ids of those they stand for); all others are copied."""
    memo: dict[int, Any] = dict(tensors)
    for module in model.modules():
        for value in vars(module).values():
            # modules hold a dozen empty tables of hooks each, on which a deep copy would spend most of its time
            if type(value) in (dict, OrderedDict) and not value:
                memo[id(value)] = type(value)()
            else:
                # computed in forward, as by weight_norm: has no deep copy
                memo |= {id(tensor): tensor.detach().clone() for tensor in tensors_of(value) if not tensor.is_leaf}
    return copy.deepcopy(model, memo)


def sharing(model: nn.Module, buffers: bool = False) -> nn.Module:
    """A copy that holds the model's own parameters, and its own buffers if ``buffers``.

    Modules can be taken out of the copy or hooked, and the model keeps them. What a run writes to a buffer stays in the
    copy, unless buffers are shared.
    """
    shared = [*model.parameters(), *(model.buffers() if buffers else ())]
    return duplicate(model, {id(tensor): tensor for tensor in shared})
