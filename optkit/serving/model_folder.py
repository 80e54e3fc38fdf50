"""A folder to serve from: a session of an engine, and how requests become its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optkit.core.cache import new_folder, write_text
from optkit.core.errors import UserError
from optkit.deploy.exporting import RULES, classifies_by, input_names, preprocessing_of
from optkit.deploy.script import TEXTS
from optkit.deploy.source import Source
from optkit.engines.saved import ENGINE, Saved, read_session
from optkit.serving.plan import Plan
from optkit.serving.requests import Input, check_rules

PLAN = "plan.json"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a saved session, which is served as it is."""
    return (folder / ENGINE).is_file()


def save_model(source: Source, plan: Plan, to: Path) -> Path:
    """Compiles a variant for the batches of a plan, and writes the session with its preprocessing and the plan.

    Args:
        source: of the variant, with its run's task and engines.
        plan: names the engine that serves it, which has the run's options where the run has it.
        to: a new folder.

    Raises:
        UserError: the engine cannot serve the variant, or the folder cannot be written.
        StageError: the engine cannot compile it.
    """
    from optkit.core.generation import Generative
    from optkit.deploy.formats import traced_puts
    from optkit.engines.registry import ENGINES

    if isinstance(source.module, Generative):
        fix = "optkit export writes it for servers of language models"
        raise UserError(
            "a language model answers token by token, which optkit serve does not do", key="variant", fix=fix
        )
    own = next((found for found in source.engines.values() if found.name == plan.engine), None)
    chosen = own if own is not None else ENGINES.find(plan.engine, "engine")()
    if reason := chosen.unavailable() or chosen.unsupported(source.variant.traits):
        raise UserError(reason, key="engine", value=plan.engine)
    if to.exists():
        raise UserError(f"{to} is there already", key="save", value=str(to), fix="give a new folder")
    example = tuple(x[:1].repeat(plan.max_batch, *[1] * (x.dim() - 1)) for x in source.example)
    rules = preprocessing_of(source.task)
    puts = traced_puts(source, input_names(source))
    described = {"inputs": [asdict(put) for put in puts.inputs], "outputs": [asdict(put) for put in puts.outputs]}
    if not classifies_by(source, rules | described):
        rules.pop("classes", None)
    session = chosen.compile(source.module, source.variant, example)
    with new_folder(to, key="save") as folder:
        session.save(folder)
        write_text(folder / PLAN, json.dumps(plan.to_json(), indent=1) + "\n")
        write_text(folder / RULES, json.dumps(rules | described, indent=1, ensure_ascii=False) + "\n")
        if rules.get("kind") == TEXTS and source.task is not None:
            source.task.save_tokenizer(folder)
    return to


def read_plan(folder: Path) -> Plan | None:
    """The plan that a folder was written for; None where it has none, as one of `Session.save`.

    Raises:
        UserError: it is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        return Plan.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not the plan that optkit serve --save writes", key=str(path), fix="save it again") from error


def read_rules(folder: Path) -> Mapping[str, Any]:
    """The preprocessing of a folder; empty where it has none: then requests hold arrays.

    Raises:
        UserError: it is damaged.
    """
    path = folder / RULES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", key=str(path)) from error
    return check_rules(found, str(path))


def saved_session(folder: Path, trust: Iterable[str] = ()) -> Saved:
    """What the session of a folder was.

    Raises:
        UserError: there is none, or it is damaged.
    """
    saved = read_session(folder, tuple(trust))
    if saved is None:
        raise UserError(
            f"no session in {folder}", key="variant", value=str(folder), fix="optkit serve --save makes one"
        )
    return saved


def inputs_of(saved: Saved, rules: Mapping[str, Any], where: str) -> list[Input]:
    """The inputs of one example: shapes of the session, names of the preprocessing.

    Raises:
        UserError: these do not belong together.
    """
    named: Sequence[Any] = rules.get("inputs") or [{"name": f"input_{n}"} for n in range(len(saved.example))]
    try:
        names = [str(put["name"]) for put in named]
    except (TypeError, KeyError) as error:
        raise UserError("not rules of preprocessing that this optkit knows", key=where) from error
    if len(names) != len(saved.example) or any(x.dim() == 0 for x in saved.example):
        raise UserError(f"{len(names)} inputs, and the session has {len(saved.example)}", key=where)
    kinds = [str(x.dtype).removeprefix("torch.") for x in saved.example]
    if odd := [kind for kind in kinds if kind not in ("float32", "float64", "int64", "int32", "uint8", "bool")]:
        raise UserError(f"an input of {odd[0]}, which JSON does not carry", key=where)
    return [Input(*one) for one in zip(names, kinds, (tuple(x.shape[1:]) for x in saved.example), strict=True)]
