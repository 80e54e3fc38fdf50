"""What weights become: bits, groups, symmetric or not; and the options that say so. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.errors import UserError

BITS, KERNEL_GROUPS = (8, 4, 3), (32, 64, 128, 256)  # groups: of torch's kernel for 4 bits
ROUNDINGS = ("nearest", "gptq", "awq", "gptq+awq")
AUTO, AUTO_GROUP = "auto", 64


@dataclass(frozen=True)
class Scheme:
    """How weights become integers: ``(integer - zero point) * scale``.

    Attributes:
        bits: of an integer, which is signed.
        group_size: how many inputs share a scale; None where all inputs of an output do.
        symmetric: whether every zero point is 0.
    """

    bits: int = 8
    group_size: int | None = None
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The lowest integer."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest integer."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, inputs: int) -> int:
        """How many scales an output has."""
        return inputs // (self.group_size or inputs)

    @classmethod
    def of(cls, bits: int, group_size: int | str | None, symmetric: bool | None, key: str = "bits") -> Scheme:
        """The scheme that options mean.

        Args:
            bits: 8, 4 or 3.
            group_size: ``auto`` is None for 8 bits, and 64 for fewer.
            symmetric: None is True for 8 bits, and False for fewer.
            key: what an error calls the bits.

        Raises:
            UserError: an option out of its range.
        """
        check_choice(key, bits, BITS)
        check_choice("symmetric", symmetric, (None, True, False))
        size = (None if bits == 8 else AUTO_GROUP) if group_size == AUTO else group_size
        if size is not None:
            check_count("group_size", size, 2)
        assert not isinstance(size, str)
        return cls(bits, size, bits == 8 if symmetric is None else symmetric)

    @property
    def has_kernel(self) -> bool:
        """Whether torch multiplies by such integers."""
        if self.bits == 8:
            return self.group_size is None and self.symmetric
        return self.group_size in KERNEL_GROUPS


def vocabulary_scheme(bits: int | None, embeddings: bool, head: bool) -> Scheme | None:
    """The scheme of embeddings and heads that have bits of their own; None for those of the other layers.

    Raises:
        UserError: bits out of their range, or for layers that stay in float.
    """
    if bits is None:
        return None
    scheme = Scheme.of(bits, AUTO, None, "vocabulary_bits")
    if not (embeddings or head):
        message = "embeddings and heads stay in float"
        raise UserError(message, key="vocabulary_bits", value=bits, fix="embeddings=true, or head=true")
    return scheme


def reads_data(rounding: str, smooth: float | None) -> bool:
    """Whether weights are rounded, or activations scaled, by calibration data."""
    return rounding != "nearest" or smooth is not None


def check_scaling(rounding: str, smooth: float | None) -> None:
    """Raises UserError for an alpha out of its range, or beside AWQ."""
    if smooth is not None:
        check_share("smooth", smooth)
        if "awq" in rounding:
            message = "AWQ scales the same activations for the weights"
            raise UserError(message, key="smooth", value=smooth, fix="rounding=gptq or nearest")
