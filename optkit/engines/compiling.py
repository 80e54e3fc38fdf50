"""Any model on any engine, with no recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optkit.core.checks import check_count
from optkit.core.engine import MADE_FOR, Engine, Session, made_for
from optkit.core.errors import UserError, did_you_mean
from optkit.core.variant import Variant
from optkit.engines.registry import ENGINES


def compile(  # noqa: A001
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    engine: str | Engine = "inductor",
    threads: int | None = None,
) -> Session:
    """Compiles a model for an engine and the shapes of its example inputs.

    Args:
        model: a float model in eval mode, or the module of a `Quantized` that is annotated for this engine.
        example_inputs: inputs as it will be called with.
        engine: a name (``eager``, ``inductor``, ``onnxruntime``, ``openvino``, ``cuda``) or an engine with its options,
            such as ``OpenVINO(precision="bf16")``.
        threads: of the session; None takes torch's number. ``eager`` and ``inductor`` run on torch's own threads, whose
            number is set.

    Raises:
        UserError: no such engine, one that does not work here, or one without kernels for this model.
        StageError: the engine cannot compile the model; the message names the operator.
    """
    if isinstance(engine, str):
        if engine not in ENGINES:
            raise UserError(f"no engine '{engine}'", key="engine", value=engine, fix=did_you_mean(engine, ENGINES))
        engine = ENGINES[engine]()
    target = getattr(model, "meta", {}).get(MADE_FOR)
    traits = made_for(target) if target else frozenset({"float"})
    if reason := engine.unavailable() or engine.unsupported(traits):
        raise UserError(reason, key="engine", value=engine.name)
    left_with = torch.get_num_threads()
    if threads is not None:
        check_count("threads", threads)
        torch.set_num_threads(threads)
    try:
        session = engine.compile(model, Variant("model", None, traits, {}), example_inputs)
        if engine.name in ("eager", "inductor"):
            left_with = torch.get_num_threads()
    finally:
        torch.set_num_threads(left_with)
    return session
