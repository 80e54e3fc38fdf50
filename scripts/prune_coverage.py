"""What the structured pruning engine can cut: every torchvision classifier and the common transformers, one by one.

    python scripts/prune_coverage.py [PATTERN ...] [--suite torchvision|transformers|large] [--amount 0.5] [--json FILE]

Each model is built with random weights in a process of its own, and half of its parameters are cut. The table says what
was removed, how far the cut model is from the dense one with the same channels zeroed (relative to the spread of the
outputs), whether the plan replays on a fresh instance, and the time and memory that took, beyond the model. With
Torch-Pruning installed its time (or failure) stands beside, for a cut of the same share of every layer.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

Case = tuple[Callable[[], nn.Module], Any]
TIMEOUT = 600  # seconds for one model; Torch-Pruning gets a fifth of it


def torchvision_cases(max_params: float = 7e8) -> dict[str, Case]:
    """Every classification builder below ``max_params`` parameters, at its usual image size."""

    def case(name: str) -> Case:
        size = {"inception_v3": 299, "vit_h_14": 224}.get(name, 224)
        options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        return lambda: torchvision.models.get_model(name, weights=None, **options), (torch.randn(1, 3, size, size),)

    names = torchvision.models.list_models(module=torchvision.models)
    weights = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in names}
    return {name: case(name) for name in names if weights[name] <= max_params}


def transformer_cases(scale: int = 1) -> dict[str, Case]:
    """The families of transformers, ``scale`` times as wide and deep as a toy."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    wide, deep = 64 * scale, 2 * scale
    vocab = 500 if scale == 1 else 10_000
    text = {"vocab_size": vocab, "hidden_size": wide, "num_hidden_layers": deep, "num_attention_heads": 4 * scale,
            "intermediate_size": 4 * wide, "max_position_embeddings": 128}  # fmt: skip
    causal = text | {"num_key_value_heads": 2 * scale, "intermediate_size": 3 * wide, "pad_token_id": 0}
    image = {"image_size": 32 * scale, "patch_size": 8, "hidden_size": wide, "num_hidden_layers": deep,
             "num_attention_heads": 4 * scale, "intermediate_size": 4 * wide, "num_labels": 10}  # fmt: skip
    disentangled = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
                    "share_att_key": True, "norm_rel_ebd": "layer_norm"}  # fmt: skip
    tokens = {"input_ids": torch.randint(5, 400, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    pixels = {"pixel_values": torch.randn(2, 3, 32 * scale, 32 * scale)}
    distil = hf.DistilBertConfig(vocab_size=vocab, dim=wide, n_layers=deep, n_heads=4 * scale, hidden_dim=4 * wide)
    swin = hf.SwinConfig(image_size=32 * scale, patch_size=2 * scale, embed_dim=24 * scale, depths=[2, 2 * scale],
                         num_heads=[3, 6], window_size=4, num_labels=10)  # fmt: skip
    next_v2 = hf.ConvNextV2Config(hidden_sizes=[16 * scale, 32 * scale, 64 * scale, 128 * scale],
                                  depths=[1, 1, 2 * scale, 1], num_labels=10)  # fmt: skip
    opt = hf.OPTConfig(vocab_size=vocab, hidden_size=wide, num_hidden_layers=deep, num_attention_heads=4 * scale,
                       ffn_dim=4 * wide, word_embed_proj_dim=wide, max_position_embeddings=128)  # fmt: skip
    gpt2 = hf.GPT2Config(vocab_size=vocab, n_embd=wide, n_layer=deep, n_head=4 * scale, n_positions=128)
    t5 = hf.T5Config(vocab_size=vocab, d_model=wide, d_kv=16, d_ff=4 * wide, num_layers=deep, num_heads=4 * scale)
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


def suite(name: str) -> dict[str, Case]:
    """The cases of one suite, or of all."""
    suites = {"torchvision": torchvision_cases, "transformers": transformer_cases, "large": large_cases}
    return suites[name]() if name in suites else {k: v for make in suites.values() for k, v in make().items()}


def measure(make: Callable[[], nn.Module], inputs: Any, amount: float) -> dict[str, Any]:
    """Prune one model and check the result."""
    from optkit.core.errors import OptkitError
    from optkit.prune import prune_structured
    from optkit.prune.verify import deviation

    torch.manual_seed(0)
    model = make().eval()
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    before, start = _memory(), time.perf_counter()
    try:
        pruned = prune_structured(model, inputs, amount=amount)
    except OptkitError as error:
        return row | {"failure": f"{type(error).__name__}: {error}"}
    row["seconds"] = time.perf_counter() - start
    row["gigabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e9
    facts = pruned.plan.facts
    row |= {key: 1 - facts[f"{key}_after"] / max(facts[f"{key}_before"], 1) for key in ("params", "macs")}
    row |= {"dense": facts["params_before"], "deviation": deviation(model, pruned.model, pruned.plan, inputs)}
    fresh = type(pruned.plan).from_json(pruned.plan.to_json()).apply(make())
    fresh.load_state_dict(pruned.model.state_dict())
    row["replays"] = all(torch.equal(a, b) for a, b in zip(fresh.parameters(), pruned.model.parameters(), strict=True))
    return row


def measure_torch_pruning(make: Callable[[], nn.Module], inputs: Any, amount: float) -> dict[str, Any]:
    """The same model cut by Torch-Pruning: equal shares of every layer, heads left alone."""
    import torch_pruning as tp

    model = make().eval()
    before = sum(p.numel() for p in model.parameters())
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in (2, 10, 1000)]
    start = time.perf_counter()
    try:
        tp.pruner.MagnitudePruner(
            model,
            inputs,
            tp.importance.MagnitudeImportance(),
            pruning_ratio=1 - (1 - amount) ** 0.5,
            ignored_layers=heads,
        ).step()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    except Exception as error:  # noqa: BLE001 - whatever another library raises is the result here
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"}
    return {"seconds": seconds, "params": 1 - sum(p.numel() for p in model.parameters()) / before}


def _memory() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _in_own_process(name: str, args: argparse.Namespace, tool: str) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--suite", args.suite, "--amount", str(args.amount), "--one", tool]
    try:
        limit = TIMEOUT if tool == "optkit" else TIMEOUT // 5
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {limit} s"}
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"failure": done.stderr.strip()[-120:]}


def _line(name: str, row: dict[str, Any], other: dict[str, Any] | None) -> str:
    if "failure" in row:
        text = f"| {name} | {row.get('params', 0) / 1e6:.1f} | FAILS: {row['failure']} | | | | | |"
    else:
        text = (
            f"| {name} | {row['dense'] / 1e6:.1f} | {row['params']:.1%} | {row['macs']:.1%} | {row['deviation']:.0e} | "
            f"{'yes' if row['replays'] else 'NO'} | {row['seconds']:.1f} | {row['gigabytes']:.1f} |"
        )
    if other is None:
        return text
    return text + (
        f" {other['failure']} |" if "failure" in other else f" {other['seconds']:.1f} s, {other['params']:.0%} |"
    )


def main() -> None:
    """Print the table, one line a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--suite", default="all", choices=["all", "torchvision", "transformers", "large"])
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--one", choices=["optkit", "torch_pruning"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = suite(args.suite)
    if args.one:
        run = measure if args.one == "optkit" else measure_torch_pruning
        print(json.dumps(run(*cases[args.patterns[0]], args.amount)))
        return
    beside = importlib.util.find_spec("torch_pruning") is not None
    print(
        "| model | M params | params cut | MACs cut | deviation | replays | s | GB |"
        + (" Torch-Pruning |" if beside else "")
    )
    print("|---|---|---|---|---|---|---|---|" + ("---|" if beside else ""))
    rows = {}
    for name in [name for name in cases if any(fnmatch.fnmatch(name, pattern) for pattern in args.patterns)]:
        rows[name] = _in_own_process(name, args, "optkit")
        other = _in_own_process(name, args, "torch_pruning") if beside else None
        print(_line(name, rows[name], other), flush=True)
        rows[name]["torch_pruning"] = other
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
