"""Dynamic int8 and weight-only quantization of a transformer's linear layers, beside torchao's own calls.

    python scripts/quantize_linear.py [--model DIR] [--lengths 64 128] [--batch-sizes 1 16] [--threads 2]

Everything is timed in turn in the same rounds; every ratio is eager fp32 over the column, with its 95% interval.
"torchao" is ``quantize_(model, Int8DynamicActivationInt8WeightConfig())`` and the same with ``Int8WeightOnlyConfig()``,
under the same inductor options.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import Eager, Inductor
from optkit.measure.latency import interleaved
from optkit.models import huggingface
from optkit.quantize import quantize_dynamic, quantize_weight_only

FLOAT = Variant("float", None, frozenset({"float"}), {})
INT8 = Variant("int8", None, frozenset({"int8"}), {})
WEIGHTS = Variant("weights", None, frozenset({"weight_only"}), {})
SMALL = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
Inputs = tuple[Tensor, ...]


def torchao(model: nn.Module, config: object) -> nn.Module:
    """The model through torchao's one-line call."""
    from torchao.quantization import quantize_

    quantized = copy.deepcopy(model)
    quantize_(quantized, config)
    return quantized


def cases(model: nn.Module, x: Inputs) -> dict[str, Callable]:
    """What is compared: each builds its session when called."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    def weights(bits: int) -> nn.Module:
        return quantize_weight_only(model, bits=bits).module

    def dynamic() -> nn.Module:
        return quantize_dynamic(model, tuple(t[:2] if len(t) > 1 else t.repeat(2, 1) for t in x)).module

    inductor = Inductor()
    return {
        "eager": lambda: Eager().compile(model, FLOAT, x),
        "inductor": lambda: inductor.compile(model, FLOAT, x),
        "dynamic int8": lambda: inductor.compile(dynamic(), INT8, x),
        "torchao dynamic int8": lambda: inductor.compile(
            torchao(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)), FLOAT, x
        ),
        "int8 weights, eager": lambda: Eager().compile(weights(8), WEIGHTS, x),
        "int8 weights": lambda: inductor.compile(weights(8), WEIGHTS, x),
        "torchao int8 weights": lambda: inductor.compile(
            torchao(model, Int8WeightOnlyConfig(set_inductor_config=False)), FLOAT, x
        ),
        "int4 weights": lambda: inductor.compile(weights(4), WEIGHTS, x),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or hub id; without it, the sizes of MiniLM-L6 with random weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each length and batch size")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    source = {"pretrained": args.model} if args.model else {"config": SMALL | {"intermediate_size": 1536}}
    model = huggingface(**source, num_classes=2, vocab_size=30_000, pad_token_id=0, max_length=max(args.lengths))
    print("| tokens | batch | what | p50 ms | speedup |\n|---:|---:|---|---:|---|")
    for length in args.lengths:
        for batch_size in args.batch_sizes:
            ids = torch.randint(5, 30_000, (batch_size, length))
            x = (ids, torch.ones_like(ids))
            with torch.no_grad():
                sessions = {name: make() for name, make in cases(model, x).items()}
            series = interleaved(sessions, x, args.seconds, seed=0)
            for name in sessions:
                ratio = ratio_of_medians(series["eager"].samples, series[name].samples)
                p50 = float(torch.tensor(series[name].samples).median())
                interval = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
                print(f"| {length} | {batch_size} | {name} | {p50:.2f} | {interval} |", flush=True)


if __name__ == "__main__":
    main()
