"""What is exported: a variant with its run's task and record, or a model as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.core.records import Record

log = logging.getLogger(__name__)
EXAMPLES = 2  # inputs that a model is exported with


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        name: what it is called.
        module: the model, in eval mode.
        variant: its description.
        example: inputs, ``(2, ...)`` each.
        task: whose preprocessing goes with it; None where it is not known.
        record: of the variant in its run's ledger; None where there is none.
        engines: the run's, by name.
        folder: of the variant; None for a model from Python.
    """

    name: str
    module: nn.Module
    variant: Variant
    example: tuple[Tensor, ...]
    task: Any = None
    record: Record | None = None
    engines: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def of_model(model: Any, example_inputs: tuple[Tensor, ...] | None, task: Any) -> Source:
    """Of a module, or of what `quantize_static`, `prune_structured` and the like return.

    Raises:
        UserError: it is no model, or one in train mode, or there are no example inputs.
    """
    from optkit.core.engine import check_eval, traits_of
    from optkit.core.loaders import as_example
    from optkit.engines.program import module_of
    from optkit.models.spec import weights_digest

    module = module_of(model)
    check_eval(module)
    if example_inputs is None and task is not None:
        example_inputs = task.example(EXAMPLES)
    if example_inputs is None:
        fix = "give inputs as the model is called with, such as (images,)"
        raise UserError("a model is exported by example inputs", key="example_inputs", fix=fix)
    name = type(getattr(model, "module", model)).__name__.lower()
    variant = Variant(weights_digest(module)[:16], None, traits_of(module), {})
    return Source("model" if name == "graphmodule" else name, module, variant, as_example(example_inputs), task)


def of_folder(path: Path, overrides: Sequence[str], trust: Iterable[str], task: Any) -> Source:
    """Of a variant's folder; of a run's folder the last variant of the recipe's own chain.

    Args:
        path: the folder.
        overrides: of the run's recipe, such as ``task.path=DIR``.
        trust: what may be called to rebuild the model, besides what the run's recipe names.
        task: takes the place of the recipe's.

    Raises:
        UserError: no variant there, one that cannot be rebuilt, or data that are not the run's.
    """
    from optkit.core.artifact import VARIANT, open_artifact
    from optkit.core.records import variant_folder

    is_run = not (path / VARIANT).is_file() and (path / "recipe.yaml").is_file()
    run = path if is_run else _run_of(path)
    recipe = _recipe(run, overrides) if run is not None else None
    if recipe is None and overrides:
        raise UserError("there is no recipe beside this variant", key=str(overrides[0]), fix="leave it out")
    records = _records(run) if run is not None else []
    if is_run and run is not None and recipe is not None:
        path = _last(run, recipe.chain, records)
        names = ", ".join(variant_folder(run, r).name for r in records)
        log.info("exporting %s, the last variant of the recipe's chain; this run has %s", path, names)
    artifact = open_artifact(path)
    record = next((r for r in records if r.variant == artifact.variant.id), None)
    if recipe is not None:
        from optkit.recipe.plan import trusted_names

        trust = (*trust, *trusted_names(recipe))
        task = task if task is not None else _checked(recipe.task, records)
    elif task is None:
        log.warning("%s: no run's recipe.yaml above this variant, so its preprocessing is not known", path)
    name = path.name if recipe is None else f"{recipe.name}-{path.name}"
    example = task.example(EXAMPLES) if task is not None else tuple(spec.zeros() for spec in artifact.inputs)
    engines = recipe.engines if recipe is not None else {}
    return Source(name, artifact.module(trust), artifact.variant, example, task, record, engines, path)


def last_variant(run: Path, overrides: Sequence[str] = ()) -> Path:
    """The folder of the last variant of a run's own chain.

    Args:
        run: its folder.
        overrides: of its recipe.

    Raises:
        UserError: there is none yet, or no recipe.
    """
    return _last(run, _recipe(run, overrides).chain, _records(run))


def _last(run: Path, chain: Sequence[str], records: Sequence[Record]) -> Path:
    from optkit.core.records import variant_folder

    own = _own(records, chain)
    if not own:
        raise UserError(f"the run at {run} has no variant yet", key="variant", fix="continue the run first")
    return variant_folder(run, max(own, key=lambda record: record.step))


def _run_of(path: Path) -> Path | None:
    """The run that a variant's folder lies in."""
    run = path.resolve().parent.parent
    return run if (run / "recipe.yaml").is_file() and path.resolve().parent.name == "variants" else None


def _records(run: Path) -> list[Record]:
    from optkit.core import ledger

    return ledger.unique(ledger.read(run)) if (run / ledger.LEDGER_NAME).is_file() else []


def _own(records: Sequence[Record], chain: Sequence[str]) -> list[Record]:
    """The records of the recipe's own chain; those of its stages that stand in ``Record.chain`` follow the baseline."""
    opening = next((r.stage for r in records if r.variant == r.baseline), None)
    first = chain.index(opening) + 1 if opening in chain else 0
    return [r for r in records if r.control is None and r.chain == list(chain[first : first + len(r.chain)])]


def _recipe(run: Path, overrides: Sequence[str]) -> Any:
    """A run's recipe, built."""
    from optkit.launch import launch
    from optkit.recipe.compose import to_recipe

    found: list[Any] = []
    launch(str(run / "recipe.yaml"), overrides, lambda cfg: found.append(to_recipe(cfg)))
    return found[0]


def _checked(task: Any, records: Sequence[Record]) -> Any:
    """A run's task; raises UserError for other data: mean, deviation, classes and tokenizer would be others."""
    measured = next((r.data["fingerprint"] for r in records if "fingerprint" in r.data), None)
    if measured is not None and measured != task.fingerprint:
        message = "these are other data than those that the run was measured on"
        raise UserError(message, key="task", fix="set task.path=... to the same data")
    return task
