"""The models that prune_coverage.py cuts, in three suites: a builder and example inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

Case = tuple[Callable[[], nn.Module], Any]
SUITES = ("torchvision", "transformers", "large")


def torchvision_cases() -> dict[str, Case]:
    """Every classification builder, at its usual image size."""

    def case(name: str) -> Case:
        size = 299 if name == "inception_v3" else 224
        options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        return lambda: torchvision.models.get_model(name, weights=None, **options), (torch.randn(1, 3, size, size),)

    return {name: case(name) for name in torchvision.models.list_models(module=torchvision.models)}


def transformer_cases() -> dict[str, Case]:
    """The families of transformers, as toys."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    wide, deep, vocab = 64, 2, 500
    text = {"vocab_size": vocab, "hidden_size": wide, "num_hidden_layers": deep, "num_attention_heads": 4,
            "intermediate_size": 4 * wide, "max_position_embeddings": 128}  # fmt: skip
    causal = text | {"num_key_value_heads": 2, "intermediate_size": 3 * wide, "pad_token_id": 0}
    image = {"image_size": 32, "patch_size": 8, "hidden_size": wide, "num_hidden_layers": deep,
             "num_attention_heads": 4, "intermediate_size": 4 * wide, "num_labels": 10}  # fmt: skip
    disentangled = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
                    "share_att_key": True, "norm_rel_ebd": "layer_norm"}  # fmt: skip
    tokens = {"input_ids": torch.randint(5, 400, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    distil = hf.DistilBertConfig(vocab_size=vocab, dim=wide, n_layers=deep, n_heads=4, hidden_dim=4 * wide)
    swin = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=24, depths=[2, 2],
                         num_heads=[3, 6], window_size=4, num_labels=10)  # fmt: skip
    next_v2 = hf.ConvNextV2Config(hidden_sizes=[16, 32, 64, 128],
                                  depths=[1, 1, 2, 1], num_labels=10)  # fmt: skip
    opt = hf.OPTConfig(vocab_size=vocab, hidden_size=wide, num_hidden_layers=deep, num_attention_heads=4,
                       ffn_dim=4 * wide, word_embed_proj_dim=wide, max_position_embeddings=128)  # fmt: skip
    gpt2 = hf.GPT2Config(vocab_size=vocab, n_embd=wide, n_layer=deep, n_head=4, n_positions=128)
    t5 = hf.T5Config(vocab_size=vocab, d_model=wide, d_kv=16, d_ff=4 * wide, num_layers=deep, num_heads=4)
    cases: dict[str, tuple[type, Any, Any]] = {
        "bert": (hf.BertForSequenceClassification, hf.BertConfig(**text), tokens),
        "roberta": (hf.RobertaForSequenceClassification, hf.RobertaConfig(**text), tokens),
        "distilbert": (hf.DistilBertForSequenceClassification, distil, tokens),
        "electra": (hf.ElectraForSequenceClassification, hf.ElectraConfig(embedding_size=32, **text), tokens),
        "mpnet": (hf.MPNetForSequenceClassification, hf.MPNetConfig(**text), tokens),
        "deberta_v2": (hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config(**text, **disentangled), tokens),
        "albert": (hf.AlbertForSequenceClassification, hf.AlbertConfig(embedding_size=32, **text), tokens),
        "vit": (hf.ViTForImageClassification, hf.ViTConfig(**image), pixels),
        "deit": (hf.DeiTForImageClassification, hf.DeiTConfig(**image), pixels),
        "swin": (hf.SwinForImageClassification, swin, pixels),
        "convnextv2": (hf.ConvNextV2ForImageClassification, next_v2, pixels),
        "gpt2": (hf.GPT2LMHeadModel, gpt2, tokens),
        "opt": (hf.OPTForCausalLM, opt, tokens),
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**causal), tokens),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**causal), tokens),
        "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**causal, head_dim=16), tokens),
        "mistral": (hf.MistralForCausalLM, hf.MistralConfig(**causal), tokens),
        "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config(**causal, head_dim=16), tokens),
        "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config(**causal), tokens),
        "t5_encoder": (hf.T5EncoderModel, t5, tokens),
    }  # fmt: skip
    return {name: (lambda k=kind, c=config: k(c), inputs) for name, (kind, config, inputs) in cases.items()}


def large_cases() -> dict[str, Case]:
    """Transformers of real size, up to about 120M parameters."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    tokens = {"input_ids": torch.randint(5, 400, (1, 64))}
    pixels = {"pixel_values": torch.randn(1, 3, 224, 224)}
    llama = hf.LlamaConfig(vocab_size=16_000, hidden_size=640, num_hidden_layers=12, num_attention_heads=10,
                           num_key_value_heads=5, intermediate_size=2048)  # fmt: skip
    deberta = hf.DebertaV2Config(vocab_size=30_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                                 intermediate_size=3072)  # fmt: skip
    return {
        "bert-base": (lambda: hf.BertForSequenceClassification(hf.BertConfig()), tokens),
        "gpt2-small": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config()), tokens),
        "deberta-v2-base": (lambda: hf.DebertaV2ForSequenceClassification(deberta), tokens),
        "vit-base": (lambda: hf.ViTForImageClassification(hf.ViTConfig()), pixels),
        "swin-base": (lambda: hf.SwinForImageClassification(hf.SwinConfig(
            embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])), pixels),
        "convnextv2-base": (lambda: hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(
            hidden_sizes=[128, 256, 512, 1024], depths=[3, 3, 27, 3])), pixels),
        "llama-90m": (lambda: hf.LlamaForCausalLM(llama), tokens),
    }  # fmt: skip


def cases_of(suite: str) -> dict[str, Case]:
    """The cases of one suite."""
    return {"torchvision": torchvision_cases, "transformers": transformer_cases, "large": large_cases}[suite]()


def family_of(suite: str, name: str) -> str:
    """The file of torchvision that a model is built in; elsewhere the first part of its name."""
    if suite == "torchvision":
        return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
    return name.partition("-")[0]
