"""What each layer of a calibrated graph takes on the engine of its target, in int8 and in float: timed alone, once."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from optkit.core.cache import cache_dir, read_json, write_json
from optkit.core.engine import MADE_FOR, Engine, made_for
from optkit.core.errors import StageError, UserError, first_line
from optkit.core.locks import exclusive
from optkit.core.progress import track
from optkit.core.source_digest import code_of_module
from optkit.core.statistics import median, ratio_of_medians
from optkit.core.threads import use_threads
from optkit.core.turns import timing_turn
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.measure.alone import PASSES, Timed, machine_key, time_session
from optkit.measure.latency import interleaved
from optkit.quantize.graph.conversion import activation_nodes, convert
from optkit.quantize.graph.layers import int8_layers, without_observers
from optkit.quantize.graph.targets import find_target
from optkit.quantize.mixed_precision import LayerTime
from optkit.quantize.static import Calibrated

FLOAT = frozenset({"float"})
SECONDS = 3.0  # of timing an int8 graph and the float model in turn
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A layer with what follows it up to the next: what a compiling engine fuses.

    Attributes:
        path: of the layer.
        module: of operators alone, for the inputs.
        inputs: of the example; integers where the part reads such.
        signature: JSON that is equal for parts that take the same time.
    """

    path: str
    module: GraphModule
    inputs: tuple[Tensor, ...]
    signature: str


def engine_of(target: str) -> Engine:
    """The engine whose kernels a target is for.

    Raises:
        UserError: it does not work here.
    """
    engine = ENGINES.find(find_target(target).engine, "target")()
    if reason := engine.unavailable():
        raise UserError(f"{engine.name} does not work here: {reason}", key="target", value=target)
    return engine


def time_layers(calibrated: Calibrated, example: tuple[Tensor, ...], threads: int) -> dict[str, LayerTime]:
    """The times of all layers that can be int8, by path, in the order of the graph.

    Each layer is cut out of the int8 graph and of the float graph together with what follows it, so it reads and writes
    what its neighbours do. What converts between an int8 layer and a float one is left out. Equal layers are timed
    once; times are kept in the cache of this machine.

    Args:
        calibrated: with the ranges of one scheme, from `Calibrated.choose`.
        example: inputs, whose batch size is the one that counts.
        threads: of torch.

    Raises:
        UserError: the target's engine does not work here.
    """
    engine = engine_of(calibrated.target).for_trials()
    pairs = list(zip(parts_in_int8(calibrated, example), parts_in_float(calibrated, example), strict=True))
    times: dict[str, float] = {}
    with use_threads(threads):
        where = machine_key(engine, threads) | {"parts": code_of_module(__name__)}
        different = {part.signature: part for pair in pairs for part in pair}
        with exclusive(_file(where, "").with_suffix(".lock"), f"timing layers on {engine.name}"):
            for signature in different:
                if (ms := _kept(_file(where, signature))) is not None:
                    times[signature] = ms
            new = {signature: part for signature, part in different.items() if signature not in times}
            times |= _timed(engine, calibrated.target, new)
            for signature in new:
                kept = {"ms": times[signature], "where": where, "signature": signature}
                write_json(_file(where, signature), kept, "OPTKIT_CACHE")
    found: dict[str, LayerTime] = {}
    for in_int8, in_float in pairs:  # a layer may be called several times
        before = found.get(in_int8.path, LayerTime(0.0, 0.0))
        ours, theirs = times[in_int8.signature], times[in_float.signature]
        found[in_int8.path] = LayerTime(before.int8 + ours, before.float + theirs)
    return found


class AgainstFloat:
    """Times int8 graphs of a model against the model itself, on the engine of their target.

    Args:
        model: in float.
        example: inputs, whose batch size is the one that counts.
        target: of the graphs.
        threads: of torch.
        seed: of the order in which both take their turns.

    Raises:
        UserError: the target's engine does not work here.
    """

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...], target: str, threads: int, seed: int):
        self._engine, self._example, self._target = engine_of(target), example, target
        self._threads, self._seed = threads, seed
        with use_threads(threads):
            self._float = self._engine.compile(model, Variant("float", None, FLOAT, {}), example)

    def float_ms(self) -> float:
        """The float model's latency."""
        with use_threads(self._threads):
            return median(
                interleaved({"float": self._float}, self._example, SECONDS, self._seed)["float"].samples
            ).value

    def __call__(self, graph: GraphModule) -> float:
        """Latency of a graph over that of the float model."""
        with use_threads(self._threads):
            ours = self._engine.compile(graph, Variant("int8", None, made_for(self._target), {}), self._example)
            series = interleaved({"float": self._float, "int8": ours}, self._example, SECONDS, self._seed)
        return ratio_of_medians(series["int8"].samples, series["float"].samples).value

    def facts(self) -> dict[str, Any]:
        """Where it is timed."""
        return {"engine": self._engine.name, "threads": self._threads, "batch_size": len(self._example[0])}


def parts_in_int8(calibrated: Calibrated, example: tuple[Tensor, ...]) -> list[Part]:
    """The layers of the int8 graph, in its order, each by itself."""
    names = {layer.node.name: layer.path for layer in int8_layers(calibrated.graph)}
    return _parts(convert(copy.deepcopy(calibrated.graph), calibrated.target), names, example)


def parts_in_float(calibrated: Calibrated, example: tuple[Tensor, ...]) -> list[Part]:
    """The same layers of the float graph."""
    names = {layer.node.name: layer.path for layer in int8_layers(calibrated.graph)}
    return _parts(without_observers(calibrated.graph), names, example)


def _parts(graph: GraphModule, names: Mapping[str, str], example: tuple[Tensor, ...]) -> list[Part]:
    """A graph cut at some of its nodes, whose names stand for paths."""
    members: dict[Node, list[Node]] = {}  # by the layer they begin with
    owner: dict[Node, int] = {}
    order: list[Node] = []
    for node in graph.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if node.name in names:
            order.append(node)
            owner[node] = len(order)
        else:
            owner[node] = max((owner.get(read, 0) for read in node.all_input_nodes), default=0)
    for node in reversed(list(owner)):  # what dequantizes goes with what reads it: the integers are what passes
        if "dequantize" in str(node.target) and node.users:
            owner[node] = max(owner.get(user, 0) for user in node.users)
    for node, number in owner.items():
        if number:
            members.setdefault(order[number - 1], []).append(node)
    wanted = {read for nodes in members.values() for node in nodes for read in node.all_input_nodes}
    values = _Values(graph, wanted)
    with torch.no_grad():
        values.run(*example)
    return [_part(graph, names[layer.name], members[layer], values.found) for layer in order]


class _Values(Interpreter):
    """Runs a graph, and keeps what some of its nodes give."""

    def __init__(self, graph: GraphModule, wanted: Iterable[Node]):
        super().__init__(graph)
        self.wanted, self.found = set(wanted), dict[Node, Any]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.found[n] = value
        return value


def _part(graph: GraphModule, path: str, nodes: list[Node], values: Mapping[Node, Any]) -> Part:
    cut, inside = Graph(), set(nodes)
    constants: dict[str, Any] = {}
    new: dict[Node, Node] = {}
    inputs: list[Tensor] = []

    def read(node: Node) -> Any:
        if node not in new:
            value = values[node]
            if not isinstance(value, Tensor):
                return value  # a size of the example
            if node.op == "get_attr":
                name = f"constant_{len(constants)}"
                constants[name] = value
                new[node] = cut.get_attr(name)
            else:
                new[node] = cut.placeholder(f"input_{len(inputs)}")
                inputs.append(value)
        return new[node]

    for node in nodes:
        new[node] = cut.node_copy(node, read)
    given = [new[node] for node in nodes if any(user not in inside for user in node.users)]
    cut.output(tuple(given))
    module = GraphModule(constants, cut)
    module.meta = {key: value for key, value in graph.meta.items() if key == MADE_FOR}
    return Part(path, module, tuple(inputs), _signature(module, inputs))


def _signature(module: GraphModule, inputs: list[Tensor]) -> str:
    """Operators, what they read, and the shapes; of scales and zero points only whether the latter are 0."""
    numbers = {node: f"%{number}" for number, node in enumerate(module.graph.nodes)}
    rounding = set(activation_nodes(module))

    def text(argument: Any) -> str:
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(map(text, argument))}]"
        return numbers[argument] if isinstance(argument, Node) else str(argument)

    lines = []
    for node in module.graph.nodes:
        args = list(node.args)
        if node in rounding:
            args[1:3] = ["scale", args[2] == 0]
        constant = getattr(module, str(node.target)) if node.op == "get_attr" else None
        what = str(node.target) if constant is None else [list(constant.shape), str(constant.dtype)]
        lines.append([node.op, what, text(args), text(sorted(node.kwargs.items()))])
    shapes = [[list(x.shape), str(x.dtype), list(x.stride())] for x in inputs]
    return json.dumps([lines, shapes])


def _timed(engine: Engine, target: str, parts: Mapping[str, Part]) -> dict[str, float]:
    """ms of each part less what calling costs: compiled first, then timed in passes, so a disturbance hits few."""
    if not parts:
        return {}
    calling = _calling(engine)
    sessions = {
        signature: _session(engine, target, part)
        for signature, part in track(parts.items(), f"compiling layers for {engine.name}", len(parts))
    }
    with timing_turn(f"timing layers on {engine.name}"):
        for _ in range(PASSES):
            for timed in (calling, *sessions.values()):
                timed.ms = min(timed.ms, time_session(timed.session, timed.inputs))
    return {signature: max(timed.ms - calling.ms, 0.0) for signature, timed in sessions.items()}


def _session(engine: Engine, target: str, part: Part) -> Timed:
    traits = made_for(target) if part.module.meta.get(MADE_FOR) else FLOAT
    try:
        session = engine.compile(part.module, Variant("layer", None, traits, {}), part.inputs)
    except StageError as error:
        if traits == FLOAT:
            raise
        log.info("%s: %s: timed as %s runs it", part.path, first_line(error), engine.name)
        session = engine.compile(part.module, Variant("layer", None, FLOAT, {}), part.inputs)
    return Timed(session, part.inputs)


def _calling(engine: Engine) -> Timed:
    """What calling any part costs: one that does next to nothing."""
    graph = Graph()
    graph.output((graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),)),))
    inputs = (torch.rand(1, 8),)
    module = GraphModule({}, graph)
    return Timed(engine.compile(module, Variant("nothing", None, FLOAT, {}), inputs), inputs)


def _file(where: Mapping[str, Any], signature: str) -> Path:
    key = json.dumps(where, sort_keys=True) + signature
    return cache_dir() / "latency" / f"layer-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _kept(file: Path) -> float | None:
    """The ms that are in the cache."""
    found = read_json(file)
    ms = found.get("ms") if isinstance(found, dict) else None
    return float(ms) if isinstance(ms, (int, float)) and math.isfinite(ms) and ms >= 0 else None
