"""The model's own file for each engine, with named inputs and outputs and what it needs to know in its metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, did_you_mean
from optkit.core.generation import Generative
from optkit.deploy.json_files import update_fields
from optkit.deploy.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from optkit.core.engine import Engine
    from optkit.deploy.source import Source

FREE = ("batch", "length")  # names of the dimensions that stay free
HUGGINGFACE = "huggingface"
TORCH = "torch"


@dataclass(frozen=True)
class Put:
    """An input or an output of a file.

    Attributes:
        name: in the file.
        dtype: ``float32``, ``int64``, ...
        shape: a size that stays free is a name.
    """

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Puts:
    """The inputs and outputs of a file."""

    inputs: list[Put]
    outputs: list[Put]


class Format:
    """How a model is written for one engine.

    Attributes:
        file: its name.
        engine: that runs it.
        triton: the backend of Triton Inference Server that runs it in the same way; None for none.
        triton_threads: the backend's parameter for its number of threads.
        ovms: whether OpenVINO Model Server runs it in the same way.
    """

    file: str
    triton: str | None = None
    triton_threads: str = ""
    ovms: bool = False

    def __init__(self, engine: Engine):
        self.engine = engine

    def refused(self, source: Source) -> str | None:
        """Why a variant cannot be written so; None where it can."""
        return self.engine.unsupported(source.variant.traits)

    def server_options(self, folder: Path) -> dict[str, str]:
        """What a server must set to run a written file as it was measured.

        Raises:
            UserError: no server can.
        """
        return {}

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        """Writes the file.

        Args:
            source: what is exported.
            folder: to write into.
            names: of the inputs; empty where the model's own are to stay.
            metadata: texts to keep in the file; the inputs and outputs are not among them.
        """
        raise NotImplementedError


class ONNX(Format):
    """An ONNX file, as optkit's engine compiles it for ONNX Runtime."""

    file = "model.onnx"
    triton = "onnxruntime"
    triton_threads = "intra_op_thread_count"

    def refused(self, source: Source) -> str | None:
        if isinstance(source.module, Generative):
            return "a model that generates is exported for openvino, huggingface, compressed-tensors or gguf"
        return self.engine.unavailable() or super().refused(source)

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        import onnx
        import onnx_ir as ir

        session: Any = self.engine.compile(source.module, source.variant, source.example)
        model = ir.from_proto(onnx.load_from_string(session.file))
        _name_inputs(model.graph, names)
        model.metadata_props.update(metadata)
        model.producer_name = "optkit"
        (folder / self.file).write_bytes(ir.to_proto(model).SerializeToString())
        return Puts(*([_onnx_put(value) for value in puts] for puts in (model.graph.inputs, model.graph.outputs)))

    def server_options(self, folder: Path) -> dict[str, str]:
        if b"DynamicQuantizeLinear" in (folder / self.file).read_bytes():
            # optkit's engine turns off one optimizer for such a file, which no server's config can
            message = "its activations are scaled at every call, which a server's ONNX Runtime computes otherwise"
            raise UserError(message, key="repository", fix="quantize/static, or another engine")
        return {}


def _name_inputs(graph: Any, names: Sequence[str]) -> None:
    """Names the inputs and the sizes that stay free; the shapes in between may be stale, and go."""
    import onnx_ir as ir

    between = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    named = {value.name: value for value in [*between, *graph.initializers.values()]}
    free: dict[str, str] = {}
    for place, value in enumerate(graph.inputs):
        if place < len(names) and names[place] not in {output.name for output in graph.outputs}:
            if (other := named.get(names[place])) is not None:
                other.name = f"{names[place]}_within"
            value.name = names[place]
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and axis < len(FREE):
                free.setdefault(str(size), FREE[axis])
    for value in between:
        value.shape = None
    for value in [*graph.inputs, *graph.outputs]:
        sizes = (size if isinstance(size, int) else _renamed(str(size), free) for size in value.shape)
        value.shape = ir.Shape(sizes)


def _renamed(size: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size)


def _onnx_put(value: Any) -> Put:
    shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
    return Put(value.name, value.dtype.numpy().name, shape)


class IR(Format):
    """OpenVINO's own files, as optkit's engine compiles them."""

    file = "model.xml"
    triton = "openvino"
    triton_threads = "INFERENCE_NUM_THREADS"
    ovms = True

    def refused(self, source: Source) -> str | None:
        return self.engine.unavailable() or super().refused(source)

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        import openvino as ov

        from optkit.core.generation import Generative
        from optkit.deploy.openvino_genai import save_genai

        session: Any = self.engine.compile(source.module, source.variant, source.example)
        if isinstance(source.module, Generative):
            model = save_genai(session.model, folder, metadata, getattr(source.task, "save_tokenizer", None))
            return Puts(*([_ir_put(put) for put in puts] for puts in (model.inputs, model.outputs)))
        model = session.model
        outputs = {put.get_any_name() for put in model.outputs}
        for put, name in zip(model.inputs, names, strict=False):
            if name not in outputs:
                put.get_tensor().set_names({name})
                put.get_node().set_friendly_name(name)
        for key, text in metadata.items():
            model.set_rt_info(text, ["model_info", key])
        ov.save_model(model, folder / self.file, compress_to_fp16=False)
        return Puts(*([_ir_put(put) for put in puts] for puts in (model.inputs, model.outputs)))

    def server_options(self, folder: Path) -> dict[str, str]:
        from optkit.engines.openvino import PRECISIONS

        return {"INFERENCE_PRECISION_HINT": PRECISIONS[getattr(self.engine, "precision", "fp32")]}


def _ir_put(put: Any) -> Put:
    shape = [
        size.get_length() if size.is_static else FREE[axis] if axis < len(FREE) else "?"
        for axis, size in enumerate(put.get_partial_shape())
    ]
    return Put(put.get_any_name(), put.get_element_type().to_dtype().name, shape)


class Program(Format):
    """A package of torch.export."""

    file = "model.pt2"

    def refused(self, source: Source) -> str | None:
        if self.engine.name == "eager" and "int8" in source.variant.traits:
            return "without an engine torch would compute its int8 graph in float"
        return super().refused(source)

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        from optkit.engines.program import save_program

        save_program(source.module, source.example, folder / self.file, metadata)
        return traced_puts(source, names)


class Pretrained(Format):
    """A folder for ``from_pretrained`` of transformers."""

    file = "model.safetensors"

    def refused(self, source: Source) -> str | None:
        from optkit.models.pretrained import is_huggingface

        if "float" not in source.variant.traits:
            return "its weights are quantized, and no config of transformers says so; export a variant in float"
        if not is_huggingface(source.module):
            return "it is no model of transformers, so no from_pretrained loads it; export it for torch"
        return None

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        from optkit.models.pretrained import save_pretrained

        made = folder / ".pretrained"
        if reason := save_pretrained(source.module, source.example, made):
            raise UserError(f"from_pretrained cannot express it: {reason}", key="engine", fix="export it for torch")
        for path in made.iterdir():
            path.rename(folder / path.name)
        made.rmdir()
        write_tokenizer(source, folder)
        classes = json.loads(metadata.get("classes", "null"))
        if classes:
            names_of = {str(number): name for number, name in enumerate(classes)}
            numbers_of = {name: number for number, name in enumerate(classes)}
            update_fields(folder / "config.json", {"id2label": names_of, "label2id": numbers_of})
        return traced_puts(source, names)


def traced_puts(source: Source, names: Sequence[str]) -> Puts:
    """Inputs and outputs of a model that is called from Python; the first size of each stays free."""
    import torch

    from optkit.core.structure import flatten
    from optkit.core.structure import names as paths

    with torch.no_grad():
        tensors, structure = flatten(source.module(*source.example))
    tokens = all(x.dim() == 2 and not x.is_floating_point() for x in source.example)
    given = [*names, *(f"input_{place}" for place in range(len(names), len(source.example)))]
    inputs = [_tensor_put(name, x, 2 if tokens else 1) for name, x in zip(given, source.example, strict=False)]
    return Puts(inputs, [_tensor_put(name, x, 1) for name, x in zip(paths(structure), tensors, strict=True)])


def _tensor_put(name: str, x: Any, free: int) -> Put:
    sizes = [FREE[axis] if axis < free else int(size) for axis, size in enumerate(x.shape)]
    return Put(name, str(x.dtype).removeprefix("torch."), sizes)


FORMATS: dict[str, tuple[type[Format], str]] = {
    "onnxruntime": (ONNX, "onnxruntime"),
    "openvino": (IR, "openvino"),
    "inductor": (Program, "inductor"),
    TORCH: (Program, "eager"),
    HUGGINGFACE: (Pretrained, "eager"),
}
# formats of language models for other runtimes, which `optkit.deploy.language_formats` has
OF_LANGUAGE = {"compressed-tensors": "CompressedTensors", "gguf": "GGUFFile", "gguf-q8_0": "GGUFFileQ8"}


def find_format(engine: str | Engine, engines: Mapping[str, Engine]) -> tuple[str, Format]:
    """The name of a format, and the format, with the engine of a run where it has one of that kind.

    Raises:
        UserError: there is no format for it.
    """
    from optkit.engines.registry import ENGINES

    if not isinstance(engine, str):
        by_engine = {name: kind for kind, (_, name) in FORMATS.items() if kind != HUGGINGFACE}
        if engine.name not in by_engine:
            raise UserError(f"no export for '{engine.name}'", key="engine", value=engine.name, fix=_known(engine.name))
        return by_engine[engine.name], FORMATS[by_engine[engine.name]][0](engine)
    if engine in OF_LANGUAGE:
        from optkit.deploy import language_formats

        return engine, getattr(language_formats, OF_LANGUAGE[engine])(ENGINES.find("eager", "engine")())
    if engine not in FORMATS:
        raise UserError(f"no export for '{engine}'", key="engine", value=engine, fix=_known(engine))
    kind, name = FORMATS[engine]
    own = next((found for found in engines.values() if found.name == name), None)
    return engine, kind(own if own is not None else ENGINES.find(name, "engine")())


def _known(name: str) -> str:
    return did_you_mean(name, [*FORMATS, *OF_LANGUAGE])
