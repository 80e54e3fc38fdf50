"""Controls: the chains that a recipe's own must beat, made by the same training at the same cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from optkit.core.errors import PlanError
from optkit.core.stage import Stage
from optkit.prune.stages.smaller_dense import SmallerDense
from optkit.prune.stages.steps import SteppedPruning
from optkit.training import Train

SMALLER_DENSE, RANDOM_PRUNE, NO_TEACHER = "smaller_dense", "random_prune", "no_teacher"
CONTROLS = (SMALLER_DENSE, RANDOM_PRUNE, NO_TEACHER)
# name, stage, and its number in the recipe's own chain
Numbered = tuple[str, Stage, int]


def control_chain(control: str, chain: Sequence[Numbered], like: str | None) -> list[Numbered]:
    """The chain of a control, from the model as loaded.

    ``random_prune`` is the recipe's chain with every pruning at random. ``smaller_dense`` begins with a fresh,
    uniformly narrower model of the same MACs; it gets all the training of the chain: the baseline's, what prunings had
    of their own, and what follows (Liu et al., "Rethinking the value of network pruning", ICLR 2019). ``no_teacher`` is
    the recipe's chain with every training by a teacher, those within other stages too, by the labels alone.

    Args:
        control: one of `CONTROLS`.
        chain: the recipe's own.
        like: the variant whose MACs the smaller model gets: the last that was cut; None if none is.

    Raises:
        PlanError: the chain has nothing that the control could be a control of.
    """
    if control == SMALLER_DENSE:
        return _smaller(chain, like)
    if control == RANDOM_PRUNE:
        changed = [(name, _at_random(name, stage), number) for name, stage, number in chain]
        nothing, fix = "no stage ranks what it prunes", "leave it out, or give a pruning another criterion"
    else:
        changed = [(name, _untaught(name, stage), number) for name, stage, number in chain]
        nothing, fix = "no stage has a teacher", "leave it out, or add distill/logits"
    if all(ours is theirs for (_, ours, _), (_, theirs, _) in zip(changed, chain, strict=True)):
        raise PlanError(f"{nothing}, so '{control}' has nothing to compare", key="controls", fix=fix)
    return changed


def _smaller(chain: Sequence[Numbered], like: str | None) -> list[Numbered]:
    if like is None:
        fix = "leave it out, or add prune/structured"
        raise PlanError(f"no stage cuts channels, so '{SMALLER_DENSE}' would be the baseline", key="controls", fix=fix)
    found: list[Numbered] = [(SMALLER_DENSE, SmallerDense(like), chain[0][2] - 1)]
    for name, stage, number in chain:
        kept = _training_of(stage) if stage.technique == "prune" else stage
        if kept is not None:
            found.append((name, kept, number))
    return found


def _at_random(name: str, stage: Stage) -> Stage:
    if stage.technique != "prune":
        return stage
    key = next((key for key in ("criterion", "by") if hasattr(stage, key)), None)
    if key is None:
        message = f"'{name}' has no criterion that could be random, so '{RANDOM_PRUNE}' cannot be made"
        raise PlanError(message, key="controls", fix="leave it out")
    if getattr(stage, key) == "random" or isinstance(getattr(stage, "keep", None), list):
        return stage
    return dataclasses.replace(stage, **{key: "random"})  # type: ignore[type-var]


def _untaught(name: str, stage: Stage) -> Stage:
    if stage.technique == "distill":
        return Train(_trainer_of(name, stage))
    within = getattr(stage, "training", None)
    if getattr(within, "technique", None) != "distill":
        return stage
    return dataclasses.replace(stage, training=Train(_trainer_of(name, within)))  # type: ignore[type-var]


def _trainer_of(name: str, taught: Any) -> Any:
    if not hasattr(taught, "trainer"):
        message = f"'{name}' has no trainer that could do without its teacher, so '{NO_TEACHER}' cannot be made"
        raise PlanError(message, key="controls", fix="leave it out")
    return taught.trainer


def _training_of(stage: Stage) -> Stage | None:
    """All the training within a pruning stage, as one stage; None if it has none."""
    training = getattr(stage, "training", None)
    if training is None or not isinstance(stage, SteppedPruning):
        return training
    passes = 1 + (stage.steps - 1) * stage.between
    trainer = dataclasses.replace(training.trainer, epochs=math.ceil(passes * training.trainer.epochs))
    return dataclasses.replace(training, trainer=trainer)
