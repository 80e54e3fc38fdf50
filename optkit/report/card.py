"""Model cards in the hub's format: each variant's results, recipe and facts, beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optkit.core import ledger
from optkit.core.cache import new_file
from optkit.core.records import REFERENCE, Record, variant_folder
from optkit.report.recipes import flat_recipe
from optkit.report.rows import Row, rows
from optkit.report.tables import markdown

CARD = "README.md"
LONG = 400  # characters of a fact from which it is left to the ledger


def write_cards(folder: Path) -> list[Path]:
    """Writes ``variants/NAME/README.md`` for every variant of a run that lies in its folder; returns the files."""
    records = ledger.unique(ledger.read(folder))
    found, recipe = rows(records), flat_recipe(folder)
    written = []
    for record in records:
        home = variant_folder(folder, record)
        if home.is_dir():
            own = [row for row in found if (row["variant"], row["step"]) == (record.variant, record.step)]
            with new_file(home / CARD) as file:
                card(record, own, recipe, home).save(file)
            written.append(home / CARD)
    return written


def card(record: Record, own: Sequence[Row], recipe: dict[str, Any], home: Path) -> Any:
    """A variant's ``huggingface_hub.ModelCard``, its metrics in ``model-index``.

    Args:
        record: the variant's.
        own: the variant's rows.
        recipe: flat keys of the composed recipe.
        home: the folder whose name is the variant's.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = f"{record.recipe}-{home.name}"
    data = ModelCardData(
        library_name="optkit",
        tags=["optkit", record.technique],
        model_name=name,
        eval_results=_results(own, recipe) or None,
    )
    parts = ["---", data.to_yaml(), "---", "", f"# {_plain(name)}", "", _opening(record), "", "## Results", ""]
    parts += [markdown(own) if own else "Nothing was measured.", "", "## Load it", "", *_usage(home, own)]
    parts += ["", "## The stage", "", *_list(record.params), "", "What it did:", "", *_facts(record)]
    parts += ["", "## Environment", "", *_list(_environment(record)), ""]
    return ModelCard("\n".join(parts))


def _results(own: Sequence[Row], recipe: dict[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    kind = "text-classification" if any(row.get("sequence_length") for row in own) else "image-classification"
    kind = "text-generation" if any(row.get("workload") for row in own) else kind
    dataset = str(recipe.get("task.dataset") or recipe.get("task._target_", "unknown").rpartition(".")[2].lower())
    several = len({row["sequence_length"] for row in own}) > 1
    found = []
    for row in own:
        length = f"{row['sequence_length']} tokens, " if several else ""
        length += f"{row['workload']}, " if row.get("workload") else ""
        where = f"{row['engine']}, batch {row['batch_size']}, {length}{row['threads']} threads"
        for metric, key in ((row["metric"], "quality"), ("speedup", "speedup"), ("latency_ms", "latency_p50_ms")):
            # who reads the metadata sees no mark: a timing that cannot be trusted stays in the table alone
            if row[key] is not None and (key == "quality" or row["caveat"] is None):
                found.append(
                    EvalResult(
                        task_type=kind,
                        dataset_type=dataset,
                        dataset_name=dataset,
                        dataset_split=row["split"],
                        metric_type=metric,
                        metric_name=f"{metric} ({where})",
                        metric_value=row[key],
                    )
                )
    return found


def _opening(record: Record) -> str:
    place = "the baseline" if record.step == 0 else f"step {record.step}"
    return (
        f"{place.capitalize()} of the optkit run `{_plain(record.run)}`, made by `{_plain(record.stage)}` "
        f"({_plain(record.technique)}). Quality and latency were "
        "measured on the engines named below, on the artifact in this folder."
    )


def _usage(home: Path, own: Sequence[Row]) -> list[str]:
    engine = own[-1]["engine"] if own else REFERENCE
    batch_size = own[-1]["batch_size"] if own else 1
    folder = f"variants/{_plain(home.name)}"
    call = f'session = optkit.load("{folder}", engine="{engine}", batch_size={batch_size})'
    return ["```python", "import optkit", "", call, "```"]


def _facts(record: Record) -> list[str]:
    short = {k: v for k, v in record.facts.items() if len(json.dumps(v)) <= LONG}
    lines = _list(short | {"wall time, s": record.cost.wall_s, "processor time, s": record.cost.device_s})
    left = sorted(set(record.facts) - set(short))
    return [*lines, f"- in the ledger: {', '.join(map(_plain, left))}"] if left else lines


def _environment(record: Record) -> dict[str, Any]:
    environment = record.environment
    packages = {k: v for k, v in environment.get("packages", {}).items() if v}
    return {"processor": environment.get("cpu", {}).get("name"), "threads": environment.get("threads"), **packages}


def _list(values: dict[str, Any]) -> list[str]:
    return [f"- {_plain(str(key))}: `{_plain(json.dumps(value))}`" for key, value in values.items()]


def _plain(text: str) -> str:
    """One line that ends no code span and opens no element."""
    return " ".join(text.replace("`", "'").replace("<", "&lt;").split())
