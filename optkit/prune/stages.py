"""The stage that removes channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.checks import check_count
from optkit.core.stage import Context, Outcome
from optkit.prune.plan import CutPlan
from optkit.prune.steps import Facts, InSteps
from optkit.prune.structured import check_arguments, prune_structured


@dataclass
class StructuredPruning(InSteps):
    """Remove whole channels, with everything coupled to them, until the budget is met: at once, or in steps.

    Attributes:
        amount: share of the budget to remove.
        budget: what the amount is a share of: params or macs.
        criterion: how channels are ranked (``optkit.prune.CRITERIA``); those that need data see train batches.
        scope: rank all layers together (global) or each by itself (local).
        round_to: keep multiples of so many channels.
        protect: name patterns of layers whose channels stay.
        batches: how many train batches of 64 a data-driven criterion sees.
        steps, training, between: see `InSteps`.
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
        super().__post_init__()
        check_arguments(self.amount, self.budget, self.criterion, self.scope, self.round_to)
        check_count("batches", self.batches)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        return self.in_steps(module, ctx, self.amount)

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        """Cuts to ``amount`` of the budget before the first step."""
        first = earlier[0]["cut"] if earlier else {}
        left = earlier[-1]["cut"][f"{self.budget}_after"] / first[f"{self.budget}_before"] if earlier else 1.0
        data = ctx.task.batches("train", 64, seed=ctx.seed)
        pruned = prune_structured(
            module,
            ctx.task.example(2),
            amount=1 - (1 - amount) / left,
            budget=self.budget,
            criterion=self.criterion,
            scope=self.scope,
            round_to=self.round_to,
            protect=tuple(self.protect),
            batches=islice(data, self.batches),
            loss_fn=lambda model, batch: ctx.task.loss(ctx.task.forward(model, batch), batch),
            seed=ctx.seed,
        )
        before = {name: value for name, value in first.items() if name.endswith("_before")}
        facts = {"cut": pruned.plan.facts | {"amount": amount} | before}
        return Outcome(pruned.model, facts, surgery=pruned.plan.to_dict())

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        for cut in surgery.get("steps", [surgery]):
            module = CutPlan.from_dict(cut).apply(module)
        return module
