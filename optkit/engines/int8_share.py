"""The share of a variant's MACs that an engine's int8 kernels do: proof that int8 is int8."""

from __future__ import annotations

from optkit.core.errors import StageError
from optkit.core.variant import Variant

COUNTED_ALIKE = 0.02  # engines pad channels, and fold what one product reads twice


def int8_share(engine: str, variant: Variant, in_int8: int, macs: int, looked_at: str) -> float:
    """The share, from 0 to 1.

    Args:
        engine: its name.
        variant: whose traits say whether it is to be int8.
        in_int8: MACs of the engine's int8 kernels in one call.
        macs: of the module in one call.
        looked_at: what the kernels were counted in, for the errors.

    Raises:
        StageError: a variant with the trait of int8 that has none, or more MACs in int8 than the module has.
    """
    share = in_int8 / max(macs, 1)
    if share > 1 + COUNTED_ALIKE:
        message = f"{engine}: its int8 kernels do {share:.2f} times the MACs of the module ({in_int8} of {macs})"
        raise StageError(f"{message}, so one of the two is counted wrong; looked at: {looked_at}")
    if "int8" in variant.traits and share == 0:
        message = f"{engine} runs nothing of this int8 variant in int8 kernels; looked at: {looked_at}"
        raise StageError(message, fix="another target, or leave the model in float")
    return min(share, 1.0)
