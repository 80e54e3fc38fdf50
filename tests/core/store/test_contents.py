"""What optkit store shows, removes and checks."""

import json
import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from optkit.cli import cli
from optkit.core.errors import UserError
from optkit.core.store import FolderStore
from optkit.core.store.collection import named_by_runs, to_remove, with_ancestors
from optkit.core.store.contents import Stored
from optkit.core.store.opening import open_contents
from tests.core.store.conftest import EXAMPLE, flip, host, model, variant

A, B, C = ("a" * 16, "b" * 16, "c" * 16)
DAY = 86_400


def entry(name, age=0.0, size=10, state="whole", parent=None):
    place = name + {"whole": "", "unfinished": ".partial", "damaged": ".damaged"}[state]
    return Stored(name, place, state, size, -age, parent=parent)


@pytest.mark.parametrize(
    ("entries", "names", "options", "gone"),
    [
        ([entry(A), entry(B)], {A: ["r"]}, {}, {B: "no run names it"}),
        ([entry(A, DAY * 40), entry(B, DAY * 40)], {A: ["r"]}, {"older_than": DAY * 30}, {B: "not used for long"}),
        ([entry(A, DAY), entry(B, DAY * 31)], {}, {"older_than": DAY * 30}, {B: "not used for long"}),
        ([entry(A, 3), entry(B, 2), entry(C, 1)], {}, {"max_size": 15}, {A: "the store is too large", B: "the store is too large"}),
        ([entry(A, 3), entry(B, 2), entry(C, 1)], {A: ["r"]}, {"max_size": 20}, {B: "the store is too large"}),
        ([entry(A, DAY * 9), entry(B, 2), entry(C, 1)], {}, {"max_size": 20, "older_than": DAY}, {A: "not used for long"}),
        ([entry(A)], {}, {"max_size": 10}, {}),
        ([entry(A, state="damaged"), entry(A)], {A: ["r"]}, {"max_size": 99}, {A: "damaged"}),
        ([entry(A, DAY, state="unfinished")], {}, {}, {}),
        ([entry(A, DAY, state="unfinished")], {}, {"max_size": 1}, {}),
        ([entry(A, DAY, state="unfinished")], {}, {"older_than": 60}, {A: "unfinished, and old"}),
    ],
)  # fmt: skip
def test_what_goes(entries, names, options, gone):
    assert {one.id: why for one, why in to_remove(entries, names, 0.0, **options)} == gone


def test_what_a_kept_variant_was_made_from_is_kept():
    entries = [entry(A), entry(B, parent=A), entry(C, parent=B)]
    assert with_ancestors({B: ["run"]}, entries) == {A: ["run"], B: ["run"]}


def test_runs_name_variants_in_their_ledgers_and_among_their_files(tmp_path):
    run = tmp_path / "runs" / "study" / "seed-0"
    (run / "variants" / "0-train").mkdir(parents=True)
    (run / "ledger.jsonl").write_text('{"variant": "v1", "parent": null, "baseline": "v0"}\n{"variant": "torn')
    (run / "variants" / "0-train" / "variant.json").write_text('{"variant": {"id": "v2", "parent": "v1"}}')
    (tmp_path / "runs" / "store" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "store" / "x" / "ledger.jsonl").write_text('{"variant": "no run"}')
    expected = {"v0": ["seed-0"], "v1": ["seed-0"], "v2": ["seed-0"]}
    assert named_by_runs([tmp_path]) == expected
    assert named_by_runs([tmp_path / "runs"], depth=2) == expected
    assert named_by_runs([tmp_path / "runs"], depth=1) == {}


@pytest.fixture(params=["folder", "url"])
def place(request, tmp_path, monkeypatch):
    """A store with a chain of two variants and one besides; the second is in a run."""
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    url = (tmp_path / "runs" / "store").as_uri()
    store = FolderStore(tmp_path / "runs/store", "r") if request.param == "folder" else host(url, tmp_path / "cache/x")
    for name, parent in ((A, None), (B, A), (C, A)):
        store.put(variant(name, parent), model(), EXAMPLE)
    run = tmp_path / "runs" / "quickstart-1"
    run.mkdir()
    (run / "ledger.jsonl").write_text(json.dumps({"variant": B}) + "\n")
    return str(tmp_path / "runs/store") if request.param == "folder" else url


def call(*arguments):
    done = CliRunner().invoke(cli, ["store", *arguments])
    if isinstance(done.exception, UserError):
        raise done.exception
    return done.exit_code, done.output


def ids(place):
    return {one.id for one in open_contents(place).entries()}


def test_ls_says_what_each_entry_is_and_which_runs_name_it(place):
    _, said = call("ls", place, "--runs", "runs", "--format", "json")
    found = {one["id"]: one for one in json.loads(said)}
    assert {name: one["kept_by"] for name, one in found.items()} == {A: ["quickstart-1"], B: ["quickstart-1"], C: []}
    assert {(one["stage"], one["technique"], one["state"]) for one in found.values()} == {("train", "train", "whole")}
    _, said = call("ls", place, "--runs", "runs")
    assert [line.split()[0] for line in said.splitlines()[1:-1]] == sorted(found, key=lambda i: -found[i]["used"])
    assert said.splitlines()[-1].startswith("3 entries, ")
    _, said = call("du", place, "--format", "json")
    assert json.loads(said)["train"] == {"entries": 3, "bytes": sum(one["size"] for one in found.values())}


def test_gc_shows_first_and_then_removes_what_no_run_names(place):
    _, said = call("gc", place, "--runs", "runs", "--dry-run")
    assert "would remove 1 entry" in said
    assert ids(place) == {A, B, C}
    _, said = call("gc", place, "--runs", "runs")
    assert "removed 1 entry" in said
    assert C in said
    assert ids(place) == {A, B}
    _, said = call("gc", place, "--runs", "runs", "--max-size", "1B")
    assert "still above 1B" in said
    assert ids(place) == {A, B}


@pytest.mark.parametrize("runs", ["quickstart-2", "sweeps/one/0", "searches/one/trials/quickstart-3"])
def test_gc_of_a_folder_keeps_what_runs_sweeps_and_searches_beside_it_name(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    store = FolderStore(tmp_path / "runs/store", "r")
    for name in (A, C):
        store.put(variant(name, None), model(), EXAMPLE)
    del store  # what a process uses stays
    run = tmp_path / "runs" / runs
    run.mkdir(parents=True)
    (run / "ledger.jsonl").write_text(json.dumps({"variant": A}) + "\n")
    call("gc", "runs/store")
    assert ids("runs/store") == {A}


def test_gc_of_a_store_whose_runs_are_not_known_wants_a_reason(place, tmp_path):
    (tmp_path / "runs/quickstart-1/ledger.jsonl").unlink()
    with pytest.raises(UserError, match="no run is known, so everything would be removed"):
        call("gc", place)
    assert ids(place) == {A, B, C}
    call("gc", place, "--max-size", "1B")
    assert ids(place) == set()


def test_verify_names_what_is_damaged(place, tmp_path):
    assert call("verify", place)[0] == 0
    flip(next((tmp_path / "runs/store").rglob(f"*{A}/*weights.safetensors")))
    from optkit.core.checksums import _sha256

    _sha256.cache_clear()
    code, said = call("verify", place)
    assert code == 1
    assert f"{A} (train): the bytes of weights.safetensors have changed" in said
    assert "2 of 3 entries" in said


def test_an_entry_that_somebody_makes_stays(place, tmp_path):
    store = FolderStore(tmp_path / "runs/store") if "://" not in place else host(place, tmp_path / "cache/y")
    with store.making(C, "making train of r"):
        if "://" not in place:
            from threading import Thread

            said = []
            thread = Thread(target=lambda: said.append(call("gc", place, "--runs", "runs")))
            thread.start()  # a lock is of a thread
            thread.join()
            assert "which is making train of r" in said[0][1]
        else:
            assert "stays: a host makes it" in call("gc", place, "--runs", "runs")[1]
    assert ids(place) == {A, B, C}


def test_the_cache_in_front_of_a_store_has_its_own_contents(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    from optkit.core.store import open_store

    url = (tmp_path / "shared").as_uri()
    open_store(url).put(variant(A), model(), EXAMPLE)
    assert "removed 1 entry" in call("gc", url, "--cache", "--max-size", "1B")[1]
    assert ids(url) == {A}
    with pytest.raises(UserError, match="no store at"):
        call("ls", "memory://nothing", "--cache")


def test_files_of_others_are_no_entries_and_stay(tmp_path):
    store = FolderStore(tmp_path)
    store.put(variant(A), model(), EXAMPLE)
    for name in ("mine", "0" * 16, f".{B}.txt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".locks" / "x").touch()
    assert ids(str(tmp_path)) == {A}
    (tmp_path / f".{B}.{'1' * 32}").mkdir()
    (tmp_path / f"{C}.partial").mkdir()
    found = {one.place: one.state for one in open_contents(str(tmp_path)).entries()}
    assert found == {A: "whole", f".{B}.{'1' * 32}": "unfinished", f"{C}.partial": "unfinished"}


def test_files_that_may_be_on_their_way_to_a_server_stay_for_a_day(tmp_path):
    url = (tmp_path / "shared").as_uri()
    host(url, tmp_path / "a").put(variant(A), model(), EXAMPLE)
    folder = tmp_path / "shared" / "entries" / A
    (folder / "entry.json").unlink()
    contents = open_contents(url)
    (one,) = contents.entries()
    assert one.state == "unfinished"
    assert "on its way" in contents.remove(one)
    assert contents.remove(replace(one, used=time.time() - 2 * DAY)) is None
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls", "nowhere"], "STORE: no store at nowhere"),
        (["ls", "memory://nowhere"], "STORE: no store at memory://nowhere"),
        (["ls", "s9://bucket"], "store: no file system 's9://' "),
        (["gc", "--older-than", "30"], "--older-than: '30' is no age (such as 30d or 12h)"),
        (["gc", "--older-than", "long"], "--older-than: 'long' is no age"),
        (["gc", "--max-size", "50"], "--max-size: '50' is no size (such as 50GB or 800MiB)"),
        (["gc", "--max-size", "x GB"], "--max-size: 'x GB' is no size"),
        (["ls", "--runs", "nowhere"], "--runs: no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FolderStore(tmp_path / "runs" / "store").put(variant(A), model(), EXAMPLE)
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_using_an_entry_makes_it_young(tmp_path):
    store = FolderStore(tmp_path)
    folder = store.put(variant(A), model(), EXAMPLE).folder
    os.utime(folder, (0, 0))
    store.find(A)
    assert open_contents(str(tmp_path)).entries()[0].used > time.time() - 60
