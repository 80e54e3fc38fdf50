"""Causal language models by hub id, folder, GGUF file or config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.extras import need
from optkit.core.trust import builds_saved
from optkit.models.huggingface import (
    check_room,
    check_saved_params,
    check_source,
    config_of,
    explained,
    quietly,
    read_config,
)

if TYPE_CHECKING:
    from torch import nn

GGUF = ".gguf"
PROTOCOL = "task.protocol=blocks-{}"  # says how long a text is


@builds_saved(check_saved_params)
def language_model(
    pretrained: str | None = None,
    config: Mapping[str, Any] | str | None = None,
    vocab_size: int | None = None,
    pad_token_id: int | None = None,
    max_length: int | None = None,
) -> nn.Module:
    """A Hugging Face causal language model: tokens ``(N, T)`` to logits ``(N, T, V)``.

    Args:
        pretrained: hub id, local folder, or a GGUF file, whose weights are dequantized to float.
        config: in place of `pretrained`, random weights: ``model_type`` and the sizes of a config, or the hub id or
            local folder of one.
        vocab_size, pad_token_id, max_length: of the task's tokenizer and texts, for a `config` that does not say; a
            pretrained model must have room for them.

    Raises:
        UserError: no such model, or one that does not fit the task.
    """
    from optkit.models.causal_lm import CausalLM

    check_source(pretrained, config)
    with quietly():
        if pretrained is not None and pretrained.endswith(GGUF):
            model = _from_gguf(Path(pretrained))
            check_room(model.config, vocab_size, max_length, growing=False, length=PROTOCOL)
            return CausalLM(model).eval()
        if isinstance(config, Mapping):
            made = config_of(config, {"vocab_size": vocab_size, "pad_token_id": pad_token_id})
        else:
            made = read_config(str(pretrained or config), None, "pretrained" if pretrained else "config")
        check_room(made, vocab_size, max_length, growing=isinstance(config, Mapping), length=PROTOCOL)
        return CausalLM(_build(pretrained, made)).eval()


def _build(pretrained: str | None, config: Any) -> Any:
    import torch
    import transformers as hf

    if type(config) not in hf.MODEL_FOR_CAUSAL_LM_MAPPING:
        message = f"{config.model_type} is no causal language model"
        raise UserError(message, key="model", value=config.model_type, fix="such as llama, qwen3, gemma3_text or gpt2")
    auto = hf.AutoModelForCausalLM
    if pretrained is None:
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with explained(pretrained, "pretrained"):
        return auto.from_pretrained(pretrained, config=config, dtype=torch.float32, trust_remote_code=False)


def _from_gguf(file: Path) -> Any:
    """The model of a GGUF file, its weights as float; its config no longer says that they were quantized."""
    import torch
    import transformers as hf

    need("language", "GGUF files", "model.pretrained", ["gguf"])
    if not file.is_file():
        raise UserError(f"no file {file}", key="model.pretrained", value=str(file), fix="check the path")
    with explained(str(file), "pretrained"):
        loaded = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    fields = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = type(loaded)(type(loaded.config).from_dict(fields))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model
