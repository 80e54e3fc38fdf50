"""Methods that bring accuracy back without training."""
