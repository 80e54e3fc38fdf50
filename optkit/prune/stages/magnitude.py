"""The stages that set weights to zero share what to zero; the one here does it at once, or in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice, check_share
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.prune.options import SCOPES
from optkit.prune.pattern import Pattern
from optkit.prune.stages.steps import Facts, SteppedPruning

if TYPE_CHECKING:
    from torch import nn

    from optkit.prune.masks import Masks


@dataclass(frozen=True)
class Masking:
    """Which weights go.

    Attributes:
        amount: share of the convolution and linear weights to remove; None with a pattern.
        scope: rank all layers together (global) or each by itself (local).
        pattern: "N:M" keeps N of every M weights in a row along the input dimension; None for any place.
        protect: name patterns of layers whose weights stay, and are not counted.
    """

    amount: float | None = 0.5
    scope: str = "global"
    pattern: str | None = None
    protect: list[str] = field(default_factory=list)

    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"sparse"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, SCOPES)
        pattern = self.parsed
        if pattern is None:
            check_share("amount", self.amount)
        elif self.amount not in (None, pattern.removed):
            message = f"the pattern {self.pattern} removes {pattern.removed:.3g}, not {self.amount}"
            raise UserError(message, key="amount", value=self.amount, fix="null leaves it to the pattern")

    @property
    def parsed(self) -> Pattern | None:
        return None if self.pattern is None else Pattern.parse(self.pattern)

    @property
    def share(self) -> float:
        """The share of the weights that goes in the end."""
        if self.parsed is not None:
            return self.parsed.removed
        assert self.amount is not None
        return self.amount

    def masks(self, module: nn.Module, share: float) -> Masks:
        """What is kept when this share is gone."""
        from optkit.prune.masks import magnitude_masks

        return magnitude_masks(module, share, self.scope, self.parsed, self.protect)

    def facts(self, module: nn.Module, masks: Masks) -> dict[str, Any]:
        """What the masks removed, layer by layer, which layers they left whole, and what that is good for here."""
        from optkit.prune.masks import masked_weights

        return {
            "pattern": self.pattern,
            "weights": sum(keep.numel() for keep in masks.values()),
            "weights_removed": sum(int((~keep).sum()) for keep in masks.values()),
            "sparsity": {name: round(float((~keep).float().mean()), 4) for name, keep in masks.items()},
            "left_whole": sorted(masked_weights(module).keys() - masks.keys()),
            "kernels": "dense, so masks change no latency; 2:4 in linear layers is sparse on the cuda engine",
        }


@dataclass(frozen=True)
class MagnitudePruning(SteppedPruning, Masking):
    """Set the smallest weights to zero; shapes stay as they are, and latency but for 2:4 on a GPU.

    Attributes:
        amount, scope, pattern, protect: see `Masking`.
        steps, training, between: see `SteppedPruning`.
    """

    def __post_init__(self) -> None:
        SteppedPruning.__post_init__(self)
        Masking.__post_init__(self)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        return self.in_steps(module, ctx, self.share)

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        from optkit.prune.masks import apply_masks_

        masks = self.masks(module, amount)
        apply_masks_(module, masks)
        return Outcome(module, self.facts(module, masks))
