"""What a variant costs and how well it does, each figure with its conditions."""

from optkit.measure.bench import Bench, Measure

__all__ = ["Bench", "Measure"]
