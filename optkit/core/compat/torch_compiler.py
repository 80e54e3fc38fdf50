"""TorchInductor and TorchDynamo: options, errors, and the kernels in a lowered graph. They take seconds to import."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import Tensor
from torch.fx import Graph, Node

from optkit.core.compat.versions import gone, private

T = TypeVar("T")
NO_FRAMES = "found no compiled frames"


def inductor_options(options: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Inside it, inductor compiles with these options (torch 2.14).

    The documented ``torch.compile(options=...)`` does not do for ``freezing``: dynamo asks for it before inductor runs.

    Raises:
        UserError: this inductor has no such option.
    """
    config = private("torch._inductor.config")
    if missing := [name for name in options if not hasattr(config, name)]:
        raise gone(f"torch._inductor.config.{missing[0]}")
    found: AbstractContextManager[Any] = config.patch(dict(options))
    return found


def graph_pass(function: Callable[[Graph], None]) -> Any:
    """The option ``post_grad_custom_post_pass`` that calls a function, for graphs that no cache has (torch 2.14)."""

    class Pass(private("torch._inductor.custom_graph_pass.CustomGraphPass")):  # type: ignore[misc]
        def __call__(self, graph: Graph) -> None:
            function(graph)

        def uuid(self) -> None:
            # inductor takes no graph from its cache then, which would not pass here
            return None

    return Pass()


def compiler_errors() -> tuple[type[Exception], ...]:
    """What ``torch.compile`` and ``torch.export`` raise besides RuntimeError (torch 2.14)."""
    return (private("torch._dynamo.exc.TorchDynamoException"),)


def is_lowered(target: object) -> bool:
    """Whether a node of inductor's graph calls a kernel that a pattern of inductor's has put there (torch 2.14)."""
    return hasattr(target, "_inductor_lowering_function")


def int8_kernel(node: Node) -> str | None:
    """``conv`` or ``linear`` for an int8 kernel of oneDNN in inductor's graph; None for any other node (torch 2.14).

    A pattern of inductor's calls a function that was made in ``_register_quantized_...``.
    """
    target = node.target
    name = target.func.__qualname__ if isinstance(target, functools.partial) else str(target)
    if "_register_quantized_" not in name and "onednn.qconv" not in name and "onednn.qlinear" not in name:
        return None
    if "prepack" in name:
        return None
    return "conv" if "conv" in name else "linear"


def compiled_call(compiled: Callable[..., T], *inputs: Tensor) -> T:
    """Calls what ``torch.compile(..., fullgraph=True)`` gave, again if a finalizer came between (torch 2.14).

    Dynamo looks at every frame that runs within the call. Where Python frees an object meanwhile, whose ``__del__`` is
    new to it, it may count no compiled frame, and raises though nothing is wrong with the graph.
    """
    try:
        return compiled(*inputs)
    except RuntimeError as error:
        if NO_FRAMES not in str(error):
            raise
        return compiled(*inputs)
