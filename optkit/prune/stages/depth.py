"""The stage that removes whole blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task, model_inputs
from optkit.prune.options import check_depth
from optkit.prune.stages.steps import Facts, SteppedPruning, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn


MEASURED = ("loss", "influence")


@dataclass(frozen=True)
class DepthPruning(SteppedPruning):
    """Remove whole residual blocks, those that are missed least: at once, or in steps.

    Attributes:
        amount: share of the blocks to remove; this or `keep`.
        keep: how many blocks stay, or a list of those that do: places among all blocks, or patterns of their paths.
        by: loss (on validation), influence (1 minus the cosine of a block's input and output, on validation), position
            (those that stay are spread evenly, the first and the last among them), deepest (the last but the very last
            go) or random.
        greedy: by loss, measure again after every block removed; false measures all once.
        examples: on how many validation examples loss or influence is measured.
        steps, training, between: see `SteppedPruning`.
    """

    amount: float | None = 0.5
    keep: Any = None
    by: str = "loss"
    greedy: bool = True
    examples: int = 1000

    surgery: ClassVar[str] = "prune.depth/1"
    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth(self.amount, self.keep, self.by)
        check_count("examples", self.examples)
        if self.steps > 1 and self.keep is not None and type(self.keep) is not int:
            raise UserError("a list of blocks is removed at once", key="steps", value=self.steps, fix="steps=1")

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The device and its threads, where blocks are ranked on data."""
        return context.on_device if self.in_all_processes else None

    @property
    def in_all_processes(self) -> bool:
        return self.by in MEASURED and not isinstance(self.keep, list)

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if such a model has no blocks to spare. Called before any work."""
        from optkit.prune.depth import removable

        removable(module, task.example(2))

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.prune.depth import how_many_stay, removable

        blocks = [name for stack in removable(module, ctx.task.example(2)) for name in stack.block_paths()]
        return self.in_steps(module, ctx, 1 - how_many_stay(blocks, self.amount, self.keep) / len(blocks))

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        from optkit.measure.validation import Validation
        from optkit.prune.depth import prune_depth, removable

        example = ctx.task.example(2)
        so_far = earlier[-1]["depth"] if earlier else {}
        there = sum(len(stack.blocks) for stack in removable(module, example))
        total, now = so_far.get("blocks_before", there), so_far.get("blocks_after", there)
        keep = self.keep
        if not isinstance(keep, list):
            fewer = now - max(total - round(total * amount), 1)
            if fewer <= 0:  # blocks go whole: this step's share is none
                return Outcome(module, {"depth": so_far or {"blocks_before": now, "blocks_after": now, "removed": []}})
            keep = there - fewer
        module.to(ctx.device)
        data = Validation(ctx.task, self.examples) if self.by in MEASURED else None
        shortened = prune_depth(
            module,
            tuple(x.to(ctx.device) for x in example),
            keep=keep,
            by=self.by,
            evaluate=data,
            greedy=self.greedy,
            batches=None if data is None else [model_inputs(ctx.task, batch.to(ctx.device)) for batch in data.batches],
            seed=derive_seed(ctx.seed, "random"),
        )
        shorter = shortened.module.cpu()
        before, after = size_of(module.cpu(), example), size_of(shorter, example)
        facts = shortened.plan.facts | {f"{name}_before": value for name, value in before.items()}
        facts |= {f"{name}_after": value for name, value in after.items()}
        if earlier:
            facts |= {name: value for name, value in so_far.items() if "_before" in name}
            facts["removed"] = [*so_far["removed"], *facts["removed"]]
            facts["blocks_after"] = now - fewer
        return Outcome(shorter, {"depth": facts}, surgery=shortened.plan.to_dict())

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        from optkit.prune.depth import DepthPlan

        for cut in surgery.get("steps", [surgery]):
            module = module if cut is None else DepthPlan.from_dict(cut).apply(module)
        return module
