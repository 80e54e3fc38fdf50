"""Weight-only quantization: integers of few bits in the place of the weights of linear layers and embeddings."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from optkit.core.checks import check_choice, check_positive
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import Pick
from optkit.core.model_copy import sharing
from optkit.quantize.accuracy.gptq import DAMPING
from optkit.quantize.batches import Batches
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.rounding import Report, Rounding, round_linears
from optkit.quantize.weights.scheme import AUTO, ROUNDINGS, Scheme, check_scaling, reads_data, vocabulary_scheme
from optkit.quantize.weights.selection import (
    Selection,
    empty_embedding,
    empty_linear,
    put,
    select,
    stacked,
    tie_all,
    weight_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WeightOnly(Selection):
    """A model with quantized weights, and the layers whose weights they are, which rebuild it.

    Attributes:
        module: of the class that went in, some of its layers replaced.
        report: what rounding by data did; None for weights rounded to the nearest.
        layers, embeddings: paths of the linear layers and of the embeddings replaced.
        scheme, others: of the integers, and of those of the layers that have others.
        tied: which linear layer reads the integers of which embedding.
        left: for each layer that stays in float though it was asked for, the reason.
    """

    module: nn.Module
    report: Report | None = None


def quantize_weight_only(
    model: nn.Module,
    *,
    bits: int = 8,
    group_size: int | str | None = AUTO,
    symmetric: bool | None = None,
    embeddings: bool = False,
    head: bool = False,
    vocabulary_bits: int | None = None,
    bits_of: Mapping[str, int] | None = None,
    protect: tuple[str, ...] = (),
    rounding: str | None = None,
    smooth: float | None = None,
    batches: Iterable[Any] | None = None,
    inputs: Pick | None = None,
    activation_order: bool = True,
    damping: float = DAMPING,
    workdir: str | Path | None = None,
    in_place: bool = False,
) -> WeightOnly:
    """Quantize weights, and nothing else; activations stay in float.

    A weight is ``(integer - zero point) * scale``. Torch has kernels for 8 bits, symmetric, with a scale for each
    output (``_weight_int8pack_mm``), and for 4 or 3 bits in groups of 32, 64, 128 or 256
    (``_weight_int4pack_mm_for_cpu``); they multiply in bfloat16. With any other scheme a layer multiplies by the
    float32 weights that the integers stand for, which is no faster than before; engines with kernels of their own
    read the integers (`optkit.core.packed_weights`).

    Args:
        model: a float model; not touched unless `in_place`.
        bits: 8, 4 or 3. Three bits are stored in four.
        group_size: how many inputs share a scale; None: all inputs of an output; ``auto``: None for 8 bits, 64 for
            fewer, and layers that 64 does not divide stay in float.
        symmetric: whether zero points are 0; None: for 8 bits they are.
        embeddings, head: whether embeddings, and the layer that gives the logits of a vocabulary, are quantized. A head
            tied to an embedding comes with it, and stays tied. Both are rounded to the nearest where tied.
        vocabulary_bits: of embeddings and heads, where they are to have others than `bits`: 8 beside 4 costs little
            memory and less accuracy. Their groups and zero points are those that ``auto`` and None mean.
        bits_of: patterns of paths of layers and embeddings that are to have other bits, ``{"*.down_proj": 8}``; their
            groups and zero points are those that ``auto`` and None mean. The last pattern that matches counts.
        protect: patterns of layer paths that stay in float.
        rounding: ``nearest``; by data: ``gptq`` (Frantar et al., 2023), ``awq`` (Lin et al., 2024), or ``gptq+awq``,
            which scales by AWQ and rounds by GPTQ. None: ``gptq`` if there are batches.
        smooth: alpha of SmoothQuant (Xiao et al., 2023), 0.5 for most models: the range of activations moves into the
            weights, by the norm or linear layer before them, for engines that round activations at every call
            (OpenVINO's ``dynamic_quantization_group_size``). Not with AWQ, which scales the same activations.
        batches: what to round by, as for `quantize_static`. Residual blocks are handled one after another, hidden
            states wait in files.
        inputs: picks the model's inputs of a batch that holds more: ``inputs=lambda batch: batch[0]``.
        activation_order, damping: of GPTQ, see `Rounding`.
        workdir: a folder for hidden states and finished blocks: called again with it after a kill, the work goes on at
            the block where it stood. None: a temporary folder.
        in_place: replace the layers of the model that goes in, whose float weights are then freed block after block.

    Raises:
        UserError: an option out of its range, a group size that does not divide the inputs of a layer, a pattern that
            matches no layer, AWQ of a model without residual blocks.
        StageError: no layer of this model fits.
    """
    how = rounding if rounding is not None else "nearest" if batches is None else "gptq"
    check_choice("rounding", how, ROUNDINGS)
    check_positive("damping", damping)
    check_scaling(how, smooth)
    if reads_data(how, smooth) != (batches is not None):
        reads, fix = ("reads", "batches=...") if batches is None else ("reads no", "rounding=gptq, or no batches")
        raise UserError(f"{how} {reads} batches", key="rounding", value=how, fix=fix)
    selection = chosen(model, bits, group_size, symmetric, embeddings, head, vocabulary_bits, bits_of, protect)
    if not selection:
        raise StageError(_nothing(model, selection))
    if experts := stacked(model):
        log.warning("experts stay in float: %s", ", ".join(experts))
    module = (model if in_place else sharing(model)).eval()
    _embed(module, selection)
    report = None
    if batches is None:
        for path in selection.layers:
            if path not in selection.tied:
                linear = module.get_submodule(path)
                layer = empty_linear(linear, selection.scheme_of(path))
                layer.take(weight_of(linear), Grid.minmax(weight_of(linear), layer.scheme))
                module.set_submodule(path, layer)
    else:
        given = Batches.of(batches, None, inputs)
        options = Rounding(smooth, "awq" in how, "gptq" in how, activation_order, damping)
        with tempfile.TemporaryDirectory() as folder:
            report = round_linears(module, selection, options, given, Path(workdir or folder))
    return WeightOnly(**vars(selection), module=module.eval(), report=report)


def replay_weight_only(
    model: nn.Module,
    layers: tuple[str, ...],
    bits: int,
    group_size: int | None,
    symmetric: bool,
    embeddings: tuple[str, ...] = (),
    tied: dict[str, str] | None = None,
    others: dict[str, dict[str, Any]] | None = None,
) -> nn.Module:
    """The structure that `quantize_weight_only` gave, on a fresh model; the weights are loaded over it."""
    own = {path: Scheme(**scheme) for path, scheme in (others or {}).items()}
    return put(model, Selection(layers, Scheme(bits, group_size, symmetric), embeddings, tied or {}, others=own))


def chosen(
    model: nn.Module,
    bits: int,
    group_size: int | str | None,
    symmetric: bool | None,
    embeddings: bool = False,
    head: bool = False,
    vocabulary_bits: int | None = None,
    bits_of: Mapping[str, int] | None = None,
    protect: tuple[str, ...] = (),
) -> Selection:
    """The layers that options mean, and what their weights become."""
    scheme, other = Scheme.of(bits, group_size, symmetric), vocabulary_scheme(vocabulary_bits, embeddings, head)
    strict = group_size != AUTO
    return select(
        model,
        scheme,
        of_vocabulary=other,
        bits_of=bits_of,
        embeddings=embeddings,
        head=head,
        protect=protect,
        strict=strict,
    )


def check_weight_only(
    model: nn.Module,
    bits: int,
    group_size: int | str | None,
    symmetric: bool | None = None,
    embeddings: bool = False,
    head: bool = False,
    vocabulary_bits: int | None = None,
    bits_of: Mapping[str, int] | None = None,
    protect: tuple[str, ...] = (),
) -> None:
    """Raises UserError unless a layer of the model fits and every pattern matches one."""
    selection = chosen(model, bits, group_size, symmetric, embeddings, head, vocabulary_bits, bits_of, protect)
    if not selection:
        raise UserError(_nothing(model, selection), key="bits", value=bits)


def _embed(module: nn.Module, selection: Selection) -> None:
    """Quantizes the embeddings, and the heads that are tied to them, to the nearest."""
    heads = {path: empty_linear(module.get_submodule(path), selection.scheme_of(path)) for path in selection.tied}
    for path in selection.embeddings:
        table = module.get_submodule(path)
        layer = empty_embedding(table, selection.scheme_of(path))
        layer.take(weight_of(table), Grid.minmax(weight_of(table), layer.scheme))
        module.set_submodule(path, layer)
    for path, head in heads.items():
        module.set_submodule(path, head)
    tie_all(module, selection)


def _nothing(model: nn.Module, selection: Selection) -> str:
    reason = "; ".join(f"{path}: {why}" for path, why in list(selection.left.items())[:3])
    return f"no layer of this {type(model).__name__} fits: {reason or 'it has no linear layer'}"
