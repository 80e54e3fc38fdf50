"""What decides a variant's key besides its parent and its seed: parameters, code, and what else a stage depends on."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from optkit.core.compat.versions import version_of
from optkit.core.instantiate import TARGET
from optkit.core.source_digest import code_digest, code_of
from optkit.core.stage import ExtendsKey, KeyContext, Stage
from optkit.core.task import POOL, Task

# optkit's code that every variant depends on
SHARED_CODE = ("core", "tasks", "models", "training")
# what the techniques use besides it and their own
TECHNIQUE_CODE = (
    "engines", "measure/validation.py", "measure/latency.py", "measure/disturbance.py", "measure/precision.py",
    "measure/turns.py",
)  # fmt: skip
# what decides weights besides torch and the packages that models come from, by the folder that uses it
PACKAGES = {"quantize": ("torchao",)}


def target_of(thing: object) -> str:
    """The dotted path of a thing's class."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def params_of(thing: Any) -> dict[str, Any]:
    """A dataclass's fields as JSON-able data; a dataclass within it says by ``_target_`` which it is."""
    params = asdict(thing)
    for name, inner in within(thing).items():
        params[name] = {TARGET: target_of(inner), **params_of(inner)}
    return params


def parts(thing: Any) -> list[Any]:
    """A dataclass, and those within it."""
    return [thing, *(part for inner in within(thing).values() for part in parts(inner))]


def within(thing: Any) -> dict[str, Any]:
    """The dataclasses among a dataclass's fields, by field name."""
    return {f.name: getattr(thing, f.name) for f in fields(thing) if is_dataclass(getattr(thing, f.name))}


def dependencies(stage: Stage, context: KeyContext) -> list[Any]:
    """What else decides the result of a stage, by itself and by what is within it."""
    return [part.depends_on(context) for part in parts(stage) if isinstance(part, ExtendsKey)]


def sources(stage: Stage) -> list[tuple[str | None, ...]]:
    """The code of a stage and of what is within it, that of the stages they derive from included."""
    kinds = [kind for part in parts(stage) for kind in type(part).__mro__ if is_dataclass(kind)]
    return list(dict.fromkeys(map(source, kinds)))


def source(cls: type) -> tuple[str | None, ...]:
    """What stands for the code of a class: its technique's with the packages below it, or its module's elsewhere."""
    package, _, rest = cls.__module__.partition(".")
    if package != "optkit":
        return code_of(cls)
    folder = rest.partition(".")[0]
    return code_digest(*code_of_folder(folder)), *map(version_of, PACKAGES.get(folder, ()))


def code_of_folder(folder: str) -> tuple[str, ...]:
    """The parts of optkit's code, besides the shared, that decide what a stage of this folder does."""
    return (folder,) if folder in SHARED_CODE else (folder, *TECHNIQUE_CODE)


def pool_of(stage: Stage, task: Task) -> list[str]:
    """What examples without labels a stage or a training within it sees."""
    seen = any(getattr(part, "split", None) == POOL for part in parts(stage))
    return [task.pool_fingerprint] if seen and task.pool_fingerprint else []
