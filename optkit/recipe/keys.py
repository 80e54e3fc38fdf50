"""What decides a variant's key besides its parent and its seed: parameters, code, and what else a stage depends on."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from optkit.core.identity import identity
from optkit.core.instantiate import TARGET, UNKEYED, named_paths
from optkit.core.metric import Metric
from optkit.core.source_digest import code_of_classes, code_of_paths
from optkit.core.stage import ExtendsKey, KeyContext, Stage
from optkit.core.task import POOL, OwnParts, Task

LIBRARIES = ("evaluate", "torchmetrics")  # their metrics hold what they have seen


def target_of(thing: object) -> str:
    """The dotted path of a thing's class."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def params_of(thing: Any) -> dict[str, Any]:
    """A dataclass's fields as JSON-able data; a dataclass within it says by ``_target_`` which it is."""
    params = {name: _as_text(value) for name, value in asdict(thing).items()}
    for name, inner in within(thing).items():
        params[name] = {TARGET: target_of(inner), **params_of(inner)}
    return params


def keyed_params_of(thing: Any) -> dict[str, Any]:
    """Those that decide a result: without fields marked as `UNKEYED`, such as how often a training saves its state."""
    unkeyed = [f.name for f in fields(thing) if f.metadata == UNKEYED]
    params = {name: value for name, value in params_of(thing).items() if name not in unkeyed}
    for name, inner in within(thing).items():
        params[name] = {TARGET: target_of(inner), **keyed_params_of(inner)}
    return params


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def parts(thing: Any) -> list[Any]:
    """A dataclass, and those within it."""
    return [thing, *(part for inner in within(thing).values() for part in parts(inner))]


def within(thing: Any) -> dict[str, Any]:
    """The dataclasses among a dataclass's fields, by field name."""
    return {f.name: getattr(thing, f.name) for f in fields(thing) if is_dataclass(getattr(thing, f.name))}


def dependencies(stage: Stage, context: KeyContext) -> list[Any]:
    """What else decides the result of a stage, by itself and by what is within it."""
    return [part.depends_on(context) for part in parts(stage) if isinstance(part, ExtendsKey)]


def sources(thing: Any) -> dict[str, tuple[str | None, str]]:
    """The code of a stage or a task, of the classes that it derives from, and of the dataclasses within it, by module.

    It is what their modules import (`optkit.core.imports`), and the versions of the packages that these use. The same
    of what their fields name by a dotted path (`optkit.core.instantiate.NAMED`) counts, by path. What is found by
    another name at run time, such as an engine, cannot be seen there: a stage returns it from ``depends_on``.
    """
    inner = parts(thing) if is_dataclass(thing) else [thing]
    named = [path for part in inner for path in named_paths(part)]
    return code_of_classes(kind for part in inner for kind in type(part).__mro__) | code_of_paths(named)


def of_task(task: Task) -> list[Any]:
    """What of a task besides its data decides what is trained on it: code, and the metric by which epochs are kept."""
    own = task.depends_on() if isinstance(task, OwnParts) else []
    return [sources(task), identity_of(task.metrics[0]), *own]


def identity_of(metric: Metric) -> list[Any]:
    """What stands for a metric: its class, its fields and its code."""
    # what does not compare is what a metric keeps while it works
    passing = {field.name for field in fields(metric) if not field.compare} if is_dataclass(metric) else ()
    held = {name: _named(value) for name, value in vars(metric).items() if name not in passing}
    return [target_of(metric), held, code_of_classes(type(metric).__mro__)]


def _named(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, Metric):
        return identity_of(value)
    of_library = type(value).__module__.partition(".")[0] in LIBRARIES
    return str(value) if of_library else identity(value)


def pool_of(stage: Stage, task: Task) -> list[str]:
    """What examples without labels a stage or a training within it sees."""
    seen = any(getattr(part, "split", None) == POOL for part in parts(stage))
    return [task.pool_fingerprint] if seen and task.pool_fingerprint else []
