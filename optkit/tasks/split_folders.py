"""Where the files of each split are: paths with ``{split}`` in them."""

from __future__ import annotations

from pathlib import Path

from optkit.core.errors import UserError
from optkit.tasks.split_names import ALIASES, one_name

SPLIT = "{split}"


def split_paths(folder: str, template: str, option: str) -> dict[str, Path]:
    """The file or folder of each split that is there; train and test must be.

    Args:
        folder: that the template is below.
        template: a path with ``{split}`` in it, which stands for ``train``, ``test``, and ``validation``, ``valid``,
            ``val`` or ``dev``.
        option: the config key that gave the template.

    Raises:
        UserError: no such folder, a template without ``{split}``, no train or test, or validation under two names.
    """
    check_folder(folder)
    if SPLIT not in template:
        raise UserError(f"'{template}' names no split", key=option, value=template, fix=f"as {SPLIT}/{option}")
    found = {}
    for split, names in ALIASES.items():
        paths = {name: Path(folder, template.replace(SPLIT, name)) for name in names}
        if name := one_name((name for name, path in paths.items() if path.exists()), split):
            found[split] = paths[name]
        elif split != "validation":
            message = f"{paths[split]} is not there"
            raise UserError(message, key=option, value=template, fix=f"give {split} data, or set task.{option}")
    return found


def check_folder(path: str) -> None:
    """Raises UserError unless a task's path is a folder."""
    if not path:
        raise UserError("missing", key="path", fix="set task.path=DIR")
    if not Path(path).is_dir():
        raise UserError(f"no folder {path}", key="path", value=path, fix="check the path")
