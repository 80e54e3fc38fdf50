"""Files of language models for other runtimes: compressed-tensors folders (transformers, vLLM) and GGUF (llama.cpp)."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import StageError, UserError
from optkit.core.extras import missing
from optkit.deploy.formats import Format, Puts, traced_puts
from optkit.deploy.json_files import write_fields
from optkit.deploy.tokenizer import write_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from optkit.deploy.source import Source

log = logging.getLogger(__name__)
COMPRESSED, GGUF, GGUF_Q8 = "compressed-tensors", "gguf", "gguf-q8_0"
ROUNDING = 1e-3  # by which the answers of what was written may differ, relative to the largest logit
BITS = (4, 8)  # that vLLM and transformers read
# how byte-level tokenizers split text, by the one part in which they differ, and llama.cpp's names for it
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {SPLIT.replace("NUMBERS", r"\p{N}"): "qwen2", SPLIT.replace("NUMBERS", r"\p{N}{1,3}"): "llama-bpe"}
# the architectures that are written, and whether llama.cpp turns the halves of rotated queries and keys into pairs
ROTATED = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False}


class CompressedTensors(Format):
    """A folder for ``from_pretrained`` and vLLM with int8 or int4 weights in the format of compressed-tensors."""

    file = "model.safetensors"

    def refused(self, source: Source) -> str | None:
        if reason := _no_language_model(source) or missing("language", ("compressed_tensors",)):
            return reason
        layers = _packed_layers(source.module)
        if not layers:
            return "it has no layer with weights of few bits; export it for huggingface"
        for path, layer in layers.items():
            if layer.bits not in BITS:
                return f"{path} has weights of {layer.bits} bits, and compressed-tensors is written for 4 and 8"
            if layer.zero_points() is not None:
                return f"{path} has zero points, which transformers does not read; quantize with symmetric=true"
            if not hasattr(layer, "in_features"):
                return f"{path} is an embedding with weights of few bits, which no reader of compressed-tensors takes"
        return None

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
        from safetensors.torch import save_file

        layers = _packed_layers(source.module)
        plain = with_float_weights(source.module)
        tensors = _tensors(plain.model)
        for path, layer in layers.items():
            path = path.removeprefix("model.")
            weight = tensors.pop(f"{path}.weight")
            tensors[f"{path}.weight_packed"] = pack_to_int32(layer.integers(), layer.bits)
            tensors[f"{path}.weight_scale"] = layer.scales().contiguous()
            tensors[f"{path}.weight_shape"] = _numbers(weight.shape)
        config = _config_of(plain.model)
        config["quantization_config"] = _quantization_config(source.module, layers)
        save_file(tensors, folder / self.file, metadata={"format": "pt", **metadata})
        write_fields(folder / "config.json", config)
        write_tokenizer(source, folder)
        _check_answers(plain, source.example, lambda: _reloaded(folder))
        return traced_puts(source, names)


class GGUFFile(Format):
    """A GGUF file of a model in float, its matrices in float or rounded to Q8_0 (int8 in groups of 32)."""

    file = "model.gguf"
    matrices = "F32"

    def refused(self, source: Source) -> str | None:
        if reason := _no_language_model(source) or missing("language", ("gguf",)):
            return reason
        kind = source.module.model.config.model_type  # type: ignore[union-attr]
        if kind not in ROTATED:
            return f"GGUF is written for {', '.join(ROTATED)}, and this model is {kind}"
        if _packed_layers(source.module):
            return "its weights are quantized already; export the variant before that stage, which GGUF then rounds"
        return None

    def write(self, source: Source, folder: Path, names: Sequence[str], metadata: Mapping[str, str]) -> Puts:
        import gguf

        model: Any = source.module.model
        config = _config_of(model)
        kind = gguf.GGMLQuantizationType[self.matrices]
        writer = gguf.GGUFWriter(folder / self.file, config["model_type"].replace("mistral", "llama"))
        _write_fields(writer, config, source.name)
        _write_vocabulary(writer, source)
        table = gguf.get_tensor_name_map(_architecture(config), config["num_hidden_layers"])
        for name, tensor in _tensors(model).items():
            given = table.get_name(name, try_suffixes=(".weight", ".bias"))
            if given is None:
                raise StageError(f"GGUF has no name for {name}", fix="export it for huggingface")
            array = _turned(tensor, name, config)
            is_matrix = array.ndim == 2 and array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
            if is_matrix and kind != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(given, gguf.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(given, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _check_answers(self.as_written(source.module), source.example, lambda: _reloaded(folder, self.file))
        return traced_puts(source, names)

    def as_written(self, module: nn.Module) -> nn.Module:
        """The model whose weights are those in the file."""
        return module


class GGUFFileQ8(GGUFFile):
    """The same with matrices rounded to Q8_0."""

    matrices = "Q8_0"

    def as_written(self, module: nn.Module) -> nn.Module:
        import gguf
        import torch

        kind = gguf.GGMLQuantizationType.Q8_0
        rounded = copy.deepcopy(module)
        with torch.no_grad():
            for weight in {id(p): p for p in rounded.parameters() if p.dim() == 2}.values():
                if weight.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
                    values = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
                    weight.copy_(torch.from_numpy(values.reshape(weight.shape)))
        return rounded


def with_float_weights(module: nn.Module) -> Any:
    """A copy of a model whose layers with weights of few bits are linear layers of what these stand for."""
    from torch import nn

    packed = _packed_layers(module)
    found = copy.deepcopy(module)
    for path, layer in packed.items():
        weight = layer.float_weight()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        linear.weight.data = weight
        if layer.bias is not None:
            linear.bias.data = layer.bias.detach().float().clone()
        found.set_submodule(path, linear)
    return found.eval()


def _no_language_model(source: Source) -> str | None:
    from optkit.models.causal_lm import CausalLM

    return None if isinstance(source.module, CausalLM) else "it is no causal language model of transformers"


def _packed_layers(module: nn.Module) -> dict[str, Any]:
    """The layers with weights of few bits, by path."""
    from optkit.core.packed_weights import PackedWeights

    return {path: inner for path, inner in module.named_modules() if isinstance(inner, PackedWeights)}


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors by name; of those that are tied the first alone."""
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, Any]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen.add(key)
            found[name] = tensor.detach().contiguous()
    return found


def _numbers(shape: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor(list(shape), dtype=torch.int64)


def _config_of(model: Any) -> dict[str, Any]:
    """The fields of a config that builds a model's shapes; raises UserError where none does."""
    from optkit.models.pretrained import expressed

    found = expressed(model)
    if found is None:
        fix = "prune with uniform widths, or export it for torch or openvino"
        raise UserError(f"no config of {type(model).__name__} has these widths", key="engine", fix=fix)
    fields = json.loads(found.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)
    return fields | {"architectures": [type(model).__name__]}


def _quantization_config(module: nn.Module, layers: Mapping[str, Any]) -> dict[str, Any]:
    """What the reader needs to know: each scheme with the layers that have it, and the layers that have none."""
    from torch import nn

    schemes: dict[tuple[Any, ...], list[str]] = {}
    for path, layer in layers.items():
        schemes.setdefault((layer.bits, layer.group_size), []).append(path.removeprefix("model."))
    linears = (path.removeprefix("model.") for path, inner in module.named_modules() if isinstance(inner, nn.Linear))
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if len(schemes) == 1 else paths,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
                "dynamic": False,
            },
        }
        for number, ((bits, group_size), paths) in enumerate(schemes.items())
    }
    return {
        "quant_method": COMPRESSED,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(linears),
    }


def _reloaded(folder: Path, gguf_file: str | None = None) -> nn.Module:
    """What transformers makes of a folder, as a model that takes tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from optkit.models.causal_lm import CausalLM
    from optkit.models.huggingface import quietly

    named = {} if gguf_file is None else {"gguf_file": gguf_file}
    with quietly():
        return CausalLM(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named)).eval()


def _check_answers(ours: nn.Module, example: Sequence[torch.Tensor], reload: Callable[[], nn.Module]) -> None:
    """Raises StageError where what was written answers otherwise than what was to be written."""
    import torch

    with torch.no_grad():
        expected, found = ours(*example), reload()(*example)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not difference <= ROUNDING:
        raise StageError(
            f"transformers reads another model from the file: its logits differ by {difference:.1e} relative"
        )


def _architecture(config: Mapping[str, Any]) -> Any:
    import gguf

    names = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return names[config["model_type"].replace("mistral", "llama")]


def _write_fields(writer: Any, config: Mapping[str, Any], name: str) -> None:
    """The sizes of a model, in GGUF's terms."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        message = f"rotary positions of the kind {rope['rope_type']} are not written to GGUF"
        raise UserError(message, key="engine", value=GGUF, fix="export it for huggingface")
    writer.add_name(name)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _context(config: Mapping[str, Any]) -> int:
    """The longest text, in tokens. A model with sliding windows has no windows in GGUF: it is the same within one."""
    longest, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    slides = "sliding_attention" in (config.get("layer_types") or ["sliding_attention"])
    if window is None or not slides or window >= longest:
        return longest
    log.warning("GGUF has no sliding windows: the file says a context of %d tokens in place of %d", window, longest)
    return int(window)


def _turned(tensor: torch.Tensor, name: str, config: Mapping[str, Any]) -> np.ndarray:
    """A tensor as llama.cpp reads it: rotated pairs side by side, where the model has them half a head apart."""
    array = tensor.float().numpy()
    if not ROTATED[config["model_type"]] or not any(f".{part}_proj." in name for part in "qk"):
        return array
    heads = config["num_attention_heads"]
    count = heads if ".q_proj." in name else config.get("num_key_value_heads") or heads
    halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _kind_of(added: Mapping[str, Any] | None) -> Any:
    """The type in GGUF of a token: llama.cpp shows what is user-defined, and hides what is control."""
    import gguf

    if added is None:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED


def _write_vocabulary(writer: Any, source: Source) -> None:
    """The tokens and merges of a byte-level tokenizer; without a task's tokenizer there are none in the file.

    Raises:
        UserError: a tokenizer of another kind.
    """
    import tempfile

    import gguf

    if not hasattr(source.task, "save_tokenizer"):
        return
    with tempfile.TemporaryDirectory() as name:
        source.task.save_tokenizer(Path(name))
        said = json.loads((Path(name) / "tokenizer.json").read_text(encoding="utf-8"))
        about = json.loads((Path(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
    steps = json.dumps(said.get("pre_tokenizer"))
    if said["model"]["type"] != "BPE" or "ByteLevel" not in steps:
        message = f"a tokenizer of {said['model']['type']} is not written to GGUF, but byte-level BPE alone"
        raise UserError(message, key="engine", value=GGUF, fix="export it for huggingface")
    special = {token["id"]: token for token in said.get("added_tokens", ())}
    numbers = said["model"]["vocab"] | {token["content"]: number for number, token in special.items()}
    model: Any = source.module.model
    size = int(model.config.vocab_size)
    texts = [f"[unused{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for text, number in numbers.items():
        if number < size:
            texts[number] = text
            kinds[number] = _kind_of(special.get(number))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in said["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(said["pre_tokenizer"]))
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add, key in ((writer.add_bos_token_id, "bos_token"), (writer.add_eos_token_id, "eos_token")):
        token = about.get(key)
        text = token.get("content") if isinstance(token, Mapping) else token
        if text in numbers:
            add(numbers[text])


def _pre_tokenizer(steps: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a byte-level BPE splits text before it merges.

    Raises:
        UserError: llama.cpp has a name for it that is not known here.
    """
    flat = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    patterns = [one["pattern"].get("Regex") for one in flat if one["type"] == "Split"]
    digits = [one for one in flat if one["type"] == "Digits" and one.get("individual_digits")]
    kinds = {one["type"] for one in flat}
    if kinds == {"Split", "ByteLevel"} and len(patterns) == 1 and patterns[0] in SPLITS:
        return SPLITS[patterns[0]]
    if kinds == {"Digits", "ByteLevel"} and digits:
        return "smollm"
    if kinds == {"ByteLevel"} and steps.get("use_regex", flat[0].get("use_regex", True)):
        return "gpt-2"
    message = f"how this tokenizer splits text is not known in GGUF: {json.dumps(steps)[:200]}"
    raise UserError(message, key="engine", value=GGUF, fix="export it for huggingface, and convert it by llama.cpp")
