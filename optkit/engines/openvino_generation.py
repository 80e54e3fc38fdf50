"""OpenVINO sessions of generating models: the cache lies in blocks, or is the state of the compiled model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.environment import cpu
from optkit.core.errors import StageError, last_line
from optkit.core.generation import CachedSession, Generative
from optkit.core.structure import Value
from optkit.core.variant import Variant
from optkit.engines.deployed import Outputs
from optkit.engines.openvino import PRECISIONS, OpenVINO, OpenVINOSession
from optkit.engines.openvino_paged import paged_model
from optkit.engines.openvino_stateful import ORDER, stateful_model
from optkit.engines.openvino_weights import INTEGERS, compressed_products, executed_products

CACHE_PRECISIONS = {**PRECISIONS, "int8": "u8"}
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "u8": 1}
SPARE_BLOCKS = 4
FURTHER = {"position_ids", "past_lens", "max_context_len"}  # inputs that each step adds one to
SCALE_BYTES = 8  # a scale and a zero point for each token of each head, in float32, of an int8 cache


class OpenVINOGenerator(OpenVINOSession, CachedSession):
    """A language model compiled for all sizes, one request at a time."""

    def __post_init__(self) -> None:
        self.request = self.compiled.create_infer_request()
        self.ports = {name: put for put in self.compiled.inputs for name in put.get_names()}
        self.given: dict[str, NDArray[Any]] = {}  # what the request reads, and does not keep alive

    def __call__(self, *inputs: Tensor) -> Any:
        (tokens,) = inputs
        return self._all_logits(tokens)

    def _infer(self, named: dict[str, NDArray[Any]], shape: list[int]) -> Tensor:
        """Reads inputs by name, and gives logits of a shape."""
        import openvino as ov

        self.given = {name: np.asarray(x, order="C") for name, x in named.items() if name in self.ports}
        for name, array in self.given.items():
            self.request.set_tensor(self.ports[name], ov.Tensor(array, shared_memory=True))
        return self._infer_again(shape)

    def _infer_again(self, shape: list[int]) -> Tensor:
        """Gives the logits of the same arrays, whose numbers may have changed."""
        try:
            # asynchronous requests run on OpenVINO's own threads, which wait less beside torch's
            self.request.start_async()
            self.request.wait()
        except RuntimeError as error:
            message = f"OpenVINO cannot read these tokens, {list(self.given['input_ids'].shape)}: {last_line(error)}"
            raise StageError(message) from error
        # the next call writes this memory again
        return torch.from_numpy(np.array(self.request.get_output_tensor(0).data)).view(shape)


class PagedGenerator(OpenVINOGenerator):
    """Keys and values in blocks of tokens, of which each row has equally many; see `openvino_paged`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.caches = [_Cache(put) for put in _cache_inputs(self.compiled)]
        # keys of a cache in int8 have rows of scales besides
        self.block = next(cache.shape[1] for cache in self.caches if cache.of_values)
        self.lengths = np.zeros(0, np.int64)
        self.row_blocks = 0
        self.stepped = False  # whether the last call read a token of each row

    def _forget(self, rows: int) -> None:
        self.lengths = np.zeros(rows, np.int64)
        self.row_blocks = self.caches[0].blocks // rows
        self.stepped = False

    def step(self, tokens: Tensor) -> Tensor:
        if not (self.stepped and (self.lengths % self.block).all()):
            logits = super().step(tokens)
            self.stepped = True
            return logits
        # no row begins a block: everything but the tokens is as in the last step, and one further
        self.given["input_ids"][:] = tokens.numpy()
        for name in FURTHER & self.given.keys():
            self.given[name] += 1
        self.lengths += 1
        self.length += 1
        return self._infer_again([len(tokens), -1])

    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        rows, new = tokens.shape
        real = mask[:, -new:] > 0
        real[:, -1] = True  # a row without tokens reads its last padding
        counts = real.sum(1).numpy()
        begins = np.concatenate([[0], counts.cumsum()])
        totals = self.lengths + counts
        blocks = -(-totals // self.block)
        self._make_room(int(blocks.max()))
        own = [np.arange(n) + row * self.row_blocks for row, n in enumerate(blocks)]
        # in padded rows the tokens are on the right
        wanted = begins[:-1, None] + np.maximum(places.numpy() - (new - counts)[:, None], 0)
        named = {
            "input_ids": tokens[real].numpy(),
            "position_ids": positions[real].numpy(),
            "places": wanted.reshape(-1),
            "past_lens": self.lengths.astype(np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.concatenate(own).astype(np.int32),
            "block_indices_begins": np.concatenate([[0], blocks.cumsum()]).astype(np.int32),
            "max_context_len": np.array(totals.max(), np.int32),
        }
        logits = self._infer(named, [rows, len(places), -1])
        self.lengths = totals
        return logits

    def _make_room(self, blocks: int) -> None:
        """Gives each row so many blocks at least."""
        if blocks <= self.row_blocks:
            return
        rows, kept = len(self.lengths), self.row_blocks if self.lengths.any() else 0
        self.row_blocks = max(blocks + SPARE_BLOCKS, 2 * kept)
        for cache in self.caches:
            cache.grow(self.request, rows, kept, self.row_blocks)

    def _keep(self, length: int) -> None:
        self.lengths = np.maximum(length - self.padding.numpy(), 0)
        self.stepped = False

    @property
    def cache_bytes(self) -> int:
        return int(self.lengths.sum()) * sum(cache.block_bytes for cache in self.caches) // self.block


def _cache_inputs(compiled: Any) -> list[Any]:
    """The inputs of a model with paged attention that are keys and values; none of another model."""
    return [put for put in compiled.inputs if "_cache." in put.get_any_name()]


class _Cache:
    """The keys, or the values, of one layer.

    Attributes:
        shape: of a block: heads, rows, width.
        of_values: whether they are values; a row is a token then.
        blocks: that there is room for.
        block_bytes: of a block.
    """

    def __init__(self, put: Any):
        self.put, self.kind = put, put.get_element_type()
        self.shape = [size.get_length() for size in list(put.get_partial_shape())[1:]]
        self.of_values = put.get_any_name().startswith("value")
        self.block_bytes = int(np.prod(self.shape)) * self.kind.bitwidth // 8
        self.blocks = 0
        self.bytes = np.empty((0, self.block_bytes), np.uint8)

    def grow(self, request: Any, rows: int, kept: int, room: int) -> None:
        """Makes room for so many blocks of each row, of which the first ``kept`` stay."""
        import openvino as ov

        old, self.blocks = self.bytes, rows * room
        self.bytes = np.empty((self.blocks, self.block_bytes), np.uint8)
        if kept:
            parted = self.bytes.reshape(rows, room, -1)
            parted[:, :kept] = old[: rows * kept].reshape(rows, kept, -1)
        request.set_tensor(self.put, ov.Tensor(self.bytes, ov.Shape([self.blocks, *self.shape]), self.kind))


class StatefulGenerator(OpenVINOGenerator):
    """Keys and values as the state of the request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states = self.request.query_state()
        self.order = np.zeros(0, np.int32)

    def _forget(self, rows: int) -> None:
        self.request.reset_state()
        self.order = np.arange(rows, dtype=np.int32)

    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        named = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "places": places}
        given = {name: x.numpy() for name, x in named.items()} | {ORDER: self.order}
        return self._infer(given, [len(tokens), len(places), -1])

    def _keep(self, length: int) -> None:
        import openvino as ov

        for state in self.states:
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, :length]))

    @property
    def cache_bytes(self) -> int:
        kind = CACHE_PRECISIONS[self.engine_facts["cache_precision"]]
        held = [
            node.get_output_partial_shape(0) for node in self.model.get_ops() if node.get_type_name() == "ReadValue"
        ]
        tokens = len(self.order) * self.length
        return sum(
            tokens * x[1].get_length() * (x[3].get_length() * BYTES[kind] + (SCALE_BYTES if kind == "u8" else 0))
            for x in held
        )


def compile_generator(
    engine: OpenVINO, module: Generative, variant: Variant, example: tuple[Tensor, ...]
) -> OpenVINOGenerator:
    """A session of a language model with its cache in OpenVINO.

    Raises:
        StageError: the model cannot be exported or compiled, or its integer weights would be multiplied as floats.
    """
    started = time.perf_counter()
    model = stateful_model(module.cached(), getattr(module, "longest", None))
    return _session(engine, module, variant, example, model, started)


def open_generator(
    engine: OpenVINO, folder: Path, variant: Variant, example: tuple[Tensor, ...], model: Any
) -> OpenVINOGenerator:
    """The session of a model that was saved."""
    return _session(engine, folder, variant, example, model, time.perf_counter())


def _session(
    engine: OpenVINO, source: Any, variant: Variant, example: tuple[Tensor, ...], model: Any, started: float
) -> OpenVINOGenerator:
    paged = paged_model(model)
    compiled = _compiled(engine, paged or model)
    executed, wanted = executed_products(compiled), compressed_products(model)
    integer = sum(count for kind, count in executed.items() if kind in INTEGERS)
    if integer < wanted:
        message = f"OpenVINO multiplies by the integers of {integer} of {wanted} quantized linear layers alone"
        raise StageError(f"{message}; weights of the kernels that it executes: {executed}")
    group = engine.dynamic_quantization_group_size
    facts = {
        "int8_share": 0.0,
        "precision": engine.precision,
        "cache_precision": _cache_precision(engine, compiled),
        "attention": "paged" if paged else "stateful",
        "weight_precisions": executed,
        # OpenVINO rounds activations only where it multiplies by integers
        "activations": f"int8 in groups of {group}, rounded as they come" if group and integer else engine.precision,
    }
    structure = Value(torch.float32)
    kind = PagedGenerator if paged else StatefulGenerator
    session = kind(source, variant, engine, model, compiled, example, Outputs(structure), facts)
    session.engine_facts["compile_s"] = round(time.perf_counter() - started, 3)
    return session


def _compiled(engine: OpenVINO, model: Any) -> Any:
    threads = torch.get_num_threads()
    if threads == 1 and engine.precision != "fp32" and "amx_bf16" in cpu()["isa"]:
        message = f"OpenVINO 2026.4 ends the process where it compiles a language model in {engine.precision} for one "
        raise StageError(f"{message}thread of a processor with AMX", fix="two threads, or precision=fp32")
    options = {
        "KV_CACHE_PRECISION": CACHE_PRECISIONS[engine.cache_precision or engine.precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": engine.dynamic_quantization_group_size,
    }
    return engine.compile_model(model, None, threads, options)


def _cache_precision(engine: OpenVINO, compiled: Any) -> str:
    """How the cache is kept: as was asked for where attention is fused with it, else as it is computed."""
    kept = {put.get_element_type().get_type_name() for put in _cache_inputs(compiled)}
    if kept:
        return next(name for name, kind in CACHE_PRECISIONS.items() if kind in kept)
    kinds = {str(node.get_rt_info()["layerType"].astype(str)) for node in compiled.get_runtime_model().get_ops()}
    if "ScaledDotProductAttention" not in kinds:
        return engine.precision
    found = compiled.get_property("KV_CACHE_PRECISION").get_type_name()
    return next(name for name, kind in CACHE_PRECISIONS.items() if kind == found)
