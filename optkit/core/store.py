"""The stage store: variants by id, so that a prefix that chains share is computed once, whatever run asks for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from optkit.core.artifact import Artifact, open_artifact, save_artifact
from optkit.core.cache import clear_unfinished, new_folder
from optkit.core.errors import OptkitError, cannot_write, is_disk_full
from optkit.core.locks import exclusive
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

    @contextmanager
    def making(self, variant_id: str, doing: str) -> Iterator[None]:
        """Holds the lock of a variant: one process makes it, and others wait and then find it.

        What a killed owner left half-written goes first; what its stage kept for resuming stays. It goes too when the
        stage itself says that it cannot work, because going on from there would fail again.
        """
        with exclusive(self.root / ".locks" / variant_id, doing):
            clear_unfinished(self.root / variant_id)
            try:
                yield
            except OptkitError as error:
                if not (is_disk_full(error) or isinstance(error.__cause__, OSError)):
                    shutil.rmtree(self._partial(variant_id), ignore_errors=True)
                raise
            finally:
                _remove_if_empty(self._partial(variant_id))

    def put(
        self,
        variant: Variant,
        module: nn.Module,
        example: tuple[Tensor, ...],
        check: Callable[[Artifact], None] = lambda artifact: None,
    ) -> Artifact:
        """Saves a variant and drops what its stage kept for resuming.

        Args:
            variant: its description.
            module: its module.
            example: inputs of any batch size.
            check: sees the saved variant before anybody else does; if it raises, nothing is kept.
        """
        with new_folder(self.root / variant.id, key="store") as folder:
            check(save_artifact(folder, variant, module, example))
        shutil.rmtree(self._partial(variant.id), ignore_errors=True)
        return open_artifact(self.root / variant.id)

    def workdir(self, variant_id: str) -> Path:
        """A folder for the stage that makes this variant; what it holds survives a kill."""
        folder = self._partial(variant_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error, "store") from error
        return folder

    def _partial(self, variant_id: str) -> Path:
        return self.root / f"{variant_id}.partial"


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # holds something, or is not there
        return
