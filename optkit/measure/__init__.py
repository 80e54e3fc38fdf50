"""Measures cost and quality of variants, each figure with its conditions."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.measure.bench import Bench, reference_name
    from optkit.measure.cases import settings_of
    from optkit.measure.config import Measure, tasks_to_measure
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["Bench", "Measure", "reference_name", "settings_of", "tasks_to_measure"]
