"""Whether what was quantized runs in int8: asked of the engine, once, before a stage is called done."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule

from optkit.core.engine import made_for
from optkit.core.errors import StageError
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.quantize.graph.float_layers import left_in_float, name_some
from optkit.quantize.graph.targets import find_target


def prove_int8(graph: GraphModule, example: tuple[Tensor, ...], target: str, least: float) -> float:
    """The share of MACs that an engine executes in int8 kernels.

    Args:
        graph: an int8 graph that is annotated for the engine.
        example: inputs to compile for.
        target: what the graph is annotated for.
        least: the share that it must reach.

    Raises:
        StageError: it does not; the message names the layers that are in float.
    """
    variant = Variant("proof", None, made_for(target), {})
    engine = find_target(target).engine
    share = float(ENGINES[engine]().compile(graph, variant, example).facts()["int8_share"])
    if share >= least:
        return share
    left = left_in_float(graph)
    named = name_some(left)
    reason = f"in float: {named}" if left else f"its layers are annotated, but {engine} runs some of them in float"
    fix = f"lower min_int8_share to {share:.3f}, or give another target"
    message = f"{share:.1%} of the MACs run in int8 on {engine}, {least:.1%} are asked for; {reason}"
    raise StageError(message, key="min_int8_share", value=least, fix=fix)
