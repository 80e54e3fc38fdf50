"""Whether a model and a task fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError, first_line


def answer_to(
    example: tuple[Tensor, ...], model: nn.Module, key: str, run: Callable[[nn.Module], Any] | None = None
) -> Any:
    """The output of a model for a task's examples.

    Args:
        example: the inputs.
        model: in eval mode, where they are.
        key: the config key of the model.
        run: runs the model on them; None calls it with them.

    Raises:
        UserError: the model does not take such inputs.
    """
    name = type(model).__name__
    try:
        with torch.no_grad():
            return model(*example) if run is None else run(model)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(list(x.shape)) for x in example)
        message = f"{name} does not take this task's inputs {shapes}: {first_line(error)}"
        raise UserError(message, key=key, fix=f"pick a {key} that fits the task") from error
