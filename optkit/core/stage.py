"""The Stage protocol: one step of a chain, and what it is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from optkit.core.errors import StageError
from optkit.core.task import Task
from optkit.core.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import nn


def _no_other(variant_id: str) -> nn.Module:
    raise StageError(f"there is no other variant {variant_id} here")


@dataclass(frozen=True)
class Context:
    """What a stage may use besides the module.

    Attributes:
        task: the task with its test split sealed: train and validation only.
        variant: the variant the module belongs to.
        baseline: gives a fresh copy of the recipe's baseline module (the default teacher).
        build_model: builds another model spec for the task (a teacher, a student).
        seed: for every random choice of this stage.
        device: where to train and calibrate.
        workdir: a folder kept until the stage is done; what is put there survives a kill.
        module_of: gives a copy of another variant of this run that was made before, by id.
        max_steps: at most so many training steps or calibration batches (a smoke run); None for no limit.
    """

    task: Task
    variant: Variant
    baseline: Callable[[], nn.Module]
    build_model: Callable[[dict[str, Any]], nn.Module]
    seed: int
    device: torch.device
    workdir: Path
    max_steps: int | None = None
    module_of: Callable[[str], nn.Module] = _no_other


@dataclass(frozen=True)
class Outcome:
    """What a stage made.

    Attributes:
        module: the new module.
        facts: JSON-able account of what was done (channels cut, layers quantized, epochs trained).
        surgery: JSON-able data from which the stage class's ``replay`` rebuilds the structure on a fresh module;
            None when only weights changed.
        resumed_s: seconds spent on this stage by earlier, interrupted processes.
    """

    module: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    surgery: dict[str, Any] | None = None
    resumed_s: float = 0.0


@runtime_checkable
class Stage(Protocol):
    """A dataclass whose fields are its config, their ranges checked in ``__post_init__``.

    A stage with a surgery also has a static ``replay(module, surgery, example) -> nn.Module`` that applies it to a
    fresh module without data. It is saved under the stage's dotted path; optkit's own stages give it a name that stays
    when files move, their ``surgery`` (`optkit.core.surgeries`).

    Of several processes the first applies a stage. All of them apply one that trains, and one whose
    ``in_all_processes`` is true: it shares out its data (`optkit.core.sharding`) and makes the same in each.
    """

    technique: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    adds: ClassVar[frozenset[str]]
    drops: ClassVar[frozenset[str]]

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        """Turns one variant's module into the next; may change ``module`` in place."""
        ...


@dataclass(frozen=True)
class KeyContext:
    """What is known when a variant is named, before any work.

    Attributes:
        baseline: id of the recipe's baseline; None for a stage that comes before it.
        identify: gives what tells a model spec's structure, code and first weights from others; JSON.
        device: where stages train.
        threads: torch threads of the run.
    """

    baseline: str | None
    identify: Callable[[dict[str, Any]], Any]
    device: torch.device
    threads: int

    @property
    def on_cpu(self) -> dict[str, Any]:
        """What decides the order in which numbers are added up on the CPU, and so the last bits of the result; JSON.

        It is for a stage whose result follows from sums over data: a training, a calibration, a ranking by losses.
        """
        return {"device": "cpu", "threads": self.threads}

    @property
    def on_device(self) -> dict[str, Any]:
        """The same where stages train. On a GPU the threads of the CPU decide nothing."""
        return self.on_cpu if self.device.type == "cpu" else {"device": self.device.type}


@runtime_checkable
class ExtendsKey(Protocol):
    """A stage, or a part of one (its trainer), whose result depends on more than module, fields, task and seed."""

    def depends_on(self, context: KeyContext) -> Any:
        """What else it depends on (another model's identity, what this processor makes of ``auto``), as JSON.

        It is part of the id of the stage's variant.
        """
        ...


@runtime_checkable
class ChecksModel(Protocol):
    """A stage that some models are not fit for, and that can tell before any work."""

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if it cannot work on such a model.

        Args:
            module: as the recipe builds it, before any stage; not to be changed.
            task: the task, its test split sealed.
        """
        ...
