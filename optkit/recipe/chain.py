"""Whether the names of a chain fit together, known from its stages alone: no data, no model, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optkit.core.errors import PlanError, did_you_mean
from optkit.core.stage import Stage
from optkit.recipe.controls import CONTROLS
from optkit.recipe.recipe import AUTO, MODEL

START = frozenset({"float"})


def check_names(
    chain: Sequence[str],
    stages: Mapping[str, Stage],
    controls: Sequence[str],
    baseline: str,
    start: frozenset[str] = START,
) -> frozenset[str]:
    """The traits of the chain's last variant, if every name in a recipe is known.

    Args:
        chain: stage names, in order.
        stages: by name.
        controls: their names.
        baseline: as in a recipe.
        start: traits of the model before any stage.

    Raises:
        PlanError: an unknown or repeated name, a stage that lacks a trait, a baseline that is not in the chain.
    """
    if repeated := [name for name in chain if chain.count(name) > 1]:
        message = f"'{repeated[0]}' stands twice"
        raise PlanError(message, key="chain", fix="add it again under another name: +stage@stages.again=...")
    traits = traits_after(chain, stages, start)
    for control in controls:
        if control not in CONTROLS:
            fix = did_you_mean(str(control), CONTROLS)
            raise PlanError(f"no control '{control}'", key="controls", value=control, fix=fix)
    if baseline not in (AUTO, MODEL, *chain):
        fix = did_you_mean(baseline, [AUTO, MODEL, *chain])
        raise PlanError(f"'{baseline}' is not in the chain", key="baseline", value=baseline, fix=fix)
    return traits


def traits_after(chain: Sequence[str], stages: Mapping[str, Stage], start: frozenset[str] = START) -> frozenset[str]:
    """What is true of the last variant of a chain, whose model has the traits ``start`` before any stage.

    Raises:
        PlanError: an unknown name, or a stage that lacks a trait.
    """
    traits = start
    taken_by: dict[str, str] = {}
    for name in chain:
        if name not in stages:
            raise PlanError(f"no stage '{name}'", key="chain", value=name, fix=did_you_mean(name, stages))
        stage = stages[name]
        for trait in sorted(stage.needs - traits):
            culprit = f"'{taken_by[trait]}' took away" if trait in taken_by else "no stage before it gives"
            if trait not in taken_by and trait in START - start:
                message = f"'{name}' needs a model that is {trait}, and this variant is {', '.join(sorted(start))}"
                raise PlanError(message, key="model.variant", fix="start from a variant before it")
            fix = f"put it before '{taken_by[trait]}'" if trait in taken_by else "change the chain"
            raise PlanError(f"'{name}' needs a model that is {trait}, which {culprit}", key="chain", fix=fix)
        traits = (traits - stage.drops) | stage.adds
        taken_by |= dict.fromkeys(stage.drops, name)
    return traits
