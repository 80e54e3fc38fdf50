"""A study that several workers share: which trials count, and what becomes of those of a dead worker."""

import errno
import getpass
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from optkit.core.errors import StageError, UserError
from optkit.core.interruption import Interruption
from optkit.searches import study
from optkit.searches.study import RANDOM, TPE, Refused, counted, open_study, take_part

KILLS = 10
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def opened(url, **definition):
    return open_study(url, "s", 2, definition or {"a": 1})


def both(trial):
    x = trial.suggest_float("x", 0, 1)
    return x, 1 - x


def do(study, evaluate=both, trials=6, sampler=TPE):
    take_part(study, evaluate, trials=trials, seconds=None, sampler=sampler, seed=3)


def values(study):
    return [trial.params["x"] for trial in counted(study)]


def test_a_study_has_as_many_trials_as_were_asked_for(url):
    found = opened(url)
    do(found, trials=4)
    do(found, trials=4)
    assert len(values(found)) == 4
    do(found, trials=6)
    assert len(found.trials) == len(set(values(found))) == 6


def test_the_trials_that_were_asked_for_come_first_also_in_parts(url):
    found, first = opened(url), [{"x": 0.25}, {"x": 0.5}, {"x": 0.75}]
    for trials in (2, 4):
        take_part(found, both, trials=trials, seconds=None, sampler=TPE, seed=3, first=first)
        assert values(found)[:3] == [0.25, 0.5, 0.75][:trials]
        assert len(values(found)) == trials


@pytest.mark.parametrize("sampler", [TPE, RANDOM])
def test_a_search_that_is_continued_proposes_what_it_would_have_proposed(url, tmp_path, sampler):
    at_once, in_parts = opened(url), opened(f"sqlite:///{tmp_path}/other.db")
    do(at_once, trials=14, sampler=sampler)
    for trials in (5, 12, 14):
        do(in_parts, trials=trials, sampler=sampler)
    assert values(at_once) == values(in_parts)


def test_a_trial_whose_process_died_before_its_first_heartbeat_is_taken_up(url, monkeypatch):
    """Optuna takes only trials for lost that had one, and the others would wait for it for ever."""
    for name, seconds in (("HEARTBEAT_S", 1), ("GRACE_S", 1), ("POLL_S", 0.05)):
        monkeypatch.setattr(study, name, seconds)
    found = opened(url)
    study._enqueue(found, {"x": 0.25}, study.FIRST)
    found.ask()  # as a worker that is killed at once
    asked = []

    def evaluate(trial):
        asked.append(trial.suggest_float("x", 0, 1))
        return asked[-1], 1 - asked[-1]

    do(found, evaluate, trials=3)
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert asked[-1] == 0.25


def test_a_lost_trial_keeps_its_place_and_is_taken_up_once_however_many_see_it(url):
    found = opened(url)
    do(found, trials=3)
    lost = found.ask()
    lost.suggest_float("x", 0, 1)
    found.tell(lost, state=optuna.trial.TrialState.FAIL)  # as of a process that died
    assert len(values(found)) == 3
    assert len(study._places(found)) == 4
    for _ in range(2):  # as two workers that look at the same time
        study._enqueue(found, lost.params, lost.number)
    do(found, trials=4)
    assert len(values(found)) == 4
    assert values(found)[-1] == lost.params["x"]


def test_the_last_place_goes_to_the_smaller_number_whichever_trial_begins_first(url):
    """Both of two waiting trials had it, if the larger number began first."""
    found = opened(url)
    do(found, trials=2)
    for x in (0.25, 0.75):
        found.enqueue_trial({"x": x})
    found.ask()  # by another worker, which is slow to begin
    study._Worker(found, both, 3, TPE, 3).do_one()
    assert [trial.number for trial in found.trials if "surplus" in trial.user_attrs] == [3]


def test_a_trial_that_was_taken_for_dead_is_left_to_the_worker_that_took_it_up(url, caplog):
    found, values_asked = opened(url), []

    def evaluate(trial):
        point = both(trial)
        values_asked.append(point[0])
        if trial.number == 1:  # another worker heard nothing for too long
            opened(url).tell(1, state=optuna.trial.TrialState.FAIL)
        return point

    do(found, evaluate, trials=3)
    assert "trial 1 is another worker's by now" in caplog.text
    assert values_asked[2] == values_asked[1]
    assert values(found) == [values_asked[0], *values_asked[2:]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: Interruption(signal.SIGTERM)])
def test_an_interrupted_trial_is_done_next_and_counted_once(url, error):
    found, seen = opened(url), []

    def third_is_interrupted(trial):
        point = both(trial)
        seen.append(point[0])
        if len(seen) == 3:
            raise error()
        return point

    with pytest.raises((KeyboardInterrupt, Interruption)):
        do(found, third_is_interrupted)
    assert len(counted(found)) == 2
    do(found, third_is_interrupted)
    assert seen[3] == seen[2]
    assert len(values(found)) == len(set(values(found))) == 6


def test_a_trial_that_fails_counts_and_says_why(url):
    found = opened(url)

    def one_fails(trial):
        if trial.number == 1:
            raise StageError("the loss is not finite")
        return both(trial)

    do(found, one_fails, trials=3)
    assert [trial.user_attrs.get("why") for trial in counted(found)] == [
        None, "StageError: the loss is not finite", None
    ]  # fmt: skip


def test_what_cannot_be_made_does_not_count(url):
    found = opened(url)

    def only_small(trial):
        point = both(trial)
        if point[0] > 0.5:
            raise Refused("too large")
        return point

    do(found, only_small)
    assert len(values(found)) == 6
    assert max(values(found)) <= 0.5
    refused = [trial for trial in found.trials if "refused" in trial.user_attrs]
    assert refused
    assert all(trial.constraints == {"can be made": 1.0} for trial in refused)


def test_a_search_of_which_nothing_can_be_made_ends(url, monkeypatch):
    monkeypatch.setattr(study, "MOST_REFUSED", 5)

    def refuse(trial):
        raise Refused("never")

    with pytest.raises(StageError, match="none of the last 5 proposals can be made: never"):
        do(opened(url), refuse)


def test_a_full_disk_ends_the_search_and_the_trial_is_done_again(url):
    found, full = opened(url), [True]

    def evaluate(trial):
        point = both(trial)
        if full:
            raise OSError(full.pop() and errno.ENOSPC, "No space left on device")
        return point

    with pytest.raises(OSError, match="No space left"):
        do(found, evaluate)
    do(found, evaluate)
    assert len(values(found)) == 6
    assert found.trials[1].params == found.trials[0].params


def test_a_study_of_something_else_is_refused(url):
    opened(url, amount=0.5)
    with pytest.raises(UserError, match=r"--study: the study 's' was another one: amount was 0\.5 and is 0\.7"):
        opened(url, amount=0.7)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/optkit", "refused"),
        ("nothing://me:secret@host/optkit", "nothing"),
        ("not a URL", "Could not parse"),
    ],
)
def test_a_database_that_cannot_be_reached_is_said_in_a_line_without_the_password(url, reason):
    with pytest.raises(UserError, match=reason) as caught:
        opened(url)
    assert caught.value.key == "--storage"
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def database(request, tmp_path):
    """The URL of a database: a SQLite file, or an own server of PostgreSQL or of MariaDB, which speaks MySQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    with tempfile.TemporaryDirectory(prefix="optkit-") as data, SERVERS[request.param](data) as url:
        yield url


@contextmanager
def postgresql(data):
    if not POSTGRESQL:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    is_root = os.geteuid() == 0  # which PostgreSQL does not run as

    def run(*command):
        as_user = ["runuser", "-u", "postgres", "--"] if is_root else []
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd="/")

    if is_root:
        shutil.chown(data, "postgres")
    run(POSTGRESQL[-1] / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-k {data} -c listen_addresses= -c fsync=off"
    run(POSTGRESQL[-1] / "pg_ctl", "-D", data, "-o", options, "-l", f"{data}/log", "-w", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={data}"
    finally:
        run(POSTGRESQL[-1] / "pg_ctl", "-D", data, "-m", "immediate", "stop")


@contextmanager
def mysql(data):
    pytest.importorskip("pymysql")
    if not (shutil.which("mariadb-install-db") and shutil.which("mariadbd")):
        pytest.skip("no MariaDB: apt-get install mariadb-server")
    files, user, socket = f"{data}/files", getpass.getuser(), f"{data}/socket"
    prepare = ["mariadb-install-db", "--no-defaults", f"--datadir={files}", f"--user={user}"]
    subprocess.run([*prepare, "--auth-root-authentication-method=normal"], check=True, capture_output=True)
    serve = ["mariadbd", "--no-defaults", f"--datadir={files}", f"--user={user}", f"--socket={socket}"]
    with subprocess.Popen([*serve, "--skip-networking"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert any("ready for connections" in line for line in server.stderr)
            yield f"mysql+pymysql://root@localhost/test?unix_socket={socket}"
        finally:
            server.kill()


SERVERS = {"postgresql": postgresql, "mysql": mysql}
each_database = pytest.mark.parametrize("database", ["sqlite", *SERVERS], indirect=True)


@pytest.mark.slow
@each_database
def test_of_workers_that_are_killed_no_trial_is_lost_and_none_is_counted_twice(database, tmp_path):
    kills, trials, file = (KILLS, 30, tmp_path / "begun") if "postgresql" in database else (2, 8, tmp_path / "begun")

    def start():
        command = [sys.executable, "-m", "tests.searches.worker", database, "s", str(trials), str(file)]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2])

    chance, workers = random.Random(0), [start(), start()]
    for _ in range(kills):
        before = len(file.read_text().split()) if file.exists() else 0
        while not file.exists() or len(file.read_text().split()) < before + 2:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        workers[0].kill()
        workers[0].wait()
        workers = [workers[1], start()]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    found = optuna.load_study(study_name="s", storage=database)
    complete = [trial for trial in found.trials if trial.state.name == "COMPLETE"]
    assert len(complete) == len(counted(found)) == trials
    assert len({trial.params["x"] for trial in complete}) == trials
    lost = [trial for trial in found.trials if trial.state.name == "FAIL" and "x" in trial.params]
    assert {trial.params["x"] for trial in lost} <= {trial.params["x"] for trial in complete}


@pytest.mark.slow
@each_database
def test_workers_that_open_a_new_study_at_the_same_time_all_take_part(database, tmp_path):
    """Of four that made the same tables, some failed with "UNIQUE constraint failed" or "already exists"."""
    command = [sys.executable, "-m", "tests.searches.worker", database, "s", "8", str(tmp_path / "begun")]
    workers = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(4)]
    assert [worker.wait(timeout=300) for worker in workers] == [0] * 4
    assert len(counted(optuna.load_study(study_name="s", storage=database))) == 8
