"""The CUDA engine: one GPU, the kernels of a call recorded once and replayed; 2:4 kernels where they are faster."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optkit.core.checks import check_choice
from optkit.core.compat.torch_modules import has_forward_hooks
from optkit.core.compat.torch_operators import private_aten
from optkit.core.engine import Engine, Served
from optkit.core.errors import StageError, first_line
from optkit.core.generation import Generative
from optkit.core.layout import channels_last_
from optkit.core.macs import count_macs
from optkit.core.structure import Container, Structure, Value, flatten, tensors
from optkit.core.variant import Variant
from optkit.engines.batches import OtherBatches
from optkit.engines.deployed import Outputs, same_shapes
from optkit.engines.program import export_failures
from optkit.engines.saved import Saved, save_session

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SPARSE_KERNELS = ("fastest", "always", "never")
AMPERE = (8, 0)
# what the 2:4 kernels ask of a weight in half precision, and what the number of their input's rows is a multiple of
ROWS, COLUMNS = 32, 64
ROW_TILE = 8
WARM_UP = 3
# the ways to compute a linear layer: sparse kernels write the rows of the output, or its columns and a copy turns them
DENSE, BY_ROWS, BY_COLUMNS = "dense", "rows", "columns"
TIMED_CALLS, TIMED_REPLAYS = 10, 7
# cuSPARSELt: packs a 2:4 weight, and multiplies it with columns
COMPRESS, MULTIPLY = private_aten("_cslt_compress.default"), private_aten("_cslt_sparse_mm.default")


@dataclass
class CUDA(Engine):
    """PyTorch on an NVIDIA GPU, in half precision, its kernels replayed as one CUDA graph.

    A call takes and gives tensors in the host's memory: its time holds both copies, as a request's would.

    Attributes:
        precision: of weights and activations, ``fp16``, ``bf16`` or ``fp32``.
        sparse_kernels: let the linear layers whose weights are in the 2:4 pattern (``prune/pattern``) run in the sparse
            tensor cores where that is faster than dense, which is timed for every shape; GPUs have them since Ampere,
            for half precision only. ``always`` runs them there even where it is slower, ``never`` runs all dense.
    """

    precision: str = "fp16"
    sparse_kernels: str = "fastest"

    name: ClassVar[str] = "cuda"
    device: ClassVar[str] = "cuda"
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    channels_last: ClassVar[bool] = True
    fills_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, self.precisions)
        check_choice("sparse_kernels", self.sparse_kernels, SPARSE_KERNELS)

    def unavailable(self) -> str | None:
        if torch.version.cuda is None:
            return "this torch is built without CUDA (install one that is built with it)"
        return None if torch.cuda.is_available() else "no CUDA device found"

    def unsupported(self, traits: frozenset[str]) -> str | None:
        if "int8" in traits:
            return "cuda would compute the quantized graph in floats: a simulation of int8"
        return super().unsupported(traits)

    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> CUDASession:
        """Copies the module to the GPU and records a call with inputs of the example's shapes.

        Raises:
            StageError: the module does not run there, or does what cannot be recorded, such as to ask for a value; or
                it generates text, for which this engine has no cache.
        """
        if isinstance(module, Generative):
            raise StageError("cuda does not generate text", fix="eager, inductor, openvino or onnxruntime do")
        started = time.perf_counter()
        with torch.inference_mode():
            try:
                model = copy.deepcopy(module).to("cuda", PRECISIONS[self.precision]).eval()
                channels_last_(model)
                inputs = tuple(x.to("cuda", copy=True) for x in example)
                macs = count_macs(model, self._cast(inputs))
                called = _linear_macs(model, self._cast(inputs))
                could = {layer: call for layer, call in called.items() if call.macs and _could_run_sparse(layer)}
                sparse = self._sparse_layers({layer: call.rows for layer, call in could.items()})
                model = _replace(model, sparse)
                returned = flatten(model(*self._cast(inputs)))[1]
                graph, output = _record(lambda: tensors(model(*self._cast(inputs))))
            except export_failures() as error:
                raise StageError(f"cuda cannot run this model: {first_line(error)}") from error
        facts = {
            "int8_share": 0.0,
            "sparse_share": sum(could[layer].macs for layer in sparse) / max(macs, 1),
            "sparse_layers": len(sparse),
            "pattern_share": sum(call.macs for call in could.values()) / max(macs, 1),
            "precision": self.precision,
            "device": torch.cuda.get_device_name(),
            "compile_s": round(time.perf_counter() - started, 3),
        }
        own = next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.float32)
        outputs = Outputs(_in_dtype(returned, PRECISIONS[self.precision], own))
        return CUDASession(module, variant, self, model, graph, inputs, output, outputs, facts)

    def _cast(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Numbers in the engine's precision, images in the layout of its convolutions; whole numbers as they are."""
        found = (x.to(PRECISIONS[self.precision]) if x.is_floating_point() else x for x in inputs)
        return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in found)

    def _sparse_layers(self, rows: Mapping[nn.Linear, int]) -> dict[nn.Linear, _SparseLinear]:
        """What replaces the layers that are to run in sparse kernels, of those that could, called with so many rows."""
        if self.sparse_kernels == "never" or self.precision == "fp32" or not _has_sparse_kernels():
            return {}
        found: dict[nn.Linear, _SparseLinear] = {}
        packed: dict[Tensor, Tensor] = {}
        timed: dict[tuple[Any, ...], dict[str, float]] = {}
        for layer, count in rows.items():
            shape = (layer.weight.shape, count, layer.bias is None)
            if shape not in timed:
                timed[shape] = time_linear(layer.weight, layer.bias, count)
            ways = {way: t for way, t in timed[shape].items() if way != DENSE or self.sparse_kernels == "fastest"}
            fastest = min(ways, key=ways.__getitem__)
            if fastest == DENSE:
                continue
            if layer.weight not in packed:
                packed[layer.weight] = _pack(layer.weight)
            found[layer] = _SparseLinear(packed[layer.weight], layer.bias, layer.out_features, fastest)
        return found


class _SparseLinear(nn.Module):
    """A linear layer in 2:4 kernels.

    torch's own tensors for these (``SparseSemiStructuredTensor``) are wrong for inputs such as ``x[:, 0]``: its kernels
    take any dense operand that is not contiguous for the transpose of one that is.

    Args:
        weight: as ``_pack`` gives it.
        bias: of the layer.
        out_features: of the layer.
        way: ``BY_ROWS`` or ``BY_COLUMNS``.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, out_features: int, way: str):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.out_features = out_features
        self.by_rows = way == BY_ROWS

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if spare := -count % ROW_TILE:
            rows = F.pad(rows, (0, 0, 0, spare))
        columns = rows.contiguous().t()
        out = MULTIPLY(self.weight, columns, self.bias, transpose_result=self.by_rows)
        out = out if self.by_rows else out.t()
        return out[:count].contiguous().view(*x.shape[:-1], self.out_features)


def _has_sparse_kernels() -> bool:
    return torch.cuda.get_device_capability() >= AMPERE and torch.backends.cusparselt.is_available()


def _pack(weight: Tensor) -> Tensor:
    """The weights that are not zero and where they were, as the 2:4 kernels read them."""
    return COMPRESS(weight.detach().contiguous())


def _could_run_sparse(layer: nn.Linear) -> bool:
    """Whether a module of another class can replace the layer: one that does more than a linear layer stays."""
    plain = type(layer) is nn.Linear and not has_forward_hooks(layer)
    return plain and takes_sparse_kernels(layer.weight)


def takes_sparse_kernels(weight: Tensor) -> bool:
    """Whether a linear layer's weight ``(out, in)`` is in the 2:4 pattern and of a size that its kernels take.

    The kernels would silently drop what is not in the pattern.
    """
    if weight.dim() != 2 or weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return False
    return bool((weight.detach().unflatten(1, (-1, 4)) != 0).sum(-1).le(2).all())


@torch.inference_mode()
def time_linear(weight: Tensor, bias: Tensor | None, rows: int) -> dict[str, float]:
    """Milliseconds of a linear layer with a 2:4 weight on the GPU, for inputs of so many rows, by way to compute it.

    Each way is a recorded graph of several calls; the graphs are replayed in turn, and the median counts. The weights
    are in the cache where they fit.
    """
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device, generator=generator)
    packed = _pack(weight)
    calls: dict[str, Callable[[Tensor], Tensor]] = {DENSE: lambda x: F.linear(x, weight, bias)}
    calls |= {way: _SparseLinear(packed, bias, len(weight), way) for way in (BY_ROWS, BY_COLUMNS)}

    def repeat(call: Callable[[Tensor], Tensor]) -> None:
        for _ in range(TIMED_CALLS):
            call(x)

    times = time_graphs({way: _record(partial(repeat, call))[0] for way, call in calls.items()}, TIMED_REPLAYS)
    return {way: ms / TIMED_CALLS for way, ms in times.items()}


def time_graphs(graphs: Mapping[str, torch.cuda.CUDAGraph], replays: int) -> dict[str, float]:
    """Milliseconds of recorded graphs by the GPU's clock: medians over so many replays of each, in turn."""
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(replays):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end))
    return {name: float(np.median(times)) for name, times in found.items()}


@dataclass
class _Called:
    """A linear layer in a call of the model: multiply-accumulates of all its calls, and the most rows of one."""

    macs: int = 0
    rows: int = 0


def _linear_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[nn.Linear, _Called]:
    """The linear layers that a call calls, and how much they compute.

    Attention of torch takes the weight of its last layer without calling it.
    """
    found: dict[nn.Linear, _Called] = {}

    def count(layer: Any, _: Any, out: Tensor) -> None:
        call = found.setdefault(layer, _Called())
        call.macs += out.numel() * layer.in_features
        call.rows = max(call.rows, out.numel() // layer.out_features)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _replace(model: nn.Module, by: Mapping[nn.Linear, nn.Module]) -> nn.Module:
    """The model with layers replaced wherever they are held, in place unless it is such a layer itself."""
    holder = nn.ModuleList([model])
    for path, child in list(holder.named_modules(remove_duplicate=False)):
        if isinstance(child, nn.Linear) and child in by:
            holder.set_submodule(path, by[child])
    return holder[0]


def _record(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The kernels of a call as a graph, and where it writes what the call gave."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph, output


def _in_dtype(structure: Structure, computed: torch.dtype, returned: torch.dtype) -> Structure:
    """The structure as the module returns it, which the engine computes in a precision of its own."""
    if isinstance(structure, Value):
        return Value(returned, structure.number) if structure.dtype is computed else structure
    if isinstance(structure, Container):
        members = tuple(_in_dtype(member, computed, returned) for member in structure.members)
        return Container(structure.kind, structure.names, members)
    return structure


@dataclass
class CUDASession(Served):
    """A call recorded for one batch size; other sizes are filled up with repeats, or computed in parts."""

    module: nn.Module
    variant: Variant
    engine: CUDA
    model: nn.Module
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: list[Tensor]
    outputs: Outputs
    engine_facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.others = OtherBatches(self._eagerly, self.inputs, int8=False)

    def __call__(self, *inputs: Tensor) -> Any:
        if same_shapes(inputs, self.inputs):
            return self.outputs.of_tensors(self._run(*inputs))
        return self.outputs.of_tensors(self.others(self._run, inputs))

    def _run(self, *inputs: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            for held, given in zip(self.inputs, inputs, strict=True):
                held.copy_(given, non_blocking=True)
            self.graph.replay()
            # the copies wait for the graph
            return [x.cpu() for x in self.output]

    def _eagerly(self, *inputs: Tensor) -> Any:
        with torch.inference_mode():
            return self.model(*self.engine._cast(tuple(x.to("cuda") for x in inputs)))

    def facts(self) -> dict[str, Any]:
        return dict(self.engine_facts)

    def save(self, directory: str | Path) -> None:
        saved = Saved.of(self.engine, self.inputs, self.facts())
        save_session(directory, self.variant, self.module, saved)
