"""From a model to channel labels: its operators are recorded, then propagated by rules."""
