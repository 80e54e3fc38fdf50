"""Pruning stages: masks that leave shapes alone, and cuts that remove channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.stage import Context, Outcome
from optkit.prune.masks import apply_masks_, magnitude_masks
from optkit.prune.plan import CutPlan
from optkit.prune.structured import SCOPES, check_arguments, prune_structured


@dataclass
class MagnitudePruning:
    """Set the smallest weights to zero; shapes and, on these engines, latency stay as they are.

    Attributes:
        amount: share of the convolution and linear weights to remove.
        scope: rank all layers together (global) or each by itself (local).
    """

    amount: float = 0.5
    scope: str = "global"

    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"sparse"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_share("amount", self.amount)
        check_choice("scope", self.scope, SCOPES)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        masks = magnitude_masks(module, self.amount, self.scope)
        apply_masks_(module, masks)
        removed = sum(int((~m).sum()) for m in masks.values())
        return Outcome(module, {"weights_removed": removed, "weights": sum(m.numel() for m in masks.values())})


@dataclass
class StructuredPruning:
    """Remove whole channels, with everything coupled to them, until the budget is met.

    Attributes:
        amount: share of the budget to remove.
        budget: what the amount is a share of: params or macs.
        criterion: how channels are ranked (``optkit.prune.CRITERIA``); those that need data see train batches.
        scope: rank all layers together (global) or each by itself (local).
        round_to: keep multiples of so many channels.
        protect: name patterns of layers whose channels stay.
        batches: how many train batches of 64 a data-driven criterion sees.
    """

    amount: float = 0.5
    budget: str = "macs"
    criterion: str = "l2"
    scope: str = "global"
    round_to: int = 1
    protect: list[str] = field(default_factory=list)
    batches: int = 16

    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_arguments(self.amount, self.budget, self.criterion, self.scope, self.round_to)
        check_count("batches", self.batches)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        data = ctx.task.batches("train", 64, seed=ctx.seed)
        pruned = prune_structured(
            module,
            ctx.task.example(2),
            amount=self.amount,
            budget=self.budget,
            criterion=self.criterion,
            scope=self.scope,
            round_to=self.round_to,
            protect=tuple(self.protect),
            batches=islice(data, self.batches),
            loss_fn=lambda model, batch: ctx.task.loss(ctx.task.forward(model, batch), batch),
            seed=ctx.seed,
        )
        return Outcome(pruned.model, {"cut": pruned.plan.facts}, surgery=pruned.plan.to_dict())

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return CutPlan.from_dict(surgery).apply(module)
