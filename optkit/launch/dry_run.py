"""`dry_run`: what a command would make, composed and planned as in a run, and nothing made."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from optkit.launch.start import launch
from optkit.recipe.compose import to_recipe
from optkit.sweep.preview import Preview


def dry_run(recipe: str, arguments: Sequence[str]) -> Preview:
    """Plans a run, or all jobs of a sweep. It reads the data, and writes to no folder of runs.

    Args:
        recipe: a file or a bundled name.
        arguments: overrides and Hydra flags, as for a run.

    Raises:
        OptkitError: a mistake in a single run, or in what all jobs share; a mistake in one job stands in the result.
    """
    preview = Preview()
    from optkit.core.source_digest import unchanging_code

    def job(cfg: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        preview.add(overrides, lambda: to_recipe(cfg, preview.tasks))

    with unchanging_code():
        launch(recipe, arguments, job, dry_run=True)
    return preview
