"""Which layers of a model get weights of few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.checks import check_pattern
from optkit.core.errors import UserError
from optkit.quantize.weights.layers import PackedEmbedding, PackedLinear, misfit, tie
from optkit.quantize.weights.scheme import AUTO, Scheme

CONV1D = "transformers.pytorch_utils.Conv1D"  # of GPT-2: a linear layer with weights (in, out)


@dataclass(frozen=True)
class Selection:
    """Layers to quantize, by their paths, and what their weights become.

    Attributes:
        layers: linear layers, heads among them.
        scheme: of all of them but `others`.
        embeddings: embeddings.
        tied: which linear layer shares its weights with which embedding.
        left: for each layer that was asked for and stays in float, the reason.
        others: schemes of the layers and embeddings that have one of their own.
    """

    layers: tuple[str, ...]
    scheme: Scheme
    embeddings: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    others: dict[str, Scheme] = field(default_factory=dict)

    def scheme_of(self, path: str) -> Scheme:
        """What the weights of one of the layers become."""
        return self.others.get(path, self.scheme)

    def __len__(self) -> int:
        return len(self.layers) + len(self.embeddings)


def select(
    model: nn.Module,
    scheme: Scheme,
    *,
    of_vocabulary: Scheme | None = None,
    bits_of: Mapping[str, int] | None = None,
    embeddings: bool = False,
    head: bool = False,
    protect: tuple[str, ...] = (),
    strict: bool = False,
) -> Selection:
    """Chooses the layers that fit.

    Args:
        model: a float model.
        scheme: of the weights.
        of_vocabulary: of the weights of embeddings and heads; None: that of the others.
        bits_of: patterns of layer paths whose weights have so many bits; the last one that matches counts.
        embeddings, head: whether to take these. A head that shares its weights with an embedding comes with it.
        protect: patterns of layer paths that stay in float.
        strict: refuse a group size that does not divide the inputs of a layer.

    Raises:
        UserError: a pattern that matches no layer, a group size that does not divide, or no such embedding or head.
    """
    linears = {path: module for path, module in model.named_modules() if is_linear(module)}
    tables = {path: module for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    shared = {id(table.weight): path for path, table in tables.items()}
    tied = {path: shared[id(linear.weight)] for path, linear in linears.items() if id(linear.weight) in shared}
    heads = {*tied, *_heads(model, linears)}
    if head and not heads:
        raise UserError(
            f"this {type(model).__name__} has no head over a vocabulary", key="head", value=True, fix="head=false"
        )
    if embeddings and not tables:
        fix = "embeddings=false"
        raise UserError(f"this {type(model).__name__} has no embedding", key="embeddings", value=True, fix=fix)
    known = {**linears, **(tables if embeddings or head else {})}
    protected = {path for pattern in protect for path in check_pattern("protect", pattern, known, "linear layer")}
    wanted = [path for path in linears if path not in heads or head or (embeddings and path in tied)]
    wanted += [path for path in tables if embeddings or (head and path in tied.values())]
    others = dict.fromkeys([*heads, *tables], of_vocabulary) if of_vocabulary else {}
    for pattern, bits in (bits_of or {}).items():
        own = Scheme.of(bits, AUTO, None, "bits_of")
        for path in check_pattern("bits_of", pattern, known, "linear layer"):
            others |= dict.fromkeys([path, *_partners(path, tied)], own)
    every = Selection(tuple(linears), scheme, tuple(tables), others=others)
    reasons = {
        path: "protected" if path in protected else _misfit(known[path], every.scheme_of(path)) for path in wanted
    }
    for one, other in tied.items():  # both or neither
        if one in reasons and (reason := reasons[one] or reasons[other]):
            reasons[one] = reasons[other] = reason
    if strict:
        for path, reason in reasons.items():
            size = every.scheme_of(path).group_size
            if reason != "protected" and (inputs := _shape(known[path])[0]) % (size or inputs):
                raise UserError(
                    f"groups of {size} do not divide the {inputs} inputs of {path}",
                    key="group_size", value=size, fix="a divisor of the inputs, or this layer in protect",
                )  # fmt: skip
    fit = [path for path, reason in reasons.items() if not reason]
    return Selection(
        tuple(path for path in fit if path in linears),
        scheme,
        tuple(path for path in fit if path in tables),
        {one: other for one, other in tied.items() if one in fit},
        {path: reason for path, reason in reasons.items() if reason} | stacked(model),
        {path: own for path, own in others.items() if path in fit and own != scheme},
    )


def _partners(path: str, tied: Mapping[str, str]) -> list[str]:
    """The head, or the embedding, that a layer shares its weights with."""
    return [*(one for one, other in tied.items() if other == path), *([tied[path]] if path in tied else [])]


def put(model: nn.Module, selection: Selection) -> nn.Module:
    """Replaces the layers by empty ones; weights are loaded over them."""
    for path in selection.layers:
        model.set_submodule(path, empty_linear(model.get_submodule(path), selection.scheme_of(path)))
    for path in selection.embeddings:
        model.set_submodule(path, empty_embedding(model.get_submodule(path), selection.scheme_of(path)))
    tie_all(model, selection)
    return model


def tie_all(model: nn.Module, selection: Selection) -> None:
    """Makes quantized heads read the integers of the embeddings that they are tied to."""
    for one, other in selection.tied.items():
        head, embedding = model.get_submodule(one), model.get_submodule(other)
        assert isinstance(head, PackedLinear)
        assert isinstance(embedding, PackedEmbedding)
        tie(head, embedding)


def empty_linear(linear: nn.Module, scheme: Scheme) -> PackedLinear:
    """A layer of the same shape, its bias taken over, its weights still to come."""
    layer = PackedLinear(*_shape(linear), linear.bias is not None, scheme)
    if isinstance(linear.bias, Tensor) and layer.bias is not None:
        layer.bias.data = linear.bias.detach().float().clone()
    return layer


def empty_embedding(embedding: nn.Module, scheme: Scheme) -> PackedEmbedding:
    """An embedding of the same shape, its weights still to come."""
    assert isinstance(embedding, nn.Embedding)
    return PackedEmbedding(embedding.num_embeddings, embedding.embedding_dim, scheme, embedding.weight.dtype)


def is_linear(module: nn.Module) -> bool:
    """Whether it multiplies by one matrix and adds a bias."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def weight_of(linear: nn.Module) -> Tensor:
    """The weights of a linear layer or an embedding, ``(out, in)`` float32; those of its own where they are such."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return outputs_first(linear, weight.detach()).float().contiguous()


def outputs_first(linear: nn.Module, weight: Tensor) -> Tensor:
    """A tensor of the shape of a layer's weights as ``(out, in)``, and the reverse: Conv1D has ``(in, out)``."""
    return weight.T if _is_conv1d(linear) else weight


@torch.no_grad()
def set_weight(linear: nn.Module, weight: Tensor) -> None:
    """Gives a linear layer other weights ``(out, in)``; those that it had are not written to."""
    old = linear.weight
    assert isinstance(old, nn.Parameter)
    new = outputs_first(linear, weight).to(old.dtype).contiguous()
    linear.weight = nn.Parameter(new, requires_grad=old.requires_grad)


def _is_conv1d(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == CONV1D


def _shape(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    outputs, inputs = weight.shape
    return (outputs, inputs) if _is_conv1d(module) else (inputs, outputs)


@torch.no_grad()
def _multiplies_plainly(module: nn.Module) -> bool:
    """Whether a linear layer with a forward pass of its own (Falcon's) gives what a plain one does."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    x = torch.linspace(-1, 1, 2 * module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    x = x.view(2, -1)
    return torch.allclose(module(x), nn.functional.linear(x, module.weight, module.bias), atol=1e-5, rtol=1e-4)


def _misfit(module: nn.Module, scheme: Scheme) -> str | None:
    """Why a layer cannot have such weights; None if it can."""
    kinds: tuple[Any, ...] = (nn.Linear, nn.Embedding)
    if not _is_conv1d(module) and type(module) not in kinds and not _multiplies_plainly(module):
        return f"a {type(module).__name__}, which does more than a plain layer"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "it changes its rows when it reads them"
    inputs, outputs = _shape(module)
    if inputs % (scheme.group_size or inputs):
        return f"its {inputs} inputs are no multiple of the group size {scheme.group_size}"
    if isinstance(module, nn.Embedding) or not scheme.has_kernel:
        return None
    return misfit(inputs, outputs, scheme)


def stacked(model: nn.Module) -> dict[str, str]:
    """Parts of a model that keep the matrices of several linear layers in one tensor, as experts do, and why not these.

    Their weights stay in float.
    """
    found = {}
    for path, module in model.named_modules():
        shapes = [list(p.shape) for p in module.parameters(recurse=False) if p.dim() == 3]
        if shapes and type(module).__module__.partition(".")[0] != "torch":
            found[path] = f"its weights are stacked matrices, {' and '.join(map(str, shapes))}"
    return found


def _heads(model: nn.Module, linears: dict[str, nn.Module]) -> set[str]:
    """Linear layers that models of the transformers library name as what gives the logits of a vocabulary."""
    found = set()
    for module in model.modules():
        if callable(named := getattr(module, "get_output_embeddings", None)):
            found |= {path for path, linear in linears.items() if linear is named()}
    return found
