"""The contract of workloads: what one request to a session is, and in what it is counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.core.engine import Session


class Workload(ABC):
    """What is timed: a request, made again and again on inputs that stay the same.

    Attributes:
        name: in records.
        unit: what a request is counted in, which throughput is a second.
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def request(self, session: Session, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        """A function that makes one request; what it needs besides is prepared here, and not timed.

        Args:
            session: takes the inputs.
            inputs: of one request, ``(N, ...)`` each.
        """

    @abstractmethod
    def count(self, inputs: tuple[Tensor, ...]) -> int:
        """How many units a request is."""


class ForwardPass(Workload):
    """One call of the model on a batch, counted in examples."""

    name = "forward"
    unit = "examples"

    def request(self, session: Session, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        return lambda: session(*inputs)

    def count(self, inputs: tuple[Tensor, ...]) -> int:
        return len(inputs[0])


FORWARD = ForwardPass()
