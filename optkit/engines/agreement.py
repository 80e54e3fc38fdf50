"""Whether an engine answers as the int8 graph that it compiled: checked after every compile, on real examples.

Integer kernels do not round exactly as the graph does in eager mode. In a deep model one step of difference can change
the answers as much as rounding itself does. So the yardstick is the rounding of the graph: the difference that rounding
its activations makes. A wrong kernel makes a much larger one: 30 dB more for a lost zero point.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.environment import cpu
from optkit.core.errors import StageError
from optkit.core.probe import probe_of
from optkit.core.structure import tensors
from optkit.engines.program import is_free

# an engine's error may have four times the power of rounding's, and what is this close agrees in any case; dB
ALLOWED, ENOUGH = 6.0, 45.0
LIMIT = 200.0
NOTHING = 1e-36  # power of what OpenVINO gives for a layer of zeros
Call = Callable[..., Any]


def check_agreement(engine: str, session: Call, module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, float]:
    """Compares a session with the int8 graph that it was compiled from, on the examples that are kept with the graph.

    Args:
        engine: its name.
        session: takes inputs of the shapes of ``example``.
        module: what was compiled.
        example: inputs that the session was compiled for.

    Returns:
        ``engine_sqnr_db``, the power of the graph's answers over that of the difference, in dB, and
        ``rounding_sqnr_db``, the same for the graph whose activations are not rounded. Nothing for a module that keeps
        no examples: one in float, or one from before they were kept.

    Raises:
        StageError: the engine errs in more than rounding.
    """
    probe = probe_of(module)
    if probe is None or not isinstance(module, GraphModule) or not _fits(probe, example):
        return {}
    found = _compare(session, module, probe, example, few=True)
    if any(agreement.parts for agreement in found) and len(example[0]) > len(probe[0]):
        # a model may mix the examples of a batch
        found = _compare(session, module, probe, example, few=False)
    if not found:
        return {}
    worst = min(found, key=lambda agreement: agreement.margin)
    if worst.parts:
        isa = " ".join(cpu()["isa"]) or "no vector instructions"
        where = f"output {found.index(worst)}: " if len(found) > 1 else ""
        raise StageError(
            f"{engine} does not compute this int8 graph: {where}its answers have {worst.engine:.1f} dB of signal to "
            f"noise, where rounding alone leaves {worst.rounding:.1f} dB; this processor has {isa}",
            key="target",
            value=engine,
            fix=_fix(),
        )
    return {"engine_sqnr_db": round(worst.engine, 2), "rounding_sqnr_db": round(worst.rounding, 2)}


@dataclass(frozen=True)
class Agreement:
    """How near one output comes to the graph's, in dB.

    Attributes:
        engine: what the engine gives.
        rounding: what the graph gives when no activation is rounded.
    """

    engine: float
    rounding: float

    @property
    def margin(self) -> float:
        """By how much the engine is nearer than it has to be."""
        return self.engine - min(self.rounding - ALLOWED, ENOUGH)

    @property
    def parts(self) -> bool:
        """Whether it errs in more than rounding."""
        return self.margin < 0


def batches(probe: tuple[Tensor, ...], example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The examples in batches of the example's shapes: repeated where they are too few or too short, or cut.

    Args:
        probe: inputs of some examples.
        example: inputs of the wanted shapes.
    """
    size = len(example[0])
    for start in range(0, len(probe[0]), size):
        yield tuple(_of_shape(x.roll(-start, 0), wanted) for x, wanted in zip(probe, example, strict=True))


def without_rounding(graph: GraphModule) -> GraphModule:
    """The graph with its int8 weights, but no activation rounded; it shares the weights."""
    ops = torch.ops.quantized_decomposed
    found = GraphModule(graph, copy.deepcopy(graph.graph))
    for node in list(found.graph.nodes):
        if node.target in (ops.dequantize_per_tensor.default, ops.dequantize_per_tensor.tensor):
            source = node.args[0]
            if source.target in (ops.quantize_per_tensor.default, ops.quantize_per_tensor.tensor):
                node.replace_all_uses_with(source.args[0])
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


def decibels(expected: Tensor, actual: Tensor) -> float:
    """Power of a tensor over that of another's difference from it, in dB, from -200 to 200."""
    expected, actual = expected.double(), actual.double()
    finite = expected.isfinite()
    if expected.shape != actual.shape or not torch.equal(finite, actual.isfinite()):
        return -LIMIT
    signal, noise = (float(x[finite].square().sum()) for x in (expected, actual - expected))
    if noise <= NOTHING:
        return LIMIT
    return max(-LIMIT, min(LIMIT, 10 * math.log10(signal / noise))) if signal else -LIMIT


def _compare(
    session: Call, graph: GraphModule, probe: tuple[Tensor, ...], example: tuple[Tensor, ...], *, few: bool
) -> list[Agreement]:
    """The agreement of each output.

    Args:
        session, graph, probe, example: as for `check_agreement`.
        few: run the graph on no more examples than the probe has, if it takes any number.
    """
    unrounded, size = without_rounding(graph), len(example[0])
    rows = min(size, len(probe[0])) if few and _takes_any_batch(graph) else size
    pairs: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    with torch.no_grad():
        for inputs in batches(probe, example):
            first = tuple(x[:rows] for x in inputs)
            ours = [x[:rows] if rows < size and len(x) == size else x for x in _answers(session, inputs)]
            pairs.append(list(zip(_answers(graph, first), ours, _answers(unrounded, first), strict=True)))
    found = []
    for calls in zip(*pairs, strict=True):
        expected, answers, plain = (torch.cat([x.flatten() for x in parts]) for parts in zip(*calls, strict=True))
        found.append(Agreement(decibels(expected, answers), decibels(expected, plain)))
    return found


def _takes_any_batch(graph: GraphModule) -> bool:
    inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    return all(isinstance(x, Tensor) and x.dim() and is_free(x.shape[0]) for x in inputs)


def _answers(call: Call, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors of floats that a call gives, in order; the inputs stay as they are, whatever it writes into."""
    found = tensors(call(*(x.clone() for x in inputs)))
    return [x.float() for x in found if x.is_floating_point() and x.dim()]


def _of_shape(x: Tensor, wanted: Tensor) -> Tensor:
    for dim, size in enumerate(wanted.shape):
        if size != x.shape[dim]:
            x = x.index_select(dim, torch.arange(size) % x.shape[dim])
    return x.contiguous()


def _fits(probe: tuple[Tensor, ...], example: tuple[Tensor, ...]) -> bool:
    kinds = [[(x.dim(), x.dtype) for x in inputs] for inputs in (probe, example)]
    return kinds[0] == kinds[1] and all(x.dim() and x.numel() for x in (*probe, *example))


def _fix() -> str:
    isa = set(cpu()["isa"])
    if "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni"}:
        return "reduce_range=true, for its kernels add products in 16 bits; or another target, or protect the layers"
    return "another target, or protect the layers"
