"""Ablation: makes and measures every subset of a chain's stages, to attribute effects to techniques."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from optkit.core import ledger
from optkit.core.cache import write_json, write_text
from optkit.core.checks import check_choice, check_count
from optkit.core.errors import PlanError, UserError, did_you_mean
from optkit.core.variant import variant_id
from optkit.measure.config import NOW
from optkit.pipeline import Run, make_folder, run
from optkit.recipe.chain import traits_after
from optkit.recipe.plan import Plan, baseline_place, check_chain, make_plan
from optkit.recipe.recipe import MODEL, Recipe
from optkit.study.result import BEST, Measured, summarize

log = logging.getLogger(__name__)
ALL, LEAVE_ONE_OUT, AUTO = "all", "leave-one-out", "auto"
SUBSETS = (AUTO, ALL, LEAVE_ONE_OUT)
MOST_TECHNIQUES = 5
MOST_CHAINS = 130
RESULT = "ablation.json"


@dataclass(frozen=True)
class Ablation:
    """A finished study: its folder, and what `RESULT` in it holds."""

    folder: Path
    result: dict[str, Any]


def ablate(
    recipe: Recipe,
    *,
    orders: bool = False,
    seeds: int = 1,
    engine: str = BEST,
    subsets: str = AUTO,
    command: str = "",
) -> Ablation:
    """Runs the subsets of a recipe's chain that are not done yet, and computes each technique's contribution.

    All chains of a seed are one run: what they begin with is made and measured once. The study folder holds a run
    folder for each seed.

    Args:
        recipe: its stages after the baseline are the techniques; its controls are made beside them, once a seed.
        orders: also the other orders of the whole chain that the stages' traits allow.
        seeds: of so many, from the recipe's on, everything is trained and measured.
        engine: whose figures count, or ``best``: the fastest for each variant.
        subsets: ``all``, ``leave-one-out``, or ``auto``: all for up to 5 techniques.
        command: what was typed, for the result.

    Raises:
        UserError: a mistake found before any work.
    """
    check_count("seeds", seeds)
    check_choice("subsets", subsets, SUBSETS)
    if recipe.measure.when != NOW:
        raise UserError("an ablation measures what it makes", key="measure.when", fix="leave measure=later out")
    check_chain(recipe)
    if engine != BEST and engine not in recipe.engines:
        fix = did_you_mean(engine, [BEST, *recipe.engines])
        raise UserError(f"no engine '{engine}' in this recipe", key="--engine", value=engine, fix=fix)
    opening = recipe.chain[: baseline_place(recipe)]
    techniques = recipe.chain[len(opening) :]
    if not techniques:
        raise PlanError("no stage comes after the baseline", key="chain", fix="add a technique, or set baseline=model")
    # a subset's own opening trainings must not become part of its baseline
    recipe = replace(recipe, baseline=opening[-1] if opening else MODEL)
    wanted = _subsets(techniques, subsets) + (_orders(techniques) if orders else [])
    chains, skipped = _possible(recipe, opening, wanted, engine)
    whole = [[*opening, *chain] for chain in chains]
    plans = [make_plan(replace(recipe, seed=recipe.seed + n, fresh=False), whole) for n in range(seeds)]
    folder = _folder(recipe, plans)
    store = str(folder / "store") if recipe.fresh else recipe.store or f"{recipe.out}/store"
    runs: list[Run] = []
    for plan in plans:
        seed = plan.recipe.seed
        log.info("seed %d: %d chains of %s", seed, len(chains), ", ".join(techniques))
        runs.append(run(plan.placed(name=f"seed-{seed}", out=str(folder), store=store)))
    for done in runs:
        skipped |= {chain: reason for chain, reason in done.failed.items() if chain not in skipped}
    records = [ledger.unique(ledger.read(done.folder)) for done in runs]
    measured = Measured(records, techniques, engine, [plan.recipe.seed for plan in plans], list(recipe.engines))
    planned = [step for plan in plans for step in plan.steps if step.stage]
    of_controls = sum(step.control is not None for step in planned)
    counters = {
        "seeds": seeds,
        "chains": len(chains),
        "stages_in_all_chains": seeds * sum(map(len, whole)) + of_controls,
        "distinct_stages": len(planned),
        "made_now": sum(done.made for done in runs),
        "already_there": sum(max(done.reused - 1, 0) for done in runs),
    }
    leaves_one_out = _leaves_one_out(techniques, subsets)
    result = {
        "format": 2,
        "recipe": recipe.name,
        "command": command,
        "baseline": opening[-1] if opening else MODEL,
        "techniques": techniques,
        "seeds": measured.seeds,
        "subsets": LEAVE_ONE_OUT if leaves_one_out else ALL,
        "engine": engine,
        "metric": measured.metric,
        "runs": [str(done.folder.relative_to(folder)) for done in runs],
        "counters": counters,
        "skipped": [{"chain": list(chain), "reason": reason} for chain, reason in skipped.items()],
        "environment": records[0][0].environment,
        "batches": summarize(measured, shapley=not leaves_one_out),
    }
    write_text(folder / "recipe.yaml", recipe.text)
    write_json(folder / RESULT, result, key="out")
    return Ablation(folder, result)


def _leaves_one_out(techniques: Sequence[str], subsets: str) -> bool:
    return subsets == LEAVE_ONE_OUT or (subsets == AUTO and len(techniques) > MOST_TECHNIQUES)


def _subsets(techniques: Sequence[str], subsets: str) -> list[tuple[str, ...]]:
    """Chains of techniques in the recipe's order, smaller ones first."""
    if not _leaves_one_out(techniques, subsets):
        chosen = [c for n in range(len(techniques) + 1) for c in combinations(techniques, n)]
        if len(chosen) > MOST_CHAINS:
            message = f"{len(techniques)} techniques have {len(chosen)} subsets"
            raise UserError(
                message, key="--subsets", value=subsets, fix=f"--subsets {LEAVE_ONE_OUT} takes {len(techniques) + 2}"
            )
        return chosen
    chosen = [(), *combinations(techniques, len(techniques) - 1), tuple(techniques)]
    log.warning(
        "%d techniques: %d chains that leave one out, of %d subsets", len(techniques), len(chosen), 2 ** len(techniques)
    )
    return list(dict.fromkeys(chosen))


def _orders(techniques: Sequence[str]) -> list[tuple[str, ...]]:
    if len(techniques) > MOST_TECHNIQUES:
        message = f"{len(techniques)} techniques have too many orders"
        raise UserError(message, key="--orders", fix=f"at most {MOST_TECHNIQUES} techniques")
    return [order for order in permutations(techniques) if order != tuple(techniques)]


def _possible(
    recipe: Recipe, opening: Sequence[str], wanted: Sequence[tuple[str, ...]], engine: str
) -> tuple[list[tuple[str, ...]], dict[tuple[str, ...], str]]:
    """The chains that can work, and why the others cannot. Orders that traits forbid are no loss, but are named."""
    possible, skipped = [], {}
    engines = recipe.engines if engine == BEST else {engine: recipe.engines[engine]}
    for chain in wanted:
        try:
            traits = traits_after([*opening, *chain], recipe.stages, recipe.traits)
        except PlanError as error:
            skipped[chain] = error.message
            continue
        reasons = {name: e.unsupported(traits) for name, e in engines.items()}
        if all(reasons.values()):
            skipped[chain] = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        else:
            possible.append(chain)
    if tuple(recipe.chain[len(opening) :]) in skipped:
        raise UserError(skipped[tuple(recipe.chain[len(opening) :])], key="--engine", value=engine, fix="pick another")
    return possible, skipped


def _folder(recipe: Recipe, plans: Sequence[Plan]) -> Path:
    """The study's folder: the same recipe, seeds and chains find it again; with ``fresh`` one that is not there yet."""
    name = f"ablate-{recipe.name}-{variant_id([plan.digest for plan in plans])[:8]}"
    return make_folder(Path(recipe.out) / name, recipe.fresh)
