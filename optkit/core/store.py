"""The stage store: variants by id, so that a prefix that chains share is computed once, whatever run asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor, nn

from optkit.core.artifact import Artifact, open_artifact, save_artifact
from optkit.core.cache import new_folder
from optkit.core.errors import UserError
from optkit.core.variant import Variant


class StageStore:
    """Variants in folders named by their id; a folder appears whole or not at all.

    Args:
        root: the folder of the store.
    """

    def __init__(self, root: Path):
        self.root = root

    def find(self, variant_id: str) -> Artifact | None:
        """The variant with this id, or None."""
        folder = self.root / variant_id
        return open_artifact(folder) if folder.is_dir() else None

    def put(self, variant: Variant, module: nn.Module, example: tuple[Tensor, ...]) -> Artifact:
        """Saves a variant and drops what its stage kept for resuming."""
        with new_folder(self.root / variant.id, key="store") as folder:
            save_artifact(folder, variant, module, example)
        shutil.rmtree(self._partial(variant.id), ignore_errors=True)
        return open_artifact(self.root / variant.id)

    def workdir(self, variant_id: str) -> Path:
        """A folder for the stage that makes this variant; what it holds survives a kill."""
        folder = self._partial(variant_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.root}: {error.strerror}", key="store") from error
        return folder

    def _partial(self, variant_id: str) -> Path:
        return self.root / f"{variant_id}.partial"
