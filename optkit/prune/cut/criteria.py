"""How important a unit is: scores of single weights, summed over everything that is cut together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.compat.torch_modules import NormWithStatistics
from optkit.core.compat.torch_operators import private_aten
from optkit.core.errors import UserError, first_line
from optkit.core.instantiate import own_part
from optkit.core.loaders import Pick, model_inputs
from optkit.core.processes import current
from optkit.core.sharding import sharded, summed
from optkit.prune.cut.units import Units
from optkit.prune.options import CRITERIA, NEED_DATA, criterion_name, reads_data

LossFn = Callable[[nn.Module, Any], torch.Tensor]
Criterion = Callable[[nn.Module, list[Any], LossFn | None], Mapping[str, torch.Tensor]]
Slices = dict[tuple[str, int], np.ndarray]  # (parameter, dimension) -> a score for each index
NORMS = ("l1", "l2", "bn_scale", "fpgm", "activation")  # linear in the weights; the others are changes of the loss
ACTIVATION = "activation"
WEIGHT_NORM = private_aten("_weight_norm.default")  # g * v / |v|


def data_for(
    criterion: str | Criterion, batches: Iterable[Any] | None, loss_fn: LossFn | None, inputs: Pick | None = None
) -> tuple[list[Any], LossFn | None]:
    """The batches that the criterion reads, again and again, and what it runs on them; no batches if it needs none.

    Several processes share out the batches, but for a criterion of one's own, which sees all of them in each.

    Args:
        criterion: one of ``CRITERIA``, or your own as in `CutOptions`.
        batches: any iterable.
        loss_fn: ``loss_fn(model, batch)`` to a scalar; ``activation`` can do without, and then only runs the model.
        inputs: picks the model's inputs of a batch, where there is no ``loss_fn``.

    Raises:
        UserError: if it needs data and none is given.
    """
    if inputs is not None and loss_fn is not None:
        raise UserError("loss_fn gets each batch whole", key="inputs", fix="leave inputs out, or loss_fn")
    if not reads_data(criterion):
        return [], loss_fn
    if criterion not in NEED_DATA:  # one's own takes what there is
        return list(() if batches is None else batches), loss_fn
    needs_loss = criterion != ACTIVATION
    if batches is None or (loss_fn is None and needs_loss):
        fix = "give batches and loss_fn" if needs_loss else "give batches"
        raise UserError(f"criterion '{criterion}' needs data", key="criterion", value=criterion, fix=fix)
    found = list(sharded(batches))
    if loss_fn is not None:
        return found, loss_fn
    found = [model_inputs(batch, inputs, number) for number, batch in enumerate(found, 1)]
    return found, lambda model, batch: model(*batch)


class Importance:
    """How much every slice of every weight matters, found once; what units are worth is summed as often as they change.

    - ``random``: uniform, the control that every other criterion has to beat.
    - ``l1``, ``l2``: norm of all weights that go with the unit (Li et al., ICLR 2017; over coupled weights as in Fang
      et al., CVPR 2023).
    - ``bn_scale``: the batch norm scales (Liu et al., "Network slimming", ICCV 2017).
    - ``fpgm``: distance of a filter to the others of its layer (He et al., CVPR 2019).
    - ``taylor``: squared first-order change of the loss when the unit goes (Molchanov et al., CVPR 2019).
    - ``fisher``: second-order change with the diagonal Fisher information (Theis et al., 2018).
    - ``activation``: weights times the norm of the inputs they see (Sun et al., "Wanda", ICLR 2024).

    - your own, a function or its dotted path: ``f(model, batches, loss_fn)`` maps names of parameters to scores of
      their weights, of the parameter's shape, 0 or more. They are summed over all weights that go with the unit, and
      compared between layers as changes of the loss are: of a norm, give the square. What it leaves out scores 0.

    Groups of which a criterion says nothing (layers without batch norm under ``bn_scale``, weights that no module's
    ``weight`` holds under ``activation``, or that the loss does not depend on) are ranked by ``l2``.

    Args:
        criterion: one of ``CRITERIA``, or one's own.
        dims: the dimensions of each parameter whose slices may be cut.
        model: the dense model, in evaluation mode; neither its weights nor its gradients are touched.
        batches: data for the criteria in ``NEED_DATA``.
        loss_fn: ``loss_fn(model, batch)`` to a scalar, for these.
        seed: of the random criterion.
        norms: weight norms g * v / |v|: the name of each g with that of its v and the dimension with norms of its own.
    """

    def __init__(
        self,
        criterion: str | Criterion,
        dims: Mapping[str, Sequence[int]],
        model: nn.Module,
        batches: Iterable[Any] | None,
        loss_fn: LossFn | None,
        seed: int,
        norms: Mapping[str, tuple[str, int]] | None = None,
    ):
        self.criterion, self._dims, self._seed = criterion, dims, seed
        self._tables: list[Slices] = []  # one, or one for each batch where the criterion squares sums
        self._squares: Slices = {}
        params = {name: p.detach().abs() if p.is_complex() else p.detach() for name, p in model.named_parameters()}
        for g, (v, dim) in (norms or {}).items():  # the length of v says nothing; the weight is what counts
            params[v], params[g] = WEIGHT_NORM(params[v], params[g], dim), torch.zeros_like(params[g])
        own = criterion if callable(criterion) else own_part(criterion, CRITERIA, "criterion")
        if own:
            self._tables = [self._sums(own_scores(own, criterion_name(criterion), model, batches, loss_fn).items())]
        if criterion not in ("random", "l1"):
            self._squares = self._sums((name, p.float().square()) for name, p in params.items())
        if criterion == "l1":
            self._tables = [self._sums((name, p.abs()) for name, p in params.items())]
        elif criterion == "bn_scale":
            kinds = (NormWithStatistics, nn.GroupNorm)
            held = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)}
            self._tables = [self._sums((name, p.abs()) for name, p in params.items() if name in held)]
        elif criterion == "fpgm":
            self._tables = [self._slices(((name, p) for name, p in params.items() if p.ndim > 1), _distances)]
        elif criterion in ("taylor", "fisher"):
            products = _products(criterion, model, batches or (), _needed(loss_fn))
            self._tables = _of_all([self._sums(found.items()) for found in products])
            _some(len(self._tables))
        elif criterion == ACTIVATION:
            self._tables = [self._sums(_wanda(model, batches or (), _needed(loss_fn)).items())]

    def of(self, units: Units) -> np.ndarray:
        """Importance of every unit, larger is better."""
        if self.criterion == "random":
            return np.random.default_rng(self._seed).random(units.count)
        if self.criterion == "l2":
            return np.sqrt(_over_units(units, self._squares))
        scores = [_over_units(units, table) for table in self._tables]
        total = sum(found**2 if self.criterion == "taylor" else found for found in scores) / len(scores)
        silent = np.bincount(units.group, total, minlength=len(units.names)) == 0
        squares = _over_units(units, self._squares)
        return np.where(silent[units.group], np.sqrt(squares) if self.criterion in NORMS else squares, total)

    def _sums(self, elements: Iterable[tuple[str, torch.Tensor]]) -> Slices:
        """Sum the scores of single weights over each slice."""
        return self._slices(elements, lambda x, dim: x.sum([d for d in range(x.ndim) if d != dim] or ()))

    def _slices(
        self, values: Iterable[tuple[str, torch.Tensor]], reduce: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> Slices:
        found = {}
        for name, value in values:
            value = value.float()
            for dim in self._dims.get(name, ()):
                slices = value if value.ndim == 1 else reduce(value, dim)
                found[name, dim] = slices.double().cpu().numpy()
        return found


def _of_all(tables: list[Slices]) -> list[Slices]:
    """The tables of all processes' batches."""
    processes = current()
    if not processes.several:
        return tables
    mine = {(name, dim): len(slices) for table in tables for (name, dim), slices in table.items()}
    of_all = processes.gather([[*key, size] for key, size in mine.items()])
    sizes = {(name, dim): size for of_one in of_all for name, dim, size in of_one}
    flat = np.zeros((len(tables), sum(sizes.values())))
    for row, table in zip(flat, tables, strict=True):  # what a batch has no gradient of scores 0
        row[:] = np.concatenate([table.get(key, np.zeros(size)) for key, size in sizes.items()])
    ends = np.cumsum(list(sizes.values()))[:-1]
    rows = np.concatenate(processes.gather_arrays(flat))
    return [dict(zip(sizes, np.split(row, ends), strict=True)) for row in rows]


def own_scores(
    own: Criterion, name: str, model: nn.Module, batches: Iterable[Any] | None, loss_fn: LossFn | None
) -> dict[str, torch.Tensor]:
    """The scores that a criterion of one's own gives to single weights, by parameter.

    Raises:
        UserError: it fails, or gives something else than scores.
    """
    grads = {parameter: p.grad for parameter, p in model.named_parameters()}
    try:
        with torch.enable_grad(), _unfrozen(model.parameters()):
            given = own(model, list(batches or ()), loss_fn)
    except Exception as error:
        message = f"'{name}' fails: {type(error).__name__}: {first_line(error)}"
        fix = "it is called as criterion(model, batches, loss_fn)"
        raise UserError(message, key="criterion", value=name, fix=fix) from error
    finally:
        for parameter, p in model.named_parameters():
            p.grad = grads[parameter]
    if problem := _problem(given, dict(model.named_parameters())):
        fix = "it must map names of parameters to scores of their shape, 0 or more"
        raise UserError(f"'{name}' gives {problem}", key="criterion", value=name, fix=fix)
    return {parameter: scores.detach() for parameter, scores in given.items()}


def _problem(given: Any, params: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with the scores of a criterion of one's own."""
    if not isinstance(given, Mapping) or not given:
        return "an empty mapping" if isinstance(given, Mapping) else f"a {type(given).__name__}"
    for name, scores in given.items():
        if name not in params:
            return f"scores for '{name}', which is no parameter of the model"
        if not isinstance(scores, torch.Tensor) or scores.shape != params[name].shape:
            found = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            return f"{found} for '{name}' of shape {list(params[name].shape)}"
        if scores.is_complex() or not bool(torch.isfinite(scores).all()) or bool((scores < 0).any()):
            return f"scores for '{name}' that are negative or not finite"
    return None


def normalize(units: Units, scores: np.ndarray) -> np.ndarray:
    """Make layers comparable: each score over the mean of those in its group that are at least as large, summed over
    the weights that the unit lives in.

    Of scores that are squares, the quotient is the layer-adaptive score of Lee et al. (LAMP, ICLR 2021) times the size
    of the group. Where scores are all alike it equals the inverse of the share kept so far, so a global ranking falls
    back to equal shares of layers that are coupled alike, and none collapses; where a few channels carry a layer, the
    others go first. A channel of a residual stream lives in the weights of every block that reads or writes it, and
    goes after those inside one block.
    """
    result = np.empty_like(scores)
    order = np.lexsort((-scores, units.group))
    sizes = np.bincount(units.group, minlength=len(units.names))
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        result[members] = members.size * scores[members] / np.maximum(np.cumsum(scores[members]), 1e-300)
    return result * np.maximum(units.coupled, 1)


def weigh_by_use(scores: np.ndarray, params: np.ndarray, macs: np.ndarray) -> np.ndarray:
    """Scores under which weights that are used more often go sooner, for budgets that count every use.

    Two views of what a channel is worth meet halfway here, by the square root: that layers of equal cost are worth the
    same, whatever their number of weights, and that weights are worth the same, wherever they are. A weight of an early
    convolution is used at thousands of places, one of a late convolution at a few.

    Args:
        scores: normalized scores of the units.
        params: parameters that each unit holds.
        macs: multiply-accumulates that each unit takes.
    """
    return scores * np.sqrt(params / np.maximum(macs, 1.0))


def _over_units(units: Units, slices: Slices) -> np.ndarray:
    scores = np.zeros(units.count)
    for slot in units.slots:
        if (slot.param, slot.dim) in slices:
            held = slot.units >= 0
            scores += np.bincount(slot.units[held], slices[slot.param, slot.dim][held], minlength=units.count)
    return scores


def _distances(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum of the distances of each slice to all others, if this dimension is the one the layer makes."""
    if dim != 0:
        return torch.zeros(weight.shape[dim], device=weight.device)
    flat = weight.flatten(1)
    return torch.cdist(flat, flat).sum(1)


def _products(
    criterion: str, model: nn.Module, batches: Iterable[Any], loss_fn: LossFn
) -> Iterator[dict[str, torch.Tensor]]:
    """For each batch the change of the loss, to first order or by its square, when single weights go."""
    params = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    for batch in batches:
        with torch.enable_grad(), _unfrozen(params.values()):
            loss = loss_fn(model, batch)
            if not loss.requires_grad:
                fix = "let the forward pass and loss_fn keep gradients, or choose a criterion that needs none"
                raise UserError("no gradient flows from the loss to the model", key="loss_fn", fix=fix)
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        products = {n: p.detach() * g for (n, p), g in zip(params.items(), grads, strict=True) if g is not None}
        yield products if criterion == "taylor" else {name: x.float().square() for name, x in products.items()}


@contextmanager
def _unfrozen(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are taken of frozen parameters, too: they matter as much as the others."""
    frozen = [p for p in params if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _wanda(model: nn.Module, batches: Iterable[Any], loss_fn: LossFn) -> dict[str, torch.Tensor]:
    """|weight| times the root mean square of the input feature it multiplies."""
    squares: dict[str, torch.Tensor] = {}

    def watch(name: str, spatial: int, inputs: tuple) -> None:
        x = inputs[0].detach().float() if inputs and isinstance(inputs[0], torch.Tensor) else torch.zeros(())
        if x.ndim > spatial + 1 and x.numel():
            dims = [d for d in range(x.ndim) if d != x.ndim - 1 - spatial]
            squares[name] = squares.get(name, 0) + x.square().mean(dims)

    handles = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and not isinstance(module, nn.Embedding):
            spatial = weight.ndim - 2
            handles.append(
                module.register_forward_pre_hook(lambda m, x, name=name, spatial=spatial: watch(name, spatial, x))
            )
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                loss_fn(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    count = _some(sum(current().gather(count)))
    norms = {name: (total / count).sqrt() for name, total in summed(squares).items()}
    return {f"{name}.weight": _weigh(model.get_submodule(name), norm) for name, norm in norms.items()}


def _weigh(module: nn.Module, norm: torch.Tensor) -> torch.Tensor:
    weight = module.get_parameter("weight").detach().abs().float()
    tail = (1,) * (weight.ndim - 2)
    groups = getattr(module, "groups", 1)
    if weight.shape[1] * groups == norm.numel() and not _holds_inputs_first(module):
        seen = norm.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
        return weight * seen.reshape(weight.shape[0], -1, *tail)
    return weight * norm.reshape(-1, 1, *tail) if weight.shape[0] == norm.numel() else weight


def _holds_inputs_first(module: nn.Module) -> bool:
    """Whether the weight is (in, out, ...): transposed convolutions, and the Conv1D of GPT-2."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    return bool(getattr(module, "transposed", False)) or "transformers.pytorch_utils.Conv1D" in kinds


def _needed(loss_fn: LossFn | None) -> LossFn:
    if loss_fn is None:
        raise UserError("no loss function was given", key="loss_fn", fix="loss_fn(model, batch) gives a scalar")
    return loss_fn


def _some(count: int) -> int:
    if not count:
        raise UserError("no batch was given", key="batches", fix="give at least one; an iterator can be read only once")
    return count
