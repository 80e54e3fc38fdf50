"""The model card of an export, in the hub's format: how to run it, what goes in and out, and what the run measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optkit.deploy.formats import HUGGINGFACE

if TYPE_CHECKING:
    from optkit.deploy.formats import Format
    from optkit.deploy.script import Scripts
    from optkit.deploy.source import Source

LIBRARIES = {"onnxruntime": "onnx", "openvino": "openvino", HUGGINGFACE: "transformers"}  # the hub's names
MOST_CLASSES = 20
PICKLE = (
    "`torch.export.load` may run code that is in the file: a package of torch.export can hold pickles. "
    "This one holds a graph as JSON and plain tensors. Open only packages whose source you trust."
)


def card(
    source: Source,
    name: str,
    form: Format,
    rules: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
    made: Scripts,
    *,
    classifies: bool,
    tests: bool,
) -> Any:
    """The ``huggingface_hub.ModelCard`` of an export.

    Args:
        source: what is exported.
        name: of the format.
        form: the format.
        rules: what stands in ``preprocess.json``.
        recorded: the figure of quality of the run on this engine; None where there is none.
        made: the scripts.
        classifies: whether ``infer.py`` names classes.
        tests: whether the test files are there.
    """
    from huggingface_hub import ModelCard, ModelCardData

    kind = {"image": "image-classification", "text": "text-classification"}.get(str(rules.get("kind")))
    tags = sorted({"optkit", *(step.technique for step in source.variant.steps), *source.variant.traits & {"int8"}})
    data = ModelCardData(
        library_name=LIBRARIES.get(name, "pytorch"),
        pipeline_tag=kind if classifies else None,
        tags=tags,
        model_name=source.name,
        eval_results=_results(source, recorded, kind) if recorded and kind else None,
    )
    parts = ["---", data.to_yaml(), "---", "", f"# {_plain(source.name)}", "", _opening(source, name), ""]
    parts += ["## Run it", "", "```sh", f"pip install {' '.join(made.needs)}", *_calls(made, tests), "```", ""]
    parts += [*_said(recorded, tests), *([PICKLE, ""] if form.file.endswith(".pt2") else [])]
    parts += ["## Inputs and outputs", "", *_table(rules), "", *_preparation(rules), ""]
    parts += ["## How it was made", "", *_steps(source), "", *_rows(source)]
    return ModelCard("\n".join(parts))


def _opening(source: Source, name: str) -> str:
    what = "int8" if "int8" in source.variant.traits else ", ".join(sorted(source.variant.traits)) or "float"
    run = f" from the run `{_plain(source.record.run)}`" if source.record else ""
    return f"Variant `{source.variant.id}` ({what}) for {name}{run}, exported by optkit. Running it needs no optkit."


def _calls(made: Scripts, tests: bool) -> list[str]:
    given = [f"{call}  # {what}" for call, what in made.usage]
    return [*given, "python infer.py test/test.csv  # the test files"] if tests else given


def _said(recorded: Mapping[str, Any] | None, tests: bool) -> list[str]:
    if recorded is None:
        return ["No run recorded a figure of quality for this engine.", ""]
    said = (
        f"The run recorded {_plain(recorded['metric'])} {recorded['value']:.6g} on this engine, on "
        f"{recorded['examples']} examples of the {_plain(recorded['split'])} split, at batch size "
        f"{recorded['batch_size']}."
    )
    if not tests:
        said += " Export with `--test-files` to have these examples beside the model."
    return [said, ""]


def _table(rules: Mapping[str, Any]) -> list[str]:
    lines = ["| | name | shape | dtype |", "|---|---|---|---|"]
    for side in ("inputs", "outputs"):
        for put in rules[side]:
            shape = ", ".join(map(str, put["shape"]))
            lines.append(f"| {side[:-1]} | `{_plain(put['name'])}` | ({shape}) | {put['dtype']} |")
    return lines


def _preparation(rules: Mapping[str, Any]) -> list[str]:
    """What is known of the way from files to inputs."""
    known = {k: v for k, v in rules.items() if k not in ("inputs", "outputs", "classes", "kind")}
    if rules.get("kind") is None:
        lines = ["How files become these inputs is not known here: prepare them as the model was trained."]
    else:
        lines = ["`preprocess.json` has the rules from files to inputs, and `infer.py` follows them:"]
    lines += [
        "",
        *(f"- {_plain(str(key))}: `{_plain(json.dumps(value, ensure_ascii=False))}`" for key, value in known.items()),
    ]
    classes = rules.get("classes")
    if classes:
        more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
        lines.append(f"- classes: {', '.join(_plain(str(c)) for c in classes[:MOST_CLASSES])}{more}")
    return lines


def _steps(source: Source) -> list[str]:
    if not source.variant.steps:
        return ["- as it was given"]
    return [
        f"- `{_plain(s.stage)}` ({_plain(s.technique)}): `{_plain(json.dumps(s.params))}`" for s in source.variant.steps
    ]


def _rows(source: Source) -> list[str]:
    """The table of what the run measured."""
    from optkit.core import ledger
    from optkit.report.rows import rows
    from optkit.report.tables import markdown

    if source.record is None or source.folder is None:
        return []
    found = rows(ledger.unique(ledger.read(source.folder.parent.parent)))
    own = [r for r in found if (r["variant"], r["step"]) == (source.record.variant, source.record.step)]
    return ["## What the run measured", "", markdown(own), ""] if own else []


def _results(source: Source, recorded: Mapping[str, Any], kind: str) -> list[Any]:
    from huggingface_hub import EvalResult

    dataset = type(source.task).__name__.lower()
    return [
        EvalResult(
            task_type=kind,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=recorded["split"],
            metric_type=recorded["metric"],
            metric_value=recorded["value"],
        )
    ]


def _plain(text: str) -> str:
    """One line that ends no code span, cell or element."""
    return " ".join(text.replace("`", "'").replace("<", "&lt;").replace("|", "\\|").split())
