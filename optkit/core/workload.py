"""The contract of workloads: what one request to a session is, and in what it is counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.task import HasPrompts, Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """What is timed again and again.

    Attributes:
        call: makes one request.
        reset: called before each block of calls, not timed; None where calls leave nothing behind.
    """

    call: Callable[[], Any]
    reset: Callable[[], Any] | None = None


class Workload(ABC):
    """What is timed: a request, made again and again on inputs that stay the same.

    Attributes:
        name: in records.
        unit: what a request is counted in, which throughput is a second.
        generates: whether it asks a session for tokens (`optkit.core.generation.Generator`).
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    generates: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, task: Task, batch_size: int) -> tuple[Tensor, ...]:
        """The inputs of one request, ``(N, ...)`` each."""

    @abstractmethod
    def request(self, session: Any, inputs: tuple[Tensor, ...]) -> Request:
        """One request; what it needs besides is prepared here, and not timed.

        Args:
            session: takes the inputs.
            inputs: of one request, ``(N, ...)`` each.
        """

    @abstractmethod
    def count(self, inputs: tuple[Tensor, ...]) -> int:
        """How many units a request is."""

    def conditions(self) -> dict[str, Any]:
        """What its figures depend on besides engine and batch size; JSON."""
        return {}


@dataclass(frozen=True)
class ForwardPass(Workload):
    """One call of the model on a batch, counted in examples.

    Attributes:
        prompt_tokens: the examples are prompts of so many tokens; None for the task's own examples.
    """

    prompt_tokens: int | None = None

    name: ClassVar[str] = "forward"
    unit: ClassVar[str] = "examples"

    def inputs(self, task: Task, batch_size: int) -> tuple[Tensor, ...]:
        if self.prompt_tokens is None:
            return task.example(batch_size)
        return Prefill(self.prompt_tokens).inputs(task, batch_size)

    def request(self, session: Any, inputs: tuple[Tensor, ...]) -> Request:
        return Request(lambda: session(*inputs))

    def count(self, inputs: tuple[Tensor, ...]) -> int:
        return len(inputs[0])

    def conditions(self) -> dict[str, Any]:
        return {} if self.prompt_tokens is None else {"sequence_length": self.prompt_tokens}


@dataclass(frozen=True)
class Prefill(Workload):
    """Reading prompts up to the first new token, counted in prompt tokens.

    Attributes:
        prompt_tokens: of each prompt.
    """

    prompt_tokens: int

    name: ClassVar[str] = "prefill"
    unit: ClassVar[str] = "tokens"
    generates: ClassVar[bool] = True

    def inputs(self, task: Task, batch_size: int) -> tuple[Tensor, ...]:
        assert isinstance(task, HasPrompts)
        return (task.prompt(batch_size, self.prompt_tokens),)

    def request(self, session: Any, inputs: tuple[Tensor, ...]) -> Request:
        return Request(lambda: session.start(*inputs))

    def count(self, inputs: tuple[Tensor, ...]) -> int:
        return inputs[0].numel()

    def conditions(self) -> dict[str, Any]:
        return {"workload": self.name, "sequence_length": self.prompt_tokens}


@dataclass(frozen=True)
class Decode(Workload):
    """One further token of each row behind a prompt, counted in new tokens.

    Attributes:
        prompt_tokens: of each prompt; before each block of calls the session goes back to its end.
    """

    prompt_tokens: int

    name: ClassVar[str] = "decode"
    unit: ClassVar[str] = "tokens"
    generates: ClassVar[bool] = True

    def inputs(self, task: Task, batch_size: int) -> tuple[Tensor, ...]:
        return Prefill(self.prompt_tokens).inputs(task, batch_size)

    def request(self, session: Any, inputs: tuple[Tensor, ...]) -> Request:
        from optkit.core.generation import greedy

        (prompts,) = inputs
        token = greedy(session.start(prompts))
        return Request(lambda: session.step(token), lambda: session.rewind(prompts.shape[1]))

    def count(self, inputs: tuple[Tensor, ...]) -> int:
        return len(inputs[0])

    def conditions(self) -> dict[str, Any]:
        return {"workload": self.name, "sequence_length": self.prompt_tokens}


FORWARD = ForwardPass()
