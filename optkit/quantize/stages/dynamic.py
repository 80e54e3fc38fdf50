"""The stage of dynamic int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice
from optkit.core.engine import made_for
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task
from optkit.quantize.graph.targets.registry import check_target, code_of_target, made_by, saved_target
from optkit.quantize.options import REVISION, definite_range
from optkit.quantize.stages.generation import refuse_generative

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class DynamicQuantization:
    """int8 for linear layers, activations scaled at every call (torchao PT2E); needs no data.

    Attributes:
        target: the engine whose kernels the graph is annotated for.
        reduce_range: 7 bits for weights; null: where this processor's int8 kernels would overflow with 8.
    """

    target: str = "inductor"
    reduce_range: bool | None = None

    surgery: ClassVar[str] = "quantize.dynamic/1"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    @property
    def adds(self) -> frozenset[str]:
        return made_for(self.target)

    def __post_init__(self) -> None:
        check_target(self.target, dynamic=True)
        check_choice("reduce_range", self.reduce_range, (None, True, False))

    def depends_on(self, context: KeyContext) -> list[Any]:
        """What a null `reduce_range` means on this processor, and the code of the target."""
        return [definite_range(self.reduce_range), code_of_target(self.target)]

    def check(self, module: nn.Module, task: Task) -> None:
        from optkit.quantize.dynamic import check_linears

        refuse_generative(module, "quantize/dynamic")
        check_linears(module)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.core.probe import EXAMPLES
        from optkit.quantize.dynamic import describe_dynamic, quantize_dynamic

        example = ctx.task.example(EXAMPLES)
        found = quantize_dynamic(module.eval(), example, target=self.target, reduce_range=self.reduce_range)
        facts = describe_dynamic(found.module) | {"weight_bits": 7 if found.reduce_range else 8}
        return Outcome(
            found.module,
            facts,
            surgery={"reduce_range": found.reduce_range, "target": found.target, "revision": REVISION}
            | made_by(found.target),
        )

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        from optkit.quantize.dynamic import replay_dynamic

        revision = surgery.get("revision", 1)
        return replay_dynamic(module, example, surgery["reduce_range"], saved_target(surgery), revision)
