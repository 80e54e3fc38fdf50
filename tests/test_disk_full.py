"""A disk that is full, for real: a small tmpfs at each place that a run writes to."""

import logging
import subprocess
from dataclasses import replace

import pytest
import torch

from optkit.core import ledger
from optkit.core.cache import new_file, write_text
from optkit.core.errors import StageError
from optkit.core.ledger import Ledger
from optkit.core.logs import log_file
from optkit.core.store import FolderStore
from optkit.core.variant import Variant
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.prune import MagnitudePruning
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.report import save_report, write_report
from optkit.training import Train, Trainer
from optkit.training.checkpoint import load_state, save_state
from tests.conftest import make_record

FULL = "cannot write to .*: No space left on device"


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MB, and a function that leaves so many KB of it free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a disk")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


class Disk:
    def __init__(self, folder):
        self.folder, self.ballast = folder, folder / "ballast"

    def leave(self, kilobytes):
        self.ballast.unlink(missing_ok=True)
        with open(self.ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                file.truncate(file.tell() - 1024 * kilobytes)

    def clear(self):
        self.ballast.unlink()


@pytest.fixture
def recipe(digits, disk):
    train = Trainer(epochs=3, batch_size=64, optimizer="adamw", lr=0.02, schedule="cosine")
    return Recipe(
        name="small",
        model={"_target_": "optkit.models.MLP", "widths": [128], "num_classes": None, "input_shape": None},
        task=digits,
        chain=["train", "mask"],
        stages={"train": Train(train), "mask": MagnitudePruning(0.5)},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, memory=False),
        threads=1,
        out=str(disk.folder / "runs"),
        text="name: small\n",
    )


def _answers(folder):
    return [(r.stage, [m.raw for m in r.measurements if m.name == "accuracy"]) for r in ledger.read(folder)]


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(recipe, disk, tmp_path):
    undisturbed = _answers(run(make_plan(replace(recipe, out=str(tmp_path / "undisturbed")))).folder)
    said = []
    for kilobytes in range(0, 320, 32):
        disk.leave(kilobytes)
        try:
            run(make_plan(recipe))
        except StageError as error:
            said.append(str(error))
        hidden = {path.name.partition(".")[2] for path in disk.folder.rglob(".*") if path.is_file()}
        assert hidden <= {"lock", "ledger.jsonl.lock"}
    assert all("No space left on device (free some space" in text for text in said)
    places = {text.partition(" to ")[0] for text in said}
    assert {"cannot write", "stage 'model': cannot write", "stage 'train': cannot write"} <= places
    disk.clear()
    assert _answers(run(make_plan(recipe)).folder) == undisturbed
    assert not list((disk.folder / "runs" / "store").glob("*.partial"))


def test_the_ledger_keeps_whole_lines(disk):
    book = Ledger(disk.folder / "ledger.jsonl")
    book.append(make_record(variant="a"))
    disk.leave(8)
    second = replace(make_record(variant="b"), facts={"long": "x" * 20_000})
    with pytest.raises(OSError, match="No space left"):
        book.append(second)
    assert book.path.read_bytes().endswith(b"\n")
    disk.clear()
    book.append(second)
    assert [r.variant for r in book.records()] == ["a", "b"]


def test_a_checkpoint_leaves_the_one_before(disk):
    save_state(disk.folder, {"step": 1})
    disk.leave(16)
    with pytest.raises(StageError, match=FULL):
        save_state(disk.folder, {"step": 2, "weights": torch.zeros(100_000)})
    assert load_state(disk.folder) == {"step": 1}
    assert {path.name for path in disk.folder.iterdir()} == {"training.pt", "ballast"}


def test_a_variant_is_there_whole_or_not(disk, mlp, digits):
    store = FolderStore(disk.folder)
    disk.leave(4)
    with pytest.raises(StageError, match=FULL):
        store.put(Variant("id", None, frozenset({"float"}), {}), mlp, digits.example(2))
    assert store.find("id") is None
    assert {path.name for path in disk.folder.iterdir()} == {"ballast"}


@pytest.mark.slow
def test_report_files_stay_as_they_were(recipe, disk):
    folder = run(make_plan(recipe)).folder
    write_report(folder)
    save_report([folder], "html")
    before = {
        path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".md", ".json", ".html", ".svg")
    }
    disk.leave(0)
    for write in (lambda: write_report(folder), lambda: save_report([folder], "html")):
        with pytest.raises(StageError, match=FULL):
            write()
    for name in ("tradeoff.png", "recipe.yaml", "variants/0-train/README.md"):
        with pytest.raises(StageError, match=FULL), new_file(folder / name) as file:
            file.write_text("x" * 10_000)
    assert {path: path.read_bytes() for path in before} == before


def test_a_log_that_cannot_be_written_is_named_once(disk, caplog):
    disk.leave(0)
    with log_file(disk.folder / "run.log"):
        for _ in range(3):
            logging.getLogger("optkit.test").warning("x" * 5000)
    assert sum("cannot write to" in record.getMessage() for record in caplog.records) == 1


def test_a_text_is_written_where_there_is_room(disk):
    disk.leave(64)
    write_text(disk.folder / "a.txt", "x" * 10_000)
    assert (disk.folder / "a.txt").stat().st_size == 10_000
