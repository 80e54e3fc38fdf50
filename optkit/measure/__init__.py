"""Measures cost and quality of variants, each figure with its conditions."""

from optkit.measure.bench import Bench, Measure, reference_name, tasks_to_measure

__all__ = ["Bench", "Measure", "reference_name", "tasks_to_measure"]
