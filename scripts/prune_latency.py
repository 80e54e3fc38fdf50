"""What a cut that halves the MACs brings on each engine, and what ``round_to`` adds.

    python scripts/prune_latency.py [--depths 20 56] [--batch-sizes 1 32] [--round-to 1 4 8] [--threads 2]

CIFAR ResNets. The dense model and all its cuts are timed in turn in the same rounds, on eager fp32, inductor fp32 and
inductor int8; every ratio is dense over cut on the same engine, with its 95% interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from optkit.core.engine import Session
from optkit.core.macs import count_macs
from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import Eager, Inductor
from optkit.measure.latency import interleaved
from optkit.models import ResNetCIFAR
from optkit.prune import prune_structured
from optkit.quantize import quantize_static

FLOAT = Variant("float", None, frozenset({"float"}), {})
INT8 = Variant("int8", None, frozenset({"int8"}), {})


def int8_session(model: nn.Module, x: Tensor) -> Session:
    """The model in int8 on inductor; calibrated on noise, which changes no latency."""
    images = torch.randn(8, *x.shape[1:])
    return Inductor().compile(quantize_static(model, (images,), [(images,)]).module, INT8, (x,))


ENGINES: dict[str, Callable[[nn.Module, Tensor], Session]] = {
    "eager": lambda model, x: Eager().compile(model, FLOAT, (x,)),
    "inductor": lambda model, x: Inductor().compile(model, FLOAT, (x,)),
    "inductor int8": int8_session,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each engine and batch size")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    columns = [f"{engine}, batch {size}" for engine in ENGINES for size in args.batch_sizes]
    print("| model | round_to | MACs, dense/cut | " + " | ".join(columns) + " |")
    print("|---|---:|---:|" + "---|" * len(columns))
    for depth in args.depths:
        dense = ResNetCIFAR(depth).eval()
        image = (torch.randn(2, 3, 32, 32),)
        cuts = {n: prune_structured(dense, image, amount=0.5, budget="macs", round_to=n).model for n in args.round_to}
        cells: dict[int, list[str]] = {
            n: [f"ResNet-{depth}", str(n), f"{count_macs(dense, image) / count_macs(cut, image):.2f}"]
            for n, cut in cuts.items()
        }
        for compile_ in ENGINES.values():
            for batch_size in args.batch_sizes:
                x = torch.randn(batch_size, 3, 32, 32)
                sessions = {str(n): compile_(model.eval(), x) for n, model in {0: dense, **cuts}.items()}
                series = interleaved(sessions, (x,), args.seconds, seed=0)
                for n in cuts:
                    ratio = ratio_of_medians(series["0"].samples, series[str(n)].samples)
                    cells[n].append(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
        for row in cells.values():
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
