"""What quantization may be asked for: the names and numbers that functions and stages check."""

from __future__ import annotations

OBSERVERS = ("minmax", "moving_average", "histogram", "percentile", "entropy")
ROUNDINGS = ("nearest", "gptq")
BITS, GROUP_SIZES = (8, 4), (32, 64, 128, 256)  # of weight-only quantization
# 2: computed weights are folded, padding has numbers, and one-dimensional convolutions are int8 on inductor
REVISION = 2
