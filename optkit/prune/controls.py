"""Controls: what a pruned model must beat, made by the same training at the same cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from optkit.core.errors import PlanError, StageError
from optkit.core.macs import count_macs
from optkit.core.stage import Context, Outcome, Stage
from optkit.core.targets import TARGET
from optkit.prune.budget import FLOOR, TooSmallError
from optkit.prune.stages import StructuredPruning
from optkit.prune.steps import InSteps
from optkit.prune.structured import prune_structured

SMALLER_DENSE, RANDOM_PRUNE = "smaller_dense", "random_prune"
CONTROLS = (SMALLER_DENSE, RANDOM_PRUNE)
# name, stage, and its number in the recipe's own chain
Numbered = tuple[str, Stage, int]


def control_chain(control: str, chain: Sequence[Numbered], like: str | None) -> list[Numbered]:
    """The chain of a control, from the model as loaded.

    ``random_prune`` is the recipe's chain with every pruning at random. ``smaller_dense`` begins with a fresh,
    uniformly narrower model of the same MACs; it gets all the training of the chain: the baseline's, what prunings had
    of their own, and what follows (Liu et al., "Rethinking the value of network pruning", ICLR 2019).

    Args:
        control: one of `CONTROLS`.
        chain: the recipe's own.
        like: the variant whose MACs the smaller model gets: the last that was cut; None if none is.

    Raises:
        PlanError: the chain has nothing that the control could be a control of.
    """
    if control == RANDOM_PRUNE:
        found = [(name, _at_random(name, stage), number) for name, stage, number in chain]
        if all(ours is theirs for (_, ours, _), (_, theirs, _) in zip(found, chain, strict=True)):
            fix = "leave it out, or give a pruning another criterion"
            raise PlanError(
                f"no stage ranks what it prunes, so '{control}' has nothing to compare", key="controls", fix=fix
            )
        return found
    if like is None:
        fix = "leave it out, or add prune/structured"
        raise PlanError(f"no stage cuts channels, so '{control}' would be the baseline", key="controls", fix=fix)
    found = [(SMALLER_DENSE, SmallerDense(like), chain[0][2] - 1)]
    for name, stage, number in chain:
        kept = _training_of(stage) if stage.technique == "prune" else stage
        if kept is not None:
            found.append((name, kept, number))
    return found


def _at_random(name: str, stage: Stage) -> Stage:
    if stage.technique != "prune":
        return stage
    if not hasattr(stage, "criterion"):
        message = f"'{name}' has no criterion that could be random, so '{RANDOM_PRUNE}' cannot be made"
        raise PlanError(message, key="controls", fix="leave it out")
    return stage if stage.criterion == "random" else dataclasses.replace(stage, criterion="random")  # type: ignore[type-var]


def _training_of(stage: Stage) -> Stage | None:
    """All the training within a pruning stage, as one stage; None if it has none."""
    training = getattr(stage, "training", None)
    if training is None or not isinstance(stage, InSteps):
        return training
    passes = 1 + (stage.steps - 1) * stage.between
    trainer = dataclasses.replace(training.trainer, epochs=math.ceil(passes * training.trainer.epochs))
    return dataclasses.replace(training, trainer=trainer)  # type: ignore[type-var]


@dataclass
class SmallerDense:
    """A fresh model, every layer narrowed alike until its MACs are those of another variant.

    It is a random draw of the model's own initial weights, cut; what is left of a layer's input is scaled up, so that
    its outputs spread as they did.

    Attributes:
        like: id of the variant of this run whose MACs it gets.
    """

    like: str

    technique: ClassVar[str] = "control"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        example = ctx.task.example(2)
        target = count_macs(ctx.module_of(self.like), example) // 2
        fresh = ctx.build_model({TARGET: ctx.variant.model["target"], **ctx.variant.model["params"]}).eval()
        whole = count_macs(fresh, example) // 2
        if target >= whole:
            raise StageError(f"the pruned variant has {target} MACs, the dense model {whole}: there is no smaller one")
        options: dict[str, Any] = {"budget": "macs", "scope": "local", "criterion": "random", "seed": ctx.seed}
        try:
            narrow = prune_structured(fresh, example, amount=1 - target / whole, floor=FLOOR, **options)
        except TooSmallError as error:
            raise StageError(f"a dense model of {target} MACs is too narrow: {error.message}") from error
        _keep_spread_(narrow.model, fresh)
        macs = count_macs(narrow.model, example) // 2
        facts = {"macs": macs, "like": self.like, "like_macs": target, "macs_whole": whole}
        return Outcome(narrow.model, facts, surgery=narrow.plan.to_dict())

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[torch.Tensor, ...]) -> nn.Module:
        return StructuredPruning.replay(module, surgery, example)


def _keep_spread_(narrow: nn.Module, whole: nn.Module) -> None:
    """Scales each weight by the root of how many inputs a unit lost: a sum of fewer terms spreads less."""
    before = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in narrow.named_parameters():
            if weight.dim() > 1 and name in before and weight.shape[1] < before[name].shape[1]:
                weight *= math.sqrt(before[name].shape[1] / weight.shape[1])
