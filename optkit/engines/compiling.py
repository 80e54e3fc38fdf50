"""Any model on any engine, with no recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.checks import check_count
from optkit.core.engine import Engine, Session, check_eval, traits_of
from optkit.core.errors import UserError
from optkit.core.loaders import as_example
from optkit.core.variant import Variant
from optkit.engines.program import module_of
from optkit.engines.registry import ENGINES


def compile(  # noqa: A001
    model: Any,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    engine: str | Engine = "inductor",
    threads: int | None = None,
) -> Session:
    """Compiles a model for an engine and the shapes of its example inputs.

    The session returns what the model returns, and takes other batch sizes, too: the examples' is the fastest. ONNX
    Runtime takes them as they come; OpenVINO compiles once more, at the first of them, for all; ``inductor`` and
    ``cuda`` fill a batch up or compute it in parts, once they have seen that the model's answers stay the same.

    Args:
        model: a model in eval mode, or what `quantize_static`, `quantize_weight_only`, `prune_structured` and the like
            return; a `Quantized` must be annotated for this engine, which must have kernels for weights of few bits.
        example_inputs: inputs as it will be called with, a tensor or a tuple of tensors.
        engine: a name of ``optkit.engines.ENGINES``, such as ``openvino``, or an engine with its options, such as
            ``OpenVINO(precision="bf16")``.
        threads: of the session; None takes torch's number. If the engine runs on torch's own threads (``eager``,
            ``inductor``), torch's number is set.

    Raises:
        UserError: no such engine, one that does not work here, or one without kernels for this model.
        StageError: the engine cannot compile the model; the message names the operator. Or it runs nothing of an int8
            model in int8.
    """
    if isinstance(engine, str):
        engine = ENGINES.find(engine, "engine")()
    example_inputs = as_example(example_inputs)
    module, variant = as_variant(model)
    check_eval(module)
    if reason := engine.unavailable() or engine.unsupported(variant.traits):
        raise UserError(reason, key="engine", value=engine.name)
    left_with = torch.get_num_threads()
    if threads is not None:
        check_count("threads", threads)
        torch.set_num_threads(threads)
    try:
        session = engine.compile(module, variant, example_inputs)
        if engine.shares_torch_threads:
            left_with = torch.get_num_threads()
    finally:
        torch.set_num_threads(left_with)
    return session


def as_variant(model: Any) -> tuple[nn.Module, Variant]:
    """The module of what `compile` takes, and a variant with the traits that engines ask for.

    Raises:
        UserError: it holds no module.
    """
    module = module_of(model)
    return module, Variant("model", None, traits_of(module), {})
