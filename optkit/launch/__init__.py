"""Starting recipes through Hydra: one, or a sweep of them on any launcher."""

from optkit.launch.start import launch

__all__ = ["launch"]
