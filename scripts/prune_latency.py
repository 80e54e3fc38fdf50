"""What a cut that halves the MACs brings on each engine, and what ``round_to`` adds.

    python scripts/prune_latency.py [--depths 20 56] [--batch-sizes 1 32] [--round-to 1 4 8] [--threads 2]

CIFAR ResNets. The dense model and all its cuts are timed in turn in the same rounds; every ratio is dense over cut on
the same engine, with its 95% interval.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from optkit import engines
from optkit.core.engine import Session
from optkit.core.macs import count_macs
from optkit.core.statistics import ratio_of_medians
from optkit.measure.latency import interleaved
from optkit.models import ResNetCIFAR
from optkit.prune import prune_structured
from optkit.quantize import quantize_static

TARGETS = ("inductor", "openvino", "onnxruntime")


def compiled(engine: str, model: nn.Module, x: Tensor) -> Session:
    """The model on an engine, such as ``openvino int8``; calibrated on noise, which changes no latency."""
    name, _, int8 = engine.partition(" ")
    if int8:
        images = torch.randn(8, *x.shape[1:])
        model = quantize_static(model, (images,), [(images,)], target=name).module
    return engines.compile(model, (x,), engine=name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--engines", nargs="+", default=["eager", *TARGETS, *(f"{name} int8" for name in TARGETS)])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each engine and batch size")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    columns = [f"round_to {n}" for n in args.round_to]
    print("| model | engine | batch | dense ms | " + " | ".join(columns) + " |")
    print("|---|---|---:|---:|" + "---|" * len(columns))
    for depth in args.depths:
        dense = ResNetCIFAR(depth).eval()
        image = (torch.randn(2, 3, 32, 32),)
        cuts = {n: prune_structured(dense, image, amount=0.5, budget="macs", round_to=n).module for n in args.round_to}
        ratios = [f"{count_macs(dense, image) / count_macs(cut, image):.2f}" for cut in cuts.values()]
        print(f"| ResNet-{depth} | MACs | | | {' | '.join(ratios)} |", flush=True)
        for engine in args.engines:
            for batch_size in args.batch_sizes:
                x = torch.randn(batch_size, 3, 32, 32)
                sessions = {str(n): compiled(engine, m.eval(), x) for n, m in {0: dense, **cuts}.items()}
                series = interleaved(sessions, (x,), args.seconds, seed=0)
                cells = []
                for n in cuts:
                    ratio = ratio_of_medians(series["0"].samples, series[str(n)].samples)
                    cells.append(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
                first = f"{np.median(series['0'].samples):.2f}"
                print(f"| ResNet-{depth} | {engine} | {batch_size} | {first} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
