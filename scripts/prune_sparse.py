"""What 2:4 weights bring on a GPU with sparse tensor cores, beside the same weights in dense kernels.

    python scripts/prune_sparse.py [--models bert_base vit_b_16] [--batch-sizes 1 64] [--precision fp16]
    python scripts/prune_sparse.py --shapes [--precision fp16]

Models of random weights, masked in the 2:4 pattern by magnitude; "always" runs all layers that can in sparse kernels,
"fastest" those that are faster there. The three sessions of the cuda engine are timed in turn in the same rounds, from
and to the host's memory; "on the GPU" is the recorded graph alone, by the GPU's own clock. Ratios are dense over
sparse, with the 95% interval where calls are timed. The deviation is of "always" from dense kernels, relative to the
largest logit. With --shapes, single linear layers instead, timed as the engine times them to choose.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import CUDA
from optkit.engines.cuda import BY_COLUMNS, BY_ROWS, DENSE, PRECISIONS, time_graphs, time_linear
from optkit.measure.latency import interleaved
from optkit.prune.masks import Pattern, apply_masks_, magnitude_masks

TOKENS = 128
REPLAYS = 100
SHAPES = (768, 768), (3072, 768), (768, 3072), (4096, 1024), (1024, 4096), (4096, 4096), (8192, 8192), (28672, 8192)
ROWS = 128, 8192


class Logits(nn.Module):
    """A Hugging Face classifier, its logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens).logits


def bert(layers: int, width: int) -> nn.Module:
    """A BERT classifier of that many layers; heads of 64, or of 32 where the model is narrow, as MiniLM has them."""
    from transformers import BertConfig, BertForSequenceClassification

    heads = width // (32 if width < 512 else 64)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    return Logits(BertForSequenceClassification(config))


def torchvision(name: str) -> nn.Module:
    """A classifier of images by name."""
    from torchvision import models

    return models.get_model(name, weights=None)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "minilm_l6": lambda: bert(6, 384),
    "bert_base": lambda: bert(12, 768),
    "bert_large": lambda: bert(24, 1024),
    "vit_b_16": lambda: torchvision("vit_b_16"),
    "vit_l_16": lambda: torchvision("vit_l_16"),
}


def example(name: str, batch_size: int) -> Tensor:
    """Noise: images of 224 pixels, or ids of tokens."""
    if name.startswith("vit"):
        return torch.randn(batch_size, 3, 224, 224)
    return torch.randint(5, 30000, (batch_size, TOKENS))


def print_shapes(precision: str) -> None:
    """Print the table of single layers."""
    print("| weight | rows | dense us | sparse us, rows | sparse us, columns | dense / fastest sparse |")
    print("|---|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        weight = torch.randn(shape, device="cuda", dtype=PRECISIONS[precision])
        weight.view(shape[0], -1, 4)[..., 2:] = 0
        bias = torch.randn(shape[0], device="cuda", dtype=weight.dtype)
        for rows in ROWS:
            times = time_linear(weight, bias, rows)
            cells = ["x".join(map(str, shape)), str(rows)]
            cells += [f"{1e3 * times[way]:.1f}" for way in (DENSE, BY_ROWS, BY_COLUMNS)]
            cells += [f"{times[DENSE] / min(times[BY_ROWS], times[BY_COLUMNS]):.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def print_models(names: list[str], batch_sizes: list[int], precision: str, seconds: float) -> None:
    """Print the table of models."""
    kinds = {"dense": "never", "always": "always", "fastest": "fastest"}
    engines = {name: CUDA(precision, kind) for name, kind in kinds.items()}
    columns = ["model", "batch", "MACs in the pattern", "dense ms", "always, ratio", "fastest, ratio"]
    columns += ["on the GPU, dense ms", "always, ratio", "fastest, MACs in 2:4 kernels", "always, deviation"]
    print("| " + " | ".join(columns) + " |")
    print("|---" + "|---:" * (len(columns) - 1) + "|")
    for name in names:
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        apply_masks_(model, magnitude_masks(model, None, pattern=Pattern(2, 4)))
        variant = Variant(name, None, frozenset({"float", "sparse"}), {})
        for batch_size in batch_sizes:
            x = example(name, batch_size)
            sessions = {kind: engine.compile(model, variant, (x,)) for kind, engine in engines.items()}
            expected = sessions["dense"](x)
            deviation = (sessions["always"](x) - expected).abs().max() / expected.abs().max()
            series = interleaved(sessions, (x,), seconds, seed=0)
            facts = sessions["fastest"].facts()
            cells = [name, str(batch_size), f"{facts['pattern_share']:.0%}"]
            cells += [f"{np.median(series['dense'].samples):.2f}"]
            for kind in ("always", "fastest"):
                ratio = ratio_of_medians(series["dense"].samples, series[kind].samples)
                cells += [f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"]
            on_gpu = time_graphs({kind: sessions[kind].graph for kind in ("dense", "always")}, REPLAYS)
            cells += [
                f"{on_gpu['dense']:.2f}",
                f"{on_gpu['dense'] / on_gpu['always']:.2f}",
                f"{facts['sparse_share']:.0%}",
                f"{deviation:.1e}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--precision", default="fp16", choices=["fp16", "bf16"])
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each model and batch size")
    parser.add_argument("--shapes", action="store_true", help="time single linear layers instead of models")
    args = parser.parse_args()
    if reason := CUDA().unavailable():
        raise SystemExit(reason)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.precision}")
    if args.shapes:
        print_shapes(args.precision)
    else:
        print_models(args.models, args.batch_sizes, args.precision, args.seconds)


if __name__ == "__main__":
    main()
