"""The engines by name: optkit's own, and those of other packages (entry points ``optkit.engines``).

Importing this module imports no engine, and not torch either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optkit.core.instantiate import parameters
from optkit.core.plugins import Plugins
from optkit.core.records import REFERENCE

if TYPE_CHECKING:
    from optkit.core.engine import Engine

BUNDLED = {
    "eager": "optkit.engines.eager:Eager",
    "inductor": "optkit.engines.inductor:Inductor",
    "onnxruntime": "optkit.engines.onnxruntime:ONNXRuntime",
    "openvino": "optkit.engines.openvino:OpenVINO",
    "cuda": "optkit.engines.cuda:CUDA",
}


def _unfit(name: str, found: object) -> str | None:
    from optkit.core.engine import no_engine

    if reason := no_engine(found):
        return reason
    if found.name != name:  # type: ignore[attr-defined]
        return f"its class is named '{found.name}'"  # type: ignore[attr-defined]
    if required := [p.name for p in parameters(found).values() if p.default is p.empty]:
        return f"its option '{required[0]}' has no default"
    return None


ENGINES: Plugins[type[Engine]] = Plugins("optkit.engines", "engine", BUNDLED, _unfit)


def reference_engine() -> Engine:
    """The engine that speedups are taken against."""
    return ENGINES[REFERENCE]()


def is_registered(engine: Engine) -> bool:
    """Whether a package offers the engine's class under its name, so that the name alone finds it again."""
    return engine.name in ENGINES and ENGINES[engine.name] is type(engine)
