"""The stage that removes channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_count
from optkit.core.records import REFERENCE
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task
from optkit.prune.cut.arguments import FLOOR, NEED_DATA, SENSITIVITY, check_arguments
from optkit.prune.stages.steps import Facts, SteppedPruning, size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.prune.sensitivity import Sensitivity
    from optkit.prune.structured import Pruned

NOTHING = 1e-9


@dataclass
class StructuredPruning(SteppedPruning):
    """Remove whole channels, with everything coupled to them, until the budget is met: at once, or in steps.

    What is cut follows from the seed and the data, except where the budget is latency: then it depends on the machine.

    Attributes:
        amount: share of the budget to remove.
        budget: what the amount is a share of: params, macs or latency.
        criterion: how channels are ranked, a name of ``optkit.prune.cut.arguments.CRITERIA``; those that need data see
            a sample of train.
        scope: rank all layers together (global), each by itself (local), or cut where the loss on validation suffers
            least for what is saved (sensitivity).
        round_to: keep multiples of so many channels; None is 8 for latency and 1 otherwise.
        floor: share of each layer's channels that always stays, in steps of those before the first.
        protect: name patterns of layers whose channels stay.
        batches: how many batches of 64 a data-driven criterion sees, drawn from train under the seed.
        sensitivity_examples: on how many validation examples the sensitivity is measured.
        engine: where latency is measured, None for the reference (eager); for latency only, as are the next two.
        threads: torch threads while it is measured, None for those of the run.
        batch_size: at which it is measured, None for 1.
        steps, training, between: see `SteppedPruning`.
    """

    amount: float = 0.5
    budget: str = "macs"
    criterion: str = "l2"
    scope: str = "global"
    round_to: int | None = None
    floor: float = FLOOR
    protect: list[str] = field(default_factory=list)
    batches: int = 16
    sensitivity_examples: int = 1000
    engine: str | None = None
    threads: int | None = None
    batch_size: int | None = None

    surgery: ClassVar[str] = "prune.structured/1"
    technique: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"cut"})
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        timing = {"engine": self.engine, "threads": self.threads, "batch_size": self.batch_size}
        check_arguments(self.amount, self.budget, self.criterion, self.scope, self.round_to, self.floor, **timing)
        check_count("batches", self.batches)
        check_count("sensitivity_examples", self.sensitivity_examples)

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The machine and the engine that a latency is measured on; the threads where units are ranked on data."""
        of_data = context.on_cpu if self.scope == SENSITIVITY or self.criterion in NEED_DATA else None
        if self.budget != "latency":
            return of_data
        from optkit.engines import ENGINES
        from optkit.prune.latency.table import machine_key

        return machine_key(ENGINES[self.engine or REFERENCE](), self.threads or context.threads) | {"data": of_data}

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
            amount=amount,
            budget=self.budget,
            scope=self.scope,
            round_to=self.round_to,
            floor=self.floor,
            floor_of=floor_of,
            engine=self.engine,
            threads=self.threads,
            sensitivity=table,
            **self._ranking(ctx.task, ctx.seed),
        )
        facts = pruned.plan.facts
        facts |= {name: facts[name] // len(example[0]) for name in ("macs_before", "macs_after")}
        return pruned, {"sensitivity": table.to_dict()} if table else {}

    def measure_sensitivity(self, module: nn.Module, task: Task, seed: int, metric: str = "loss") -> Sensitivity:
        """The module's curves on validation, its units ranked as this stage ranks them."""
        from optkit.measure.validation import Validation
        from optkit.prune.sensitivity import sensitivity

        evaluate = Validation(task, self.sensitivity_examples, metric)
        return sensitivity(module, task.example(2), evaluate, metric=metric, **self._ranking(task, seed))

    def _ranking(self, task: Task, seed: int) -> dict[str, Any]:
        """The arguments that decide which units of a group go first."""
        return {
            "criterion": self.criterion,
            "protect": tuple(self.protect),
            "batches": islice(task.batches("train", 64, seed=derive_seed(seed, "examples")), self.batches),
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
