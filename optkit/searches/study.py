"""A study of Optuna that several processes and machines take part in, of which each trial is counted once.

A trial whose process dies is failed by Optuna's heartbeat, and another worker takes up its values. One whose process is
interrupted gives them back itself.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optkit.core.errors import StageError, UserError, first_line, is_disk_full
from optkit.core.secrets import without_credentials
from optkit.core.seeds import derive_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)
HEARTBEAT_S, GRACE_S = 10, 60  # a process that was not heard of for the second is dead
POLL_S = 1.0
WHY, REFUSED = "why", "refused"  # attributes of a trial that failed, and of one that cannot be made
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
        storage = _storage(url)
        study = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True, directions=["minimize"] * objectives
        )
        before = study.user_attrs.get("definition")
        if before is None:
            study.set_user_attr("definition", definition)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError) as error:
        reason = without_credentials(first_line(error.__cause__ or error))
        fix = "postgresql+psycopg:// needs psycopg, mysql+pymysql:// needs PyMySQL"
        raise UserError(f"no study in {without_credentials(url)}: {reason}", key="--storage", fix=fix) from error
    if before is not None and before != definition:
        from optkit.sweep.opening import describe_changes

        message = f"the study '{name}' was another one: {describe_changes(before, definition)}"
        raise UserError(message, key="--study", value=name, fix="take another name")
    return study


def _storage(url: str) -> RDBStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    patience = {"connect_args": {"timeout": GRACE_S}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs=patience,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )


def take_part(
    study: Study, evaluate: Evaluate, *, trials: int | None, seconds: float | None, sampler: str, seed: int
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

    Raises:
        StageError: nothing that is proposed can be made, or the disk is full.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    worker = _Worker(study, evaluate, trials, sampler, seed)
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done = counted(study)
        if trials is None or len(done) < trials:
            worker.do_one()
        elif any(trial.state == TrialState.RUNNING for trial in done):
            time.sleep(POLL_S)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                fail_stale_trials(study)
        else:
            return


def counted(study: Study) -> list[FrozenTrial]:
    """The trials that count: finished, stopped early, failed while working, and running ones."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if (trial.state in states or WHY in trial.user_attrs) and REFUSED not in trial.user_attrs
    ]


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
        except (ValueError, UpdateFinishedTrialError):
            if not self._is_lost():
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
        if self.trials is not None and sum(t.number < trial.number for t in counted(self.study)) >= self.trials:
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

    def _is_lost(self) -> bool:
        """Whether the trial was taken away from this process while it worked on it."""
        from optuna.trial import TrialState

        trial = self._trial()
        return trial is not None and trial.state == TrialState.FAIL and WHY not in trial.user_attrs

    def _give_back(self) -> None:
        """Fails the trial, unless it is finished, and lets the next worker take up its values."""
        from optuna.storages import RetryHeartbeatStaleTrialCallback
        from optuna.trial import TrialState

        trial = self._trial()
        if trial is None or trial.state not in (TrialState.RUNNING, TrialState.FAIL) or WHY in trial.user_attrs:
            return
        if trial.state == TrialState.RUNNING:
            self.study.tell(trial.number, state=TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is experimental
            RetryHeartbeatStaleTrialCallback()(self.study, trial)

    def _trial(self) -> FrozenTrial | None:
        return None if self.number is None else self.study.get_trials()[self.number]


def _sampler(name: str, seed: int) -> BaseSampler:
    from optuna import samplers

    kinds = {TPE: samplers.TPESampler, NSGA2: samplers.NSGAIISampler, RANDOM: samplers.RandomSampler}
    return kinds[name](seed=seed)
