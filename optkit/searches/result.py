"""What a search found: its front made in full and measured on test once, and what is to be said of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from optkit.core.cache import write_text
from optkit.core.errors import StageError
from optkit.core.statistics import CONFIDENCE
from optkit.report.written import Written
from optkit.searches.front import Point, dominates, hypervolume, ranks, thinned
from optkit.searches.goal import Goal
from optkit.searches.study import TOO_LOSSY, TOO_SLOW, WHY, counted
from optkit.searches.trial import FRONT, Figures, Workshop

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)
Found = dict[str, Any]  # a trial, as JSON
MARGIN = 0.1  # of the points' extent, by which the reference of a volume is worse than the worst point


def conclude(studies: Sequence[Study], goal: Goal, workshop: Workshop, written: Figures, most: int) -> dict[str, Any]:
    """Measures the front on the recipe's split, and says what the search found.

    Args:
        studies: the search's own, and that of its control, if it has one.
        goal: of the search.
        workshop: makes and measures.
        written: the recipe as it is written, on validation.
        most: how many variants are measured.

    Returns:
        The result; JSON.

    Raises:
        StageError: no trial succeeded.
    """
    own, *others = (_trials(study, goal) for study in studies)
    finished = _finished(own)
    if not finished and not _ended_by_limit(own):
        why = next((trial["why"] for trial in own if trial["why"]), "all were stopped early")
        raise StageError(f"no trial of {len(own)} succeeded: {why}", fix="change the space")
    for trials in (own, *others):
        _time_again(trials, goal, workshop)
    whole = _kept_front(own, goal)
    best = _winner(whole, goal)
    chosen = _covering(whole, goal, most, best)
    tested = _tested(workshop, chosen)
    front = [_on_test(trial, workshop, tested) for trial in chosen]
    winner = next((trial for trial in front if best and trial["number"] == best["number"]), None)
    volumes = _volumes([own, *others], written, goal)
    result: dict[str, Any] = {
        "trials": own,
        "control": others[0] if others else None,
        "written": asdict(written),
        "front": front,
        "tested": tested,
        "winner": winner and winner["number"],
        "optimism": winner and winner["test"]["loss"] - winner["figures"]["loss"],
        "importance": _importance(studies[0]),
        "hypervolume": volumes,
        "stages": _stages([*own, *(trial for trials in others for trial in trials)]),
    }
    return result | {"verdict": _verdict(result, winner, goal)}


def _trials(study: Study, goal: Goal) -> list[Found]:
    found = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "overrides": trial.user_attrs.get("overrides", []),
            "figures": trial.user_attrs.get("figures") if trial.state.name == "COMPLETE" else None,
            "looks": [trial.user_attrs[key] for key in sorted(trial.user_attrs) if key.startswith("look ")],
            "stages": trial.user_attrs.get("stages"),
            "why": trial.user_attrs.get(WHY),
            "too_slow": trial.user_attrs.get(TOO_SLOW),
            "too_lossy": trial.user_attrs.get(TOO_LOSSY),
            "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        }
        for trial in counted(study)
    ]
    return [trial | {"within": trial["figures"] is not None and goal.is_met(_figures(trial))} for trial in found]


def _ended_by_limit(trials: Sequence[Found]) -> list[Found]:
    """Trials that ended early because they cannot keep a limit."""
    return [trial for trial in trials if trial["too_slow"] is not None or trial["too_lossy"] is not None]


def _time_again(trials: Sequence[Found], goal: Goal, workshop: Workshop) -> None:
    """Times those of the front that other work disturbed once more, and those that take their place."""
    timed = set[str]()
    while disturbed := [
        trial
        for trial in _kept_front(trials, goal)
        if trial["figures"]["caveat"] and trial["figures"]["run"] not in timed
    ]:
        for trial in disturbed:
            log.info("trial %d was disturbed: %s", trial["number"], trial["figures"]["caveat"])
            run = trial["figures"]["run"]
            figures = workshop.on_validation(trial["overrides"], again=True)
            timed.add(run)
            for same in _finished(trials):
                if same["figures"]["run"] == run:
                    same |= {"figures": asdict(figures), "within": goal.is_met(figures)}


def _finished(trials: Sequence[Found]) -> list[Found]:
    return [trial for trial in trials if trial["figures"]]


def _figures(trial: Found) -> Figures:
    return Figures(**trial["figures"])


def _distinct(trials: Sequence[Found]) -> list[Found]:
    """The trials without those that propose a run again."""
    return list({trial["figures"]["run"]: trial for trial in reversed(trials)}.values())[::-1]


def _kept_front(trials: Sequence[Found], goal: Goal) -> list[Found]:
    """The front of the trials within the limits."""
    return _front(_distinct([trial for trial in _finished(trials) if trial["within"]]), goal)


def _front(trials: Sequence[Found], goal: Goal) -> list[Found]:
    """The trials that no other one dominates, cheapest first."""
    points = [goal.point(_figures(trial)) for trial in trials]
    front = [n for n, rank in enumerate(ranks(points)) if rank == 0]
    return [trials[n] for n in sorted(front, key=lambda n: points[n][1])]


def _covering(front: Sequence[Found], goal: Goal, most: int, best: Found | None) -> list[Found]:
    """Of many trials the best one, and those that cover the most volume with it; in their order."""
    if best is None:
        return []
    points = [goal.point(_figures(trial)) for trial in front]
    return [front[n] for n in thinned(points, most, _reference(points), front.index(best))]


def _tested(workshop: Workshop, chosen: Sequence[Found]) -> int:
    """How many variants are measured on the recipe's split, those of an earlier end of the same search included."""
    before = {int(file.stem.rpartition("-")[2]) for file in (workshop.folder / FRONT).glob("*.yaml")}
    return len(before | {trial["number"] for trial in chosen})


def _on_test(trial: Found, workshop: Workshop, tested: int) -> Found:
    """A trial with its figures on the recipe's split, their intervals corrected for how many variants are measured.

    Bonferroni: with each interval at ``1 - 0.05 / n``, all n hold together with a confidence of 95%.
    """
    recipe, figures = workshop.on_test(trial["overrides"], trial["number"], 1 - (1 - CONFIDENCE) / tested)
    file = f"{FRONT}/{recipe.name}.yaml"
    write_text(workshop.folder / file, recipe.text)
    return trial | {"recipe": file, "run": f"{FRONT}/{figures.run}", "test": asdict(figures)}


def _winner(front: Sequence[Found], goal: Goal) -> Found | None:
    """The cheapest by validation; where any loss may be, the cheapest whose loss cannot be told from none."""
    if goal.max_loss is not None or not front:
        return front[0] if front else None
    same = [trial for trial in front if (trial["figures"]["loss_ci"] or [trial["figures"]["loss"]])[0] <= 0]
    return same[0] if same else min(front, key=lambda trial: float(trial["figures"]["loss"]))


def _reference(points: Sequence[Point]) -> list[float]:
    """A point that is worse than all, and than the baseline, whose loss is 0 and whose costs are 1."""
    baseline = [0.0] + [1.0] * (len(points[0]) - 1)
    columns = list(zip(*points, baseline, strict=True))
    return [max(column) + MARGIN * (max(column) - min(column) or 1.0) for column in columns]


def _volumes(studies: Sequence[Sequence[Found]], written: Figures, goal: Goal) -> dict[str, float]:
    """What the trials that keep the limits dominate, on validation: of the search, its control, and the recipe.

    Timings that cannot be trusted do not count.
    """
    kept = [[_figures(trial) for trial in trials if trial["within"]] for trials in studies]
    kept.append([written] if goal.is_met(written) else [])
    points = [[goal.point(figures) for figures in one if not figures.caveat] for one in kept]
    if not any(points):
        return {}
    reference = _reference([point for one in points for point in one])
    names = ["search", *(["random"] if len(studies) > 1 else []), "written"]
    return {name: hypervolume(one, reference) for name, one in zip(names, points, strict=True)}


def _importance(study: Study) -> dict[str, float]:
    """How much each key matters for being among the best trials (PED-ANOVA, Watanabe et al., IJCAI 2023); sums to 1."""
    from optuna.importance import get_param_importances

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # there are too few trials
            return get_param_importances(study)
    except (ValueError, RuntimeError, UserWarning) as error:
        log.info("what mattered is not known: %s", error)
        return {}


def _stages(trials: Sequence[Found]) -> dict[str, int]:
    """How many stages the trials needed, how many of them are distinct, and how many were made for them."""
    found = [trial["stages"] for trial in trials if trial["stages"]]
    needed = [one for stages in found for one in stages["needed"]]
    made = sum(stages["made"] for stages in found)
    distinct = len(set(needed))
    return {"needed": len(needed), "distinct": distinct, "made": made, "made_again": max(made - distinct, 0)}


def _verdict(result: dict[str, Any], winner: Found | None, goal: Goal) -> str:
    """Two sentences."""
    if winner is None:
        return _nothing(result["trials"], Figures(**result["written"]), goal)
    return f"{_served(winner, result['tested'])} {_qualified(result, winner, goal)}"


def _nothing(trials: Sequence[Found], as_written: Figures, goal: Goal) -> str:
    """What there is to say where no trial keeps the limits: the closest, and the best of those that ended early."""
    finished, ended = _finished(trials), _ended_by_limit(trials)
    slow = [trial for trial in ended if trial["too_slow"] is not None]
    lossy = [trial for trial in ended if trial["too_lossy"] is not None]
    written = Written.of(as_written.metric)
    limits = [f"loses at most {_amount(goal.max_loss, written)}"] if goal.max_loss is not None else []
    limits += [f"is {goal.min_speedup:g} times as fast"] if goal.min_speedup is not None else []
    said = [f"None of {len(finished) + len(ended)} trials {' and '.join(limits)}."]
    if finished:
        best = min(finished, key=lambda trial: goal.distance(_figures(trial)))
        figures = _figures(best)
        said.append(
            f"The closest, trial {best['number']} ({' '.join(best['overrides'])}), is {figures.speedup:.2f} times as "
            f"fast and {_lost(figures.loss, written)} on validation."
        )
    if slow:
        best = max(slow, key=lambda trial: float(trial["too_slow"]))
        said.append(
            f"{len(slow)} stopped after a part of their training, because they are too slow; the fastest of these, "
            f"trial {best['number']} ({' '.join(best['overrides'])}), is {best['too_slow']:.2f} times as fast."
        )
    if lossy:
        best = min(lossy, key=lambda trial: float(trial["too_lossy"]))
        said.append(
            f"{len(lossy)} stopped before they were timed, because they lose too much; the best of these, trial "
            f"{best['number']} ({' '.join(best['overrides'])}), {_lost(best['too_lossy'], written)}."
        )
    return " ".join(said)


def _served(winner: Found, tested: int) -> str:
    """What to serve, how fast it is, and what it costs."""
    test = Figures(**winner["test"])
    written = Written.of(test.metric)
    doubt = f" (not to be trusted: {test.caveat})" if test.caveat else ""
    fast = "" if test.speedup_ci is None else " [{:.2f}, {:.2f}]".format(*test.speedup_ci)
    limits = None if test.loss_ci is None else sorted(-written.gain(limit) for limit in test.loss_ci)
    change = f"{written.signed(-written.gain(test.loss))}{written.change_unit} {written.signed_bounds(limits)}".rstrip()
    corrected = f"; the intervals are corrected for {tested} variants" if tested > 1 else ""
    return (
        f"Serve trial {winner['number']} ({winner['recipe']}) on {test.engine} at {test.setting}: it is "
        f"{test.speedup:.2f} times{fast} as fast as the baseline on the reference engine{doubt}, and its change in "
        f"{written.name} on {test.split} is {change}{corrected}."
    )


def _qualified(result: dict[str, Any], winner: Found, goal: Goal) -> str:
    """By how much its choice flattered the winner, and what else there is."""
    before, as_written = _figures(winner), Figures(**result["written"])
    written, optimism = Written.of(before.metric), result["optimism"]
    which = "larger" if optimism >= 0 else "smaller"
    better = "dominates" if dominates(goal.point(before), goal.point(as_written)) else "does not dominate"
    against, volumes = "", result["hypervolume"]
    if volumes.get("random"):
        ratio = volumes["search"] / volumes["random"]
        against = f", and the search covers {ratio:.2f} times the volume of as many random trials"
    return (
        f"Its loss is {_amount(abs(optimism), written)} {which} than on validation, where it was chosen; there it"
        f" {better} the recipe as written, which is {as_written.speedup:.2f} times as fast and "
        f"{_lost(as_written.loss, written)}{against}."
    )


def _lost(loss: float, written: Written) -> str:
    """What a variant loses or gains; a verb and an amount."""
    return f"{'gains' if loss < 0 else 'loses'} {_amount(abs(loss), written)}"


def _amount(loss: float | None, written: Written) -> str:
    assert loss is not None
    return f"{written.number(loss)}{written.change_unit}"
