"""What static int8 covers: one member of every torchvision family and the common transformers, on every engine.

    python scripts/quantize_coverage.py [PATTERN ...] [--suite torchvision|transformers] [--targets openvino ...]
        [--rows FILE.jsonl]

Each model is built with random weights (seed 0), in a process of its own; its batch norms take the statistics of noise.
Calibrated on noise, it is quantized for one engine and answers other noise there, 8 examples. The table gives the share
of the MACs of convolutions and linears that the engine executes in int8 kernels (a lower bound where it also takes
products of attention), how far the outputs are from fp32 (signal to quantization noise in dB, and the share of
positions with the same largest output), and the seconds that quantizing and compiling took. Rows go to the file as they
come, and the next call with that file goes on where this one stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.prune_cases import cases_of, family_of
from scripts.prune_coverage import Row, in_own_process

SUITES = ("torchvision", "transformers")
TARGETS = ("openvino", "onnxruntime", "inductor")
LIMIT = 900  # CPU seconds for one model on one engine
LEAST = 0.95
EXAMPLES = 8
ATTENTION = ("bmm", "attention")  # in the names of operators that multiply two activations
# the classifiers of the transformers chapter; the others of the suite are generators without a classifying head
CLASSIFIERS = (
    "bert", "roberta", "distilbert", "electra", "mpnet", "deberta_v2", "albert", "vit", "deit", "swin", "convnextv2",
)  # fmt: skip


def members() -> list[tuple[str, str]]:
    """Suite and name of every case: the smallest builder of each file of torchvision, and the transformers."""
    import torchvision

    def size(name: str) -> int:
        weights = torchvision.models.get_model_weights(name)
        return min(weight.meta["num_params"] for weight in weights)

    smallest: dict[str, str] = {}
    for name in sorted(cases_of("torchvision"), key=size, reverse=True):
        smallest[family_of("torchvision", name)] = name
    # of the residual networks also the one whose blocks reuse one ReLU, and a network of groups
    names = sorted({*smallest.values(), "resnet50", "resnext50_32x4d", "swin_v2_t", "mobilenet_v3_small"})
    return [("torchvision", name) for name in names] + [("transformers", name) for name in CLASSIFIERS]


def measure(make: Callable[[], nn.Module], inputs: Any, target: str) -> Row:
    """Quantize one model for one engine and run it there."""
    from optkit import engines
    from optkit.core.errors import OptkitError
    from optkit.core.macs import macs_by_operator
    from optkit.quantize import quantize_static
    from optkit.quantize.graph.float_layers import float_layers

    torch.manual_seed(0)
    model, x = classifier(make().eval(), inputs)
    x, *batches = (tuple(noise(v) for v in x) for _ in range(3))
    settle(model, batches[0])
    by_operator = macs_by_operator(model, x)
    total = sum(by_operator.values())
    weighted = sum(n for operator, n in by_operator.items() if not any(k in operator for k in ATTENTION))
    started = time.perf_counter()
    try:
        quantized = quantize_static(model, x, batches, target=target)
        session = engines.compile(quantized.module, x, engine=target)
    except OptkitError as error:
        return {"failure": str(error)}
    seconds = time.perf_counter() - started
    with torch.no_grad():
        expected, found = model(*x), session(*x)
    error = float((found - expected).square().mean())
    int8 = session.facts()["int8_share"] * total
    # of attention, an engine may take the products of queries and keys, which are half of it; inductor takes none
    besides = 0 if target == "inductor" else (total - weighted) / 2
    row: Row = {"seconds": seconds, "int8": max(0.0, min(1.0, (int8 - besides) / weighted))}
    row["sqnr_db"] = 10 * math.log10(float(expected.square().mean()) / error) if error else math.inf
    row["agreement"] = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
    row["float_layers"] = float_layers(quantized.module)
    return row


def noise(like: Tensor) -> Tensor:
    """As many examples as are asked for: normal numbers, or whole ones of the same range."""
    shape = (EXAMPLES, *like.shape[1:])
    if like.is_floating_point():
        return torch.randn(shape)
    return torch.randint(int(like.min()), int(like.max()) + 1, shape)


def settle(model: nn.Module, x: tuple[Tensor, ...]) -> None:
    """Gives batch norms the statistics of these inputs, and zeros random values.

    As built, EfficientNet answers 1e-14 and ViT nothing but zeros: nothing to round.
    """
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = None  # the plain average, without what was there
        norm.reset_running_stats()
    with torch.no_grad():
        model(*x)
    model.eval()


def classifier(model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A case as optkit's tasks call it: tensors by position, logits back."""
    from optkit.models import ImageClassifier, TextClassifier

    if isinstance(inputs, tuple):
        return model, inputs
    if "pixel_values" in inputs:
        return ImageClassifier(model), (inputs["pixel_values"],)
    tokens = inputs["input_ids"]
    return TextClassifier(model), (tokens, inputs.get("attention_mask", torch.ones_like(tokens)))


def cell(row: Row) -> str:
    """int8 share, noise and agreement; or why there are none."""
    if "failure" in row:
        return f"FAILS: {row['failure']}"
    return f"{row['int8']:.1%}, {row['sqnr_db']:.0f} dB, {row['agreement']:.0%}, {row['seconds']:.0f} s"


def short(row: Row) -> str:
    """What a row falls short in, or nothing."""
    if "failure" in row:
        return str(row["failure"])
    left = f": in float {', '.join(row['float_layers'])}" if row["float_layers"] else ""
    return "" if row["int8"] >= LEAST else f"{row['int8']:.1%} in int8{left}"


def main() -> None:
    """Run what is missing from the rows, then print what falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--suite", choices=SUITES, help="one suite instead of both")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rows", type=Path, help="append rows to this file, and skip what it holds")
    parser.add_argument("--memory", type=float, default=64, help="GB of addresses that a process may take")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    text = args.rows.read_text(encoding="utf-8") if args.rows and args.rows.exists() else ""
    held = [json.loads(found) for found in text.splitlines() if found.endswith("}")]
    rows = {(row["model"], row["target"]): row for row in held}
    print(f"| model | {' | '.join(args.targets)} |\n|---{'|---' * len(args.targets)}|")
    fallen: list[str] = []
    for suite, name in members():
        if suite != (args.suite or suite) or not any(fnmatch.fnmatch(name, pattern) for pattern in args.patterns):
            continue
        for target in args.targets:
            if (name, target) not in rows:
                row = {"suite": suite, "model": name, "target": target}
                row |= in_own_process(measure, LIMIT, args.memory, *cases_of(suite)[name], target)
                rows[name, target] = row
                if args.rows:
                    with args.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            if why := short(rows[name, target]):
                fallen.append(f"- {name} on {target}: {why}")
        print(f"| {name} | {' | '.join(cell(rows[name, target]) for target in args.targets)} |", flush=True)
    print(f"\n{len(fallen)} short of {LEAST:.0%} of the MACs of convolutions and linears:", *fallen, sep="\n")


if __name__ == "__main__":
    main()
