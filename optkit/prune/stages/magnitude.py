"""The stages that set weights to zero share what to zero; the one here does it at once, or in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.errors import UserError
from optkit.core.seeds import derive_seed
from optkit.core.sharding import sharded
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import model_inputs
from optkit.prune.options import MAGNITUDE, MASK_CRITERIA, MASKED_BY_DATA, RANDOM, SCOPES
from optkit.prune.pattern import Pattern
from optkit.prune.stages.steps import Facts, SteppedPruning, examples_of

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
        if self.scope is not None:
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
    """Set single weights to zero; shapes stay as they are, and latency but for 2:4 on a GPU.

    Attributes:
        amount, pattern, protect: see `Masking`.
        scope: rank all layers together (global) or each by itself (local); None is global, and local for the criteria
            that read data, which know no other.
        criterion: which weights go: magnitude (the smallest), wanda and sparsegpt (see `sequential_masks_`; linear
            layers of residual blocks), or random.
        examples: of train that wanda and sparsegpt read.
        steps, training, between: see `SteppedPruning`.
    """

    scope: str | None = None  # type: ignore[assignment]
    criterion: str = MAGNITUDE
    examples: int = 128

    def __post_init__(self) -> None:
        SteppedPruning.__post_init__(self)
        Masking.__post_init__(self)
        check_choice("criterion", self.criterion, MASK_CRITERIA)
        check_count("examples", self.examples)
        if self.criterion not in MASKED_BY_DATA:
            return
        if self.scope == "global":
            message = f"{self.criterion} gives each layer the same share"
            raise UserError(message, key="scope", value=self.scope, fix="scope=local, or criterion=magnitude")
        if self.pattern is not None and self.steps > 1:
            message = f"{self.criterion} reaches a pattern at once"
            raise UserError(message, key="steps", value=self.steps, fix="steps=1, or criterion=magnitude")

    @property
    def in_all_processes(self) -> bool:
        return self.criterion in MASKED_BY_DATA

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The device and its threads, where weights are ranked on data."""
        return context.on_device if self.criterion in MASKED_BY_DATA else None

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        return self.in_steps(module, ctx, self.share)

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        from optkit.prune.masks import apply_masks_, magnitude_masks, random_masks
        from optkit.prune.sequential_masks import sequential_masks_

        if self.criterion in MASKED_BY_DATA:
            module.to(ctx.device)
            read = sharded(examples_of(ctx.task, self.examples, ctx.seed))
            masks = sequential_masks_(
                module.eval(),
                [model_inputs(ctx.task, batch.to(ctx.device)) for batch in read],
                criterion=self.criterion,
                amount=amount if self.pattern is None else None,
                pattern=self.parsed,
                protect=self.protect,
            )
            module.cpu()
        else:
            scope = self.scope or "global"
            if self.criterion == RANDOM:
                masks = random_masks(module, amount, scope, self.parsed, self.protect, derive_seed(ctx.seed, RANDOM))
            else:
                masks = magnitude_masks(module, amount, scope, self.parsed, self.protect)
            apply_masks_(module, masks)
        return Outcome(module, self.facts(module, masks) | {"criterion": self.criterion})
