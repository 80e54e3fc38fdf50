"""Attention as plain products, so that the product of queries and keys can be quantized."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule


def explicit_attention(program: ExportedProgram) -> GraphModule:
    """An exported program's graph with every ``scaled_dot_product_attention`` spelled out."""
    name = torch.ops.aten.scaled_dot_product_attention.default
    if any(node.target is name for node in program.graph.nodes):
        program = program.run_decompositions({name: attention})
    graph = program.module()
    assert isinstance(graph, GraphModule)
    return graph


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What ``torch.nn.functional.scaled_dot_product_attention`` computes, without dropout."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // key.shape[-3], -3) for x in (key, value))
    scores = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        open_ = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = open_.masked_fill(attn_mask.logical_not(), torch.finfo(query.dtype).min)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)
