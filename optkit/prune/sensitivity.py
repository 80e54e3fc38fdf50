"""How much each group of units matters: the loss or a metric against the share of the group that is removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_share
from optkit.core.document import Document
from optkit.core.errors import StageError, UserError
from optkit.core.metric import ANY, SHARE
from optkit.core.progress import track
from optkit.prune.options import check_criterion, criterion_name

if TYPE_CHECKING:
    from torch import nn

    from optkit.core.calls import Inputs
    from optkit.core.loaders import Pick
    from optkit.prune.cut.criteria import Criterion, LossFn

LOSS = "loss"
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass
class Curve:
    """What one group's removal does, a point for each number of units removed, all else kept whole.

    Attributes:
        name: the parameter that names the group, as in ``CutPlan.layers``.
        units: how many units the group has.
        removed: units removed, ascending; the lowest-scored ones.
        params, macs: what the whole model loses by it.
        values: the loss or the metric then.
    """

    name: str
    units: int
    removed: list[int]
    params: list[int]
    macs: list[int]
    values: list[float]

    @property
    def shares(self) -> list[float]:
        """Shares of the group's units that were really removed."""
        return [count / self.units for count in self.removed]


@dataclass
class Sensitivity(Document):
    """The curves of all groups of a model, in the model's order; those of one unit only, which stays, are empty.

    Attributes:
        model: class name of the model.
        metric: what was measured: ``"loss"``, or a metric's name.
        higher_is_better: whether more of the metric is better; None stands for no of a loss, for yes of anything else.
        metric_kind: what values it has, see `optkit.core.metric`; None stands for any of a loss, for shares of anything
            else.
        criterion: by which the units of a group were ranked.
        dense: the metric with nothing removed.
        params, macs: of the dense model, on the example inputs.
        curves: one for each group of units.
    """

    model: str
    metric: str
    criterion: str
    dense: float
    params: int
    macs: int
    curves: list[Curve]
    higher_is_better: bool | None = None
    metric_kind: str | None = None

    what: ClassVar[str] = "sensitivity table"
    format: ClassVar[str] = "optkit.sensitivity/1"

    def __post_init__(self) -> None:
        self.curves = [curve if isinstance(curve, Curve) else Curve(**curve) for curve in self.curves]
        if self.higher_is_better is None:
            self.higher_is_better = self.metric != LOSS
        if self.metric_kind is None:
            self.metric_kind = ANY if self.metric == LOSS else SHARE

    def harms(self, curve: Curve) -> list[float]:
        """By how much each point is worse than the dense model, in the unit of the metric."""
        sign = -1.0 if self.higher_is_better else 1.0
        return [sign * (value - self.dense) for value in curve.values]

    def summary(self) -> str:
        """A line for each group: the share of its units removed, and the metric then."""
        lines = [f"{self.model}: {self.metric} {self.dense:.3f}; removed by {self.criterion}, one group at a time"]
        width = max([len(curve.name) for curve in self.curves] or [0])
        for curve in self.curves:
            points = [f"{share:4.0%} {value:6.3f}" for share, value in zip(curve.shares, curve.values, strict=True)]
            lines.append(f"  {curve.name:<{width}}  {curve.units:4d} units  " + "   ".join(points or ["stays whole"]))
        return "\n".join(lines)


def sensitivity(
    model: nn.Module,
    example_inputs: Inputs,
    evaluate: Callable[[nn.Module], float],
    *,
    metric: str = LOSS,
    higher_is_better: bool | None = None,
    metric_kind: str | None = None,
    shares: Sequence[float] = SHARES,
    criterion: str | Criterion = "l2",
    protect: Sequence[str] = (),
    batches: Iterable[Any] | None = None,
    inputs: Pick | None = None,
    loss_fn: LossFn | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Remove a share of one group of units at a time, the others whole, and see what the model is worth then.

    This is the per-layer sensitivity analysis of Li et al. ("Pruning filters for efficient ConvNets", ICLR 2017,
    section 3.2) and Han et al. (NeurIPS 2015, section 3.1), over groups of coupled units instead of layers. Removed
    units are set to zero, which gives the cut model's outputs without cutting; the weights are their own again after
    every point, whatever ``evaluate`` raises.

    Args:
        model: any module; it is as before when this returns.
        example_inputs: a tuple of arguments or a dict of keyword arguments, on the model's device.
        evaluate: the loss or a metric of a model in evaluation mode, on data that is not the test split; it must
            leave the weights alone.
        metric: which of them it returns: ``"loss"``, or the metric's name.
        higher_is_better, metric_kind: see `Sensitivity`.
        shares: of each group's units, rounded to whole units, at least one; a tenth of a group always stays.
        criterion: how the units of a group are ranked, one of ``CRITERIA``, or your own as in `CutOptions`.
        protect: patterns (as in :mod:`fnmatch`) of module names whose parameters stay whole.
        batches, inputs, loss_fn: data, for the criteria that need it, as for `prune_structured`.
        seed: of the random criterion and of ties.

    Raises:
        UserError: for an argument out of range, or a model that cannot be analysed.
        StageError: if ``evaluate`` gives no finite number.
    """
    import torch

    from optkit.prune.cut.analysis import Analysis
    from optkit.prune.cut.criteria import data_for
    from optkit.prune.cut.selection import Selector
    from optkit.prune.cut.verify import evaluating, zeroing

    check_criterion(criterion)
    if not shares:
        raise UserError("no share", key="shares", value=shares, fix="give at least one, such as 0.5")
    for share in shares:
        check_share("shares", share)
    batches, loss_fn = data_for(criterion, batches, loss_fn, inputs)
    analysis, found = Analysis(model, example_inputs, protect), None
    model = analysis.model
    importance = analysis.importance(criterion, batches, loss_fn, seed)
    while found is None:  # zeroing stands for cutting only where a cut of every group has been tried
        selector = Selector(analysis.units, analysis.scores(importance), "local", 1, seed)
        if selector.most == 0:
            raise UserError("nothing in this model can be cut", fix="every group is a single unit")
        found = analysis.cut(selector.cut(max(1, selector.most // 2)))
    params, macs = analysis.meters["params"], analysis.meters["macs"]

    def value(text: str) -> float:
        with torch.no_grad():
            number = float(evaluate(model))
        if not math.isfinite(number):
            raise StageError(f"evaluate gives {number} with {text}")
        return number

    curves = []
    with evaluating(model):
        dense = value("the whole model")
        for group, name in enumerate(track(analysis.units.names, "sensitivity", len(analysis.units.names))):
            curve = Curve(name, int((analysis.units.group == group).sum()), [], [], [], [])
            for share in sorted(shares):
                removed = selector.alone(group, share)
                if (count := int(removed.sum())) <= max(curve.removed, default=0):
                    continue
                with zeroing(model, analysis.plan(removed)):
                    curve.values.append(value(f"{count} of {curve.units} units of {name} removed"))
                curve.removed.append(count)
                curve.params.append(int(params.total - params(removed)))
                curve.macs.append(int(macs.total - macs(removed)))
            curves.append(curve)
    return Sensitivity(
        type(model).__name__,
        metric,
        criterion_name(criterion),
        dense,
        int(params.total),
        int(macs.total),
        curves,
        higher_is_better,
        metric_kind,
    )
