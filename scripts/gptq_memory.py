"""How much memory the rounding of a language model's weights takes beside the model itself.

A Llama with random weights is made from sizes, quantized in place, and the peak of the process is read from the system.
The last line is JSON: ``beside_mb`` is the peak over what the process took when the model was ready. The defaults are
TinyLlama's sizes, 1.1 billion parameters.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from optkit.models import language_model
from optkit.quantize import quantize_weight_only
from optkit.quantize.weights.scheme import ROUNDINGS


def main() -> None:
    """Builds, quantizes, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "hidden": 2048, "intermediate": 5632, "layers": 22, "heads": 32, "kv-heads": 4, "vocabulary": 32000,
        "sequences": 8, "length": 2048, "bits": 4,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounding", choices=ROUNDINGS[1:], default="gptq")
    given = parser.parse_args()
    torch.manual_seed(0)
    config = {
        "model_type": "llama",
        "hidden_size": given.hidden,
        "intermediate_size": given.intermediate,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.heads,
        "num_key_value_heads": given.kv_heads,
        "vocab_size": given.vocabulary,
        "max_position_embeddings": given.length,
    }
    model = language_model(config=config)
    parameters = sum(x.numel() for x in model.parameters())
    batches = [(torch.randint(0, given.vocabulary, (1, given.length)),) for _ in range(given.sequences)]
    before, started = resident_mb(), time.perf_counter()
    found = quantize_weight_only(model, bits=given.bits, rounding=given.rounding, batches=batches, in_place=True)
    figures = {
        "parameters": parameters,
        "model_mb": round(4 * parameters / 2**20),
        "before_mb": before,
        "peak_mb": peak_mb(),
        "beside_mb": peak_mb() - before,
        "after_mb": resident_mb(),
        "layers": len(found.layers),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(figures))


def resident_mb() -> int:
    """What the process takes now."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def peak_mb() -> int:
    """The most that the process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
