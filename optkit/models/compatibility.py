"""Whether a model and a task fit together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError, first_line


def answer_to(example: tuple[Tensor, ...], model: nn.Module, key: str) -> Any:
    """The output of a model for a task's examples.

    Args:
        example: the inputs.
        model: in eval mode, where they are.
        key: the config key of the model.

    Raises:
        UserError: the model does not take such inputs.
    """
    name = type(model).__name__
    try:
        with torch.no_grad():
            return model(*example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(list(x.shape)) for x in example)
        message = f"{name} does not take this task's inputs {shapes}: {first_line(error)}"
        raise UserError(message, key=key, fix=f"pick a {key} that fits the task") from error
