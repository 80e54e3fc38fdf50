"""From a variant to the folder and the plan that it is served by."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optkit.core.errors import UserError
from optkit.serving.model_folder import is_model_folder, read_plan, save_model, saved_session
from optkit.serving.plan import Plan, planned

log = logging.getLogger(__name__)


def prepared(
    variant: Path,
    engine: str | None,
    changes: Mapping[str, Any],
    to: Path,
    overrides: Sequence[str] = (),
    trust: Iterable[str] = (),
) -> tuple[Path, Plan]:
    """The folder to serve from, and the plan: of the run's ``cost.json``, or as it was saved, with what is asked.

    Args:
        variant: a variant's or a run's folder, or one with a saved session, which is served as it is.
        engine: that serves it; a saved session has its own.
        changes: fields of the plan; None leaves them.
        to: a new folder, where a variant's session is written.
        overrides: of the run's recipe.
        trust: what may be called to rebuild the model, see `optkit.load`.

    Raises:
        UserError: no variant there, no engine, or one that cannot serve it.
        StageError: the engine cannot compile it.
    """
    from optkit.core.artifact import open_artifact
    from optkit.deploy.source import of_folder

    if is_model_folder(variant):
        if overrides:
            raise UserError("a saved session has no recipe", key=str(overrides[0]), fix="leave it out")
        saved = saved_session(variant, trust)
        if engine not in (None, saved.engine):
            fix = "leave it out, or give the variant's folder of the run"
            raise UserError(f"the session in {variant} is of {saved.engine}", key="engine", value=engine, fix=fix)
        compiled_for = len(saved.example[0]) if saved.example[0].dim() else 1
        plan = read_plan(variant) or Plan(saved.engine, max_batch=compiled_for)
        return variant, replace(plan.changed(**changes), variant=open_artifact(variant).variant.id)
    if engine is None:
        raise UserError("missing", key="engine", fix="such as --engine ENGINE, one that the run measured")
    source = of_folder(variant, overrides, trust, None)
    assert source.folder is not None
    run = source.folder.parent.parent
    found = planned(run, source.variant.id, engine)
    if found is None:
        log.info("no deployment of %s on %s in %s: optkit cost chooses batches and replicas", variant, engine, run)
    plan = (found or Plan(engine)).changed(**changes)
    plan = replace(plan, variant=source.variant.id, name=plan.name or source.name)
    return save_model(source, plan, to), plan
