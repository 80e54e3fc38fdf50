"""A composed and built recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optkit.core.engine import Engine
from optkit.core.stage import Stage
from optkit.core.task import Task
from optkit.measure import Measure

AUTO, MODEL = "auto", "model"


@dataclass
class Recipe:
    """A composed and built recipe.

    Attributes:
        name: of the recipe; the run folder begins with it.
        model: the model's config node.
        traits: what is true of the model before any stage.
        task: the data, test split included.
        chain: stage names, in order.
        stages: stages by name.
        engines: engines by name.
        reference: the eager engine, against which speedups are taken.
        measure: what to measure.
        baseline: the stage after which the model is the baseline; ``auto`` takes the training stages that open the
            chain, ``model`` the model as loaded.
        controls: what the result is to be compared with (``optkit.recipe.controls.CONTROLS``).
        seed: of everything random.
        threads: torch threads, for training and serving; None takes the cores this process may use.
        out: folder of run folders.
        store: of finished stages: a folder, or a URL of fsspec; None is ``out``/store.
        max_steps: a limit on training steps and calibration batches (a smoke run); None for none.
        fresh: do not continue a run folder; start another.
        text: the composed recipe as YAML, which reproduces the run.
        overrides: those that it was composed with, as typed or as a sweep gave them.
    """

    name: str
    model: dict[str, Any]
    task: Task
    chain: list[str]
    stages: dict[str, Stage]
    engines: dict[str, Engine]
    reference: Engine
    measure: Measure = field(default_factory=Measure)
    baseline: str = AUTO
    controls: list[str] = field(default_factory=list)
    seed: int = 0
    threads: int | None = None
    out: str = "runs"
    store: str | None = None
    max_steps: int | None = None
    fresh: bool = False
    text: str = ""
    overrides: list[str] = field(default_factory=list)
    traits: frozenset[str] = frozenset({"float"})
