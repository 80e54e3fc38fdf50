"""A study of Optuna that several processes and machines take part in, of which each trial is counted once.

A study of N trials has N places, which go to its trials in the order of their numbers. A trial that is lost, because
its process died or was interrupted, keeps its place until a trial that was enqueued with its values has it instead. So
no other trial gets that place, and a trial that is enqueued twice gets it once.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from optkit.core.errors import StageError, UserError, first_line, is_disk_full
from optkit.core.secrets import without_credentials
from optkit.core.seeds import derive_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)
HEARTBEAT_S, GRACE_S = 10, 60  # a process that was not heard of for the second is dead
POLL_S = 1.0
WHY, REFUSED = "why", "refused"  # attributes of a trial that failed, and of one that cannot be made
TOO_SLOW = "too slow"  # attribute of a trial that its speed ended: how many times as fast as the baseline it is
TOO_LOSSY = "too lossy"  # attribute of a trial that its loss ended before it was timed: that loss
BEGUN = "begun"  # attribute of a trial whose process sends heartbeats
SURPLUS = "surplus"  # attribute of a trial that found no place left
INSTEAD_OF, VALUES = "instead of", "values"  # attributes of an enqueued trial: the lost trial's number, and its values
FIRST = -1  # in place of that number, for the first trial that was asked for; -2 for the second
STARTUP = 5  # trials before TPE learns from them; a search begins with as many guesses
MOST_REFUSED = 100  # proposals in a row
SAMPLERS = (TPE, NSGA2, RANDOM) = ("tpe", "nsga2", "random")
Evaluate = Callable[["Trial"], Sequence[float]]


class Refused(Exception):  # noqa: N818 - it is no failure
    """What a trial proposes cannot be made; found before any work."""


class _Surplus(Exception):  # noqa: N818
    """Another worker has the last place."""


def open_study(url: str, name: str, objectives: int, definition: dict[str, Any]) -> Study:
    """Opens a study, or makes it.

    Args:
        url: SQLAlchemy's, of the database.
        name: of the study.
        objectives: how many figures a trial has; all are to be small.
        definition: what the study is about; JSON.

    Raises:
        UserError: the database cannot be reached, or it has another study of this name.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        from optkit.searches.storage import StudyStorage

        storage = StudyStorage(url, HEARTBEAT_S, GRACE_S)
        study = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True, directions=["minimize"] * objectives
        )
        before = study.user_attrs.get("definition")
        if before is None:
            study.set_user_attr("definition", definition)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, OSError) as error:
        reason = without_credentials(first_line(error.__cause__ or error))
        fix = "postgresql+psycopg:// needs psycopg, mysql+pymysql:// needs PyMySQL"
        raise UserError(f"no study in {without_credentials(url)}: {reason}", key="--storage", fix=fix) from error
    if before is not None and before != definition:
        from optkit.sweep.opening import describe_changes

        message = f"the study '{name}' was another one: {describe_changes(before, definition)}"
        raise UserError(message, key="--study", value=name, fix="take another name")
    return study


def take_part(
    study: Study,
    evaluate: Evaluate,
    *,
    trials: int | None,
    seconds: float | None,
    sampler: str,
    seed: int,
    first: Sequence[dict[str, Any]] = (),
) -> None:
    """Does trials of a study until there are enough of them, or the time is up; waits for those of other workers.

    The values of a trial follow from the seed, its number and the trials before it, so that a search that was
    interrupted proposes what it would have proposed.

    Args:
        study: to take part in.
        evaluate: does a trial. What it raises is the trial's failure, which counts; `Refused` does not count.
        trials: of the study, of all workers together.
        seconds: in which this worker begins trials.
        sampler: one of `SAMPLERS`.
        seed: of the study.
        first: values of the first trials, each by key; the sampler proposes those that are not given.

    Raises:
        StageError: nothing that is proposed can be made, or the disk is full.
    """
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False):
        for place, values in enumerate(first):
            _enqueue(study, values, FIRST - place)
    worker = _Worker(study, evaluate, trials, sampler, seed)
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        _take_up_lost(study)
        places = _places(study)
        states = {trial.state for trial in places[:trials]}
        if trials is None or len(places) < trials or TrialState.WAITING in states:
            worker.do_one()
        elif TrialState.RUNNING in states:
            time.sleep(POLL_S)
        else:
            return


def counted(study: Study) -> list[FrozenTrial]:
    """The trials that count: finished, stopped early, failed while working, and running ones."""
    from optuna.trial import TrialState

    return [trial for trial in _places(study) if trial.state != TrialState.WAITING and not _is_lost(trial)]


def _places(study: Study) -> list[FrozenTrial]:
    """The trials that have a place, or are about to get one, by number: also waiting and lost ones."""
    trials = study.get_trials(deepcopy=False)
    replaced: dict[int, int] = {}
    for trial in trials:
        if INSTEAD_OF in trial.user_attrs:
            replaced.setdefault(trial.user_attrs[INSTEAD_OF], trial.number)
    return [
        trial
        for trial in trials
        if not {REFUSED, SURPLUS} & trial.user_attrs.keys()
        and trial.number not in replaced
        and (INSTEAD_OF not in trial.user_attrs or replaced[trial.user_attrs[INSTEAD_OF]] == trial.number)
    ]


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether the process of a trial died, or was interrupted, before there was a result."""
    from optuna.trial import TrialState

    return trial.state == TrialState.FAIL and WHY not in trial.user_attrs


def _take_up_lost(study: Study) -> None:
    """Enqueues the values of lost trials, after a look at which processes have died."""
    from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    for trial in _places(study):
        began = trial.datetime_start
        is_silent = trial.state == TrialState.RUNNING and BEGUN not in trial.user_attrs  # Optuna waits for it for ever
        if is_silent and began is not None and datetime.now() - began > timedelta(seconds=GRACE_S):
            with suppress(ValueError, UpdateFinishedTrialError):  # another worker was first
                study.tell(trial.number, state=TrialState.FAIL)
    for trial in _places(study):
        if _is_lost(trial):
            _enqueue(study, trial.user_attrs.get(VALUES, {}) | trial.params, trial.number)


def _enqueue(study: Study, values: dict[str, Any], instead_of: int) -> None:
    study.enqueue_trial(values, {INSTEAD_OF: instead_of, VALUES: values})


class _Worker:
    """Does the trials of one process, one after the other."""

    def __init__(self, study: Study, evaluate: Evaluate, trials: int | None, sampler: str, seed: int):
        self.study, self.evaluate, self.trials = study, evaluate, trials
        self.sampler, self.seed = sampler, seed
        self.number: int | None = None
        self.full: Exception | None = None

    def do_one(self) -> None:
        """One trial, from its proposal to its result.

        Raises:
            StageError: nothing that is proposed can be made, or the disk is full.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        self.number = self.full = None
        try:
            self.study.optimize(self._do, n_trials=1, catch=(Exception,))
        except (ValueError, UpdateFinishedTrialError, AssertionError):  # the last is Optuna's "Should not reach"
            trial = self._trial()
            if trial is None or not _is_lost(trial):
                raise
            log.warning("trial %s is another worker's by now: nothing was heard of this one for too long", self.number)
        except BaseException:
            self._give_back()
            raise
        if self.full is not None:
            self._give_back()
            raise self.full
        last = self.study.get_trials(deepcopy=False)[-MOST_REFUSED:]
        if len(last) == MOST_REFUSED and all(REFUSED in trial.user_attrs for trial in last):
            why = last[-1].user_attrs[REFUSED]
            raise StageError(f"none of the last {MOST_REFUSED} proposals can be made: {why}", fix="change the space")

    def _do(self, trial: Trial) -> Sequence[float]:
        """What Optuna calls."""
        from optuna.exceptions import TrialPruned

        self.number = trial.number
        trial.set_user_attr(BEGUN, True)  # from about here on Optuna finds out if this process dies
        if trial.number not in [place.number for place in _places(self.study)[: self.trials]]:
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus
        self.study.sampler = _sampler(self.sampler, derive_seed(self.seed, "trial", trial.number))
        try:
            return self.evaluate(trial)
        except Refused as refused:
            trial.set_user_attr(REFUSED, str(refused))
            trial.set_constraint("can be made", 1.0)
            log.info("trial %d cannot be made: %s", trial.number, refused)
            raise TrialPruned from refused
        except TrialPruned:
            raise
        except Exception as error:
            if is_disk_full(error):
                self.full = error
            else:
                trial.set_user_attr(WHY, f"{type(error).__name__}: {first_line(error)}")
                log.warning("trial %d failed: %s", trial.number, first_line(error))
            raise

    def _give_back(self) -> None:
        """Fails the trial, unless it is finished, and lets the next worker take up its values."""
        from optuna.trial import TrialState

        trial = self._trial()
        if trial is not None and trial.state == TrialState.RUNNING:
            self.study.tell(trial.number, state=TrialState.FAIL)
        _take_up_lost(self.study)

    def _trial(self) -> FrozenTrial | None:
        return None if self.number is None else self.study.get_trials()[self.number]


def _sampler(name: str, seed: int) -> BaseSampler:
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    if name == TPE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # keys depend on each other, and those of a stage are there in some trials only
            return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True)
    return samplers.NSGAIISampler(seed=seed) if name == NSGA2 else samplers.RandomSampler(seed=seed)
