"""The stage that removes channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.instantiate import is_dotted, locate
from optkit.core.records import REFERENCE
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task, rows_at_once
from optkit.prune.options import SENSITIVITY, CutOptions, reads_data
from optkit.prune.stages.steps import BATCH, Facts, SteppedPruning, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.prune.sensitivity import Sensitivity
    from optkit.prune.structured import Pruned

NOTHING = 1e-9


@dataclass(frozen=True)
class StructuredPruning(CutOptions, SteppedPruning):
    """Remove whole channels, with everything coupled to them, until the budget is met: at once, or in steps.

    What is cut follows from the seed and the data, except where the budget is latency: then it depends on the machine.

    Attributes:
        amount, budget, criterion, scope, round_to, floor, protect, parts, uniform, engine, threads: see `CutOptions`;
            the floor is a share of the channels before the first step.
        batches: how many batches a data-driven criterion sees, of 64 examples or of 2,048 tokens, drawn from train
            under the seed.
        sensitivity_examples: on how many validation examples the sensitivity is measured.
        batch_size: at which latency is measured, None for 1; for latency only.
        steps, training, between: see `SteppedPruning`.
    """

    amount: float = 0.5
    _: KW_ONLY
    budget: str = "macs"
    batches: int = 16
    sensitivity_examples: int = 1000
    batch_size: int | None = None

    surgery: ClassVar[str] = "prune.structured/1"
    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        SteppedPruning.__post_init__(self)
        if not isinstance(self.criterion, str):
            raise UserError(f"{self.criterion!r} is no name", key="criterion", fix="a stage names its criterion")
        CutOptions.__post_init__(self)
        self.check_timing("batch_size")
        check_count("batches", self.batches)
        check_count("sensitivity_examples", self.sensitivity_examples)

    @property
    def in_all_processes(self) -> bool:
        # by latency, what is cut follows from timings, which are each process's own
        return self.budget != "latency" and self._reads_data

    @property
    def _reads_data(self) -> bool:
        return self.scope == SENSITIVITY or reads_data(self.criterion)

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The machine and the engine that a latency is measured on; the threads where units are ranked on data."""
        of_data = context.on_cpu if self._reads_data else None
        if self.budget != "latency":
            return of_data
        from optkit.engines import ENGINES
        from optkit.measure.alone import machine_key

        return machine_key(ENGINES[self.engine or REFERENCE](), self.threads or context.threads) | {"data": of_data}

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if a criterion of one's own, tried on two examples, gives no scores for such a model."""
        if not is_dotted(self.criterion):
            return
        from optkit.prune.cut.criteria import own_scores

        own = locate(self.criterion, "criterion")
        batches = list(islice(task.batches("train", 2), 1))
        own_scores(own, self.criterion, module, batches, self._ranking(task, 0)["loss_fn"])

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        return self.in_steps(module, ctx, self.amount)

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        from optkit.prune.cut.selection import TooSmallError

        so_far = earlier[-1]["cut"] if earlier else {}
        left = _left(so_far, self.budget)
        floor_of = next((facts["units"] for facts in earlier if "units" in facts), None)
        try:
            pruned, table = self._cut(module, ctx, max(1 - (1 - amount) / left, NOTHING), floor_of)
        except TooSmallError:
            if left == 1 and amount == self.amount:  # the last step, and none has cut
                raise
            # channels go whole: this step's share is none
            return Outcome(module, {"cut": (so_far or _no_cut(module, ctx.task.example(1))) | {"amount": amount}})
        facts = pruned.plan.facts
        after = {name: value for name, value in facts.items() if "_after" in name} | {"amount": amount}
        if self.budget == "latency":  # timed against the step before
            after["latency_ratio"] = left * facts["latency_ratio"]
            after["latency_ratio_ci"] = (ci := facts["latency_ratio_ci"]) and [left * end for end in ci]
        found = {"cut": facts | so_far | after} | table
        if self.steps > 1 and floor_of is None:  # the floor is a share of these
            found["units"] = {layer["name"]: layer["units"] for layer in pruned.plan.layers}
        return Outcome(pruned.module, found, surgery=pruned.plan.to_dict())

    def _cut(
        self, module: nn.Module, ctx: Context, amount: float, floor_of: dict[str, int] | None = None
    ) -> tuple[Pruned, Facts]:
        """The cut, and the table that it went by as a fact, if it went by one."""
        from optkit.prune.structured import prune_structured

        table = self.measure_sensitivity(module, ctx.task, ctx.seed) if self.scope == SENSITIVITY else None
        example = ctx.task.example((self.batch_size or 1) if self.budget == "latency" else 2)
        pruned = prune_structured(
            module,
            example,
            floor_of=floor_of,
            sensitivity=table,
            **self.keywords() | {"amount": amount} | self._ranking(ctx.task, ctx.seed),
        )
        facts = pruned.plan.facts
        facts |= {name: facts[name] // len(example[0]) for name in ("macs_before", "macs_after")}
        return pruned, {"sensitivity": table.to_dict()} if table else {}

    def measure_sensitivity(self, module: nn.Module, task: Task, seed: int, metric: str = "loss") -> Sensitivity:
        """The module's curves on validation, its units ranked as this stage ranks them."""
        from optkit.measure.validation import Validation
        from optkit.prune.sensitivity import sensitivity

        evaluate = Validation(task, self.sensitivity_examples, metric)
        return sensitivity(
            module,
            task.example(2),
            evaluate,
            metric=metric if metric == "loss" else task.metrics[0].name,
            higher_is_better=evaluate.higher_is_better,
            metric_kind=None if metric == "loss" else task.metrics[0].kind,
            **self._ranking(task, seed),
        )

    def _ranking(self, task: Task, seed: int) -> dict[str, Any]:
        """The arguments that decide which units of a group go first."""
        return {
            "criterion": self.criterion,
            "protect": self.protect,
            "batches": islice(
                task.batches("train", rows_at_once(task, BATCH), seed=derive_seed(seed, "examples")), self.batches
            ),
            "loss_fn": lambda model, batch: task.loss(task.forward(model, batch), batch),
            "seed": seed,
        }

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        from optkit.prune.cut.plan import CutPlan

        for cut in surgery.get("steps", [surgery]):
            module = module if cut is None else CutPlan.from_dict(cut).apply(module)
        return module


def _no_cut(module: nn.Module, example: tuple[Tensor, ...]) -> Facts:
    """The facts of a cut that takes nothing."""
    sizes = size_of(module, example)
    return {f"{name}_{when}": value for name, value in sizes.items() for when in ("before", "after")}


def _left(cut: Facts, budget: str) -> float:
    """Share of the budget that the cuts so far left."""
    if not cut:
        return 1.0
    return cut.get("latency_ratio", 1.0) if budget == "latency" else cut[f"{budget}_after"] / cut[f"{budget}_before"]
