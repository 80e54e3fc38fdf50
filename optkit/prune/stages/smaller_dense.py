"""The model that a pruned one must beat: as small, and never pruned by any rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.errors import StageError
from optkit.core.instantiate import TARGET
from optkit.core.stage import Context, Outcome
from optkit.prune.stages.structured import StructuredPruning

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class SmallerDense:
    """A fresh model, every layer narrowed alike until its MACs are those of another variant.

    It is a random draw of the model's own initial weights, cut; what is left of a layer's input is scaled up, so that
    its outputs spread as they did.

    Attributes:
        like: id of the variant of this run whose MACs it gets.
    """

    like: str

    surgery: ClassVar[str] = "prune.smaller_dense/1"
    technique: ClassVar[str] = "control"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.core.macs import count_macs
        from optkit.prune.cut.selection import TooSmallError
        from optkit.prune.structured import prune_structured

        example = ctx.task.example(2)
        target = count_macs(ctx.module_of(self.like), example) // 2
        fresh = ctx.build_model({TARGET: ctx.variant.model["target"], **ctx.variant.model["params"]}).eval()
        whole = count_macs(fresh, example) // 2
        if target >= whole:
            raise StageError(f"the pruned variant has {target} MACs, the dense model {whole}: there is no smaller one")
        amount = 1 - target / whole
        try:
            narrow = prune_structured(
                fresh, example, amount=amount, budget="macs", scope="local", criterion="random", seed=ctx.seed
            )
        except TooSmallError as error:
            raise StageError(f"a dense model of {target} MACs is too narrow: {error.message}") from error
        _keep_spread_(narrow.module, fresh)
        macs = count_macs(narrow.module, example) // 2
        facts = {"macs": macs, "like": self.like, "like_macs": target, "macs_whole": whole}
        return Outcome(narrow.module, facts, surgery=narrow.plan.to_dict())

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[torch.Tensor, ...]) -> nn.Module:
        return StructuredPruning.replay(module, surgery, example)


def _keep_spread_(narrow: nn.Module, whole: nn.Module) -> None:
    """Scales each weight by the root of how many inputs a unit lost: a sum of fewer terms spreads less."""
    import torch

    before = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in narrow.named_parameters():
            if weight.dim() > 1 and name in before and weight.shape[1] < before[name].shape[1]:
                weight.mul_(math.sqrt(before[name].shape[1] / weight.shape[1]))
