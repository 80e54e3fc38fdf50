"""Sends finished runs, computed from the ledger, to an experiment tracker through accelerate's trackers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from optkit.core import ledger
from optkit.core.cache import read_json, write_json
from optkit.core.errors import UserError
from optkit.core.extras import need
from optkit.core.flat_keys import flat
from optkit.core.records import Record, variant_folder
from optkit.core.secrets import without_credentials
from optkit.report.card import CARD
from optkit.report.recipes import flat_recipe
from optkit.report.rows import Row, rows

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

SENT = "tracked.json"  # what of a run has been sent where, so that no figure is sent twice
FILES = ("ledger.jsonl", "recipe.yaml", "report.md", "report.json", "report.html", "tradeoff.svg")
OF_ROW = (
    "speedup", "speedup_same_engine", "latency_p50_ms", "latency_p99_ms", "throughput",
    "peak_memory_mb", "int8_share", "roofline",
)  # fmt: skip
OF_VARIANT = ("size_mb", "params", "sparsity", "stage_cost_s", "stage_device_s")


class Tracker(Protocol):
    """Where runs are sent; a dataclass whose fields are its config. Nested: a variant is opened within its run."""

    nested: ClassVar[bool]

    def open(self, run: str, variant: str | None) -> GeneralTracker:
        """A started tracker for a run, or for one variant of the run that is open."""
        ...

    def attach(self, tracker: GeneralTracker, file: Path) -> None:
        """Sends a file."""
        ...


@dataclass
class MLflow:
    """MLflow: a run, with a nested run for each variant.

    Attributes:
        uri: of the store; a SQLite file by default, or ``http://...`` of a server.
        experiment: under which runs are filed.
        artifacts: folder for the files of a store without a server; None is the store's own choice.
    """

    nested: ClassVar[bool] = True

    uri: str = "sqlite:///runs/mlflow.db"
    experiment: str = "optkit"
    artifacts: str | None = "runs/mlflow"

    def __post_init__(self) -> None:
        need("mlflow", "MLflow")

    def open(self, run: str, variant: str | None) -> GeneralTracker:
        import mlflow
        from accelerate.tracking import MLflowTracker

        mlflow.set_tracking_uri(self.uri)
        home = None if self.artifacts is None else Path(self.artifacts).absolute().as_uri()
        tracker = MLflowTracker(
            self.experiment, home, nested_run=variant is not None, run_name=variant or run, tags={"optkit.run": run}
        )
        tracker.start()
        return tracker

    def attach(self, tracker: GeneralTracker, file: Path) -> None:
        tracker.log_artifact(str(file))


@dataclass
class TensorBoard:
    """TensorBoard: a folder for each run, and one within it for each variant; a text file is shown as text.

    Attributes:
        folder: where event files go.
    """

    nested: ClassVar[bool] = False

    folder: str = "runs/tensorboard"

    def __post_init__(self) -> None:
        need("tensorboard", "TensorBoard")

    def open(self, run: str, variant: str | None) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker

        tracker = TensorBoardTracker(run if variant is None else f"{run}/{variant}", self.folder)
        tracker.start()
        return tracker

    def attach(self, tracker: GeneralTracker, file: Path) -> None:
        if file.suffix == ".md":
            tracker.log({file.stem: file.read_text(encoding="utf-8")})


@dataclass
class WandB:
    """Weights & Biases: a run, and one for each variant, in one group.

    Attributes:
        project: under which runs are filed.
        mode: online or offline.
    """

    nested: ClassVar[bool] = False

    project: str = "optkit"
    mode: str = "online"

    def __post_init__(self) -> None:
        need("wandb", "Weights & Biases")
        if self.mode not in ("online", "offline"):
            raise UserError(f"no mode '{self.mode}'", key="mode", value=self.mode, fix="online or offline")

    def open(self, run: str, variant: str | None) -> GeneralTracker:
        from accelerate.tracking import WandBTracker

        tracker = WandBTracker(self.project, name=variant or run, group=run, mode=self.mode)
        tracker.start()
        return tracker

    def attach(self, tracker: GeneralTracker, file: Path) -> None:
        tracker.tracker.log_artifact(str(file), name=re.sub(r"[^\w.-]", "-", file.name), type="report")


def send(folder: Path, tracker: Tracker) -> bool:
    """Sends a run folder's parameters, metrics, training curves and files; returns whether anything was new.

    Raises:
        UserError: a folder without a ledger.
    """
    written = ledger.read(folder)
    records = ledger.unique(written)
    # a variant that was measured again is new, too
    known = len({record.key for record in written})
    sent, name = _sent(folder), without_credentials(repr(tracker))
    if sent.get(name) == known:
        return False
    found = rows(records)
    with _opened(tracker, folder.name, None) as run:
        run.store_init_configuration({key: _simple(value) for key, value in flat_recipe(folder).items()})
        for record in sorted((r for r in records if r.control is None), key=lambda r: r.step):
            run.log(_metrics(record, found), step=record.step)
        for file in (folder / name for name in FILES):
            if file.is_file():
                tracker.attach(run, file)
        if tracker.nested:
            _send_variants(folder, tracker, records, found)
    if not tracker.nested:
        _send_variants(folder, tracker, records, found)
    write_json(folder / SENT, sent | {name: known}, key="out")
    return True


@contextmanager
def _opened(tracker: Tracker, run: str, variant: str | None) -> Iterator[GeneralTracker]:
    opened = tracker.open(run, variant)
    try:
        yield opened
    finally:
        opened.finish()


def _send_variants(folder: Path, tracker: Tracker, records: Sequence[Record], found: Sequence[Row]) -> None:
    for record in records:
        home = variant_folder(folder, record)
        with _opened(tracker, folder.name, _safe(home.name)) as variant:
            about = {"technique": record.technique, "variant": record.variant, "step": record.step}
            variant.store_init_configuration(about | {key: _simple(value) for key, value in flat(record.params)})
            curves = dict(_curves(record.facts))
            epochs = max(map(len, curves.values()), default=0)
            for epoch in range(epochs):
                reached = {name: values[epoch] for name, values in curves.items() if epoch < len(values)}
                variant.log(reached, step=epoch + 1)
            variant.log(_metrics(record, found), step=epochs)
            if (home / CARD).is_file():
                tracker.attach(variant, home / CARD)


def _metrics(record: Record, found: Sequence[Row]) -> dict[str, float]:
    """Everything measured of a variant, by engine, setting (a length of texts if there are several) and name.

    ``timing_trusted`` is 1 where the figures of time can be trusted, else 0.
    """
    own = [row for row in found if (row["variant"], row["step"]) == (record.variant, record.step)]
    several = len({row["sequence_length"] for row in found}) > 1
    metrics: dict[str, float | None] = {}
    for row in own:
        length = f"{row['sequence_length']} tokens/" if several else ""
        workload = f"{row['workload']}/" if row["workload"] else ""
        where = f"{row['engine']}/batch {row['batch_size']}/{length}{workload}"
        metrics |= {_safe(f"{where}{key}"): value for key, value in _qualities(row).items()}
        metrics |= {_safe(f"{where}{key}"): row[key] for key in OF_ROW} | {f"{length}macs": row["macs"]}
        if row["latency_p50_ms"] is not None:
            metrics[_safe(f"{where}timing_trusted")] = float(row["caveat"] is None)
        metrics |= {key: row[key] for key in OF_VARIANT}
    return {key: value for key, value in metrics.items() if value is not None}


def _qualities(row: Row) -> dict[str, float | None]:
    """The metrics by name, and their changes against the baseline."""
    found = {row["metric"]: row["quality"], f"{row['metric']}_delta": row["quality_delta"]}
    for name, other in row["metrics"].items():
        found |= {name: other["value"], f"{name}_delta": other["delta"]}
    return found


def _curves(facts: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """The losses and validation scores of a training, wherever in a stage's facts it stands."""
    for name, value in facts.items():
        if isinstance(value, dict):
            if isinstance(value.get("losses"), list):
                yield f"{_safe(name)}/loss", value["losses"]
                yield f"{_safe(name)}/validation", value.get("validation") or []
            else:
                yield from _curves(value)


def _sent(folder: Path) -> dict[str, int]:
    found = read_json(folder / SENT)
    return {without_credentials(name): count for name, count in found.items()} if isinstance(found, dict) else {}


def _simple(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _safe(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w\-. /]", "_", name)
