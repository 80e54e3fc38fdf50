"""What is compared: modules, results of optkit's functions, sessions and variants on disk; and on which engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.artifact import open_artifact
from optkit.core.engine import MADE_FOR, Engine, Session
from optkit.core.errors import OptkitError, UserError, did_you_mean, first_line
from optkit.core.generation import Generative, Generator
from optkit.core.loaders import as_example
from optkit.core.variant import Variant
from optkit.engines.compiling import as_variant
from optkit.engines.loading import load
from optkit.engines.registry import ENGINES
from optkit.engines.saved import ENGINE

Engines = str | Engine | Sequence[str | Engine] | Mapping[str, str | Engine]


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Attributes:
        name: the user's.
        module: to be compiled; None where there is a session.
        variant: of the module.
        session: compiled already, for its own engine.
    """

    name: str
    module: nn.Module | None = None
    variant: Variant | None = None
    session: Session | None = None

    def engines(self, asked: Mapping[str, Engine]) -> Mapping[str, Engine | None]:
        """Where it runs, by name: on the engines that are asked for, or on that of its session."""
        if self.session is None:
            return asked
        engine = getattr(self.session, "engine", None)
        return {getattr(engine, "name", type(self.session).__name__): None}

    @property
    def generates(self) -> bool:
        """Whether it can be asked for tokens."""
        return isinstance(self.session, Generator) if self.module is None else isinstance(self.module, Generative)

    @property
    def longest(self) -> int | None:
        """The most tokens that it takes, where it says so."""
        return getattr(self.module, "longest", None)

    def unsupported(self, engine: Engine | None) -> str | None:
        """Why it cannot run there as what it claims to be."""
        return engine.unsupported(self.variant.traits) if engine is not None and self.variant is not None else None

    def check_takes(self, example: tuple[Tensor, ...]) -> None:
        """Raises UserError if it does not take the example."""
        run = self.session if self.module is None else self.module
        assert run is not None
        try:
            with torch.no_grad():
                run(*example)
        except (RuntimeError, TypeError, ValueError, IndexError, OptkitError) as error:
            shapes = ", ".join(str(list(x.shape)) for x in example)
            message = f"does not take the example {shapes}: {type(error).__name__}: {first_line(error)}"
            raise UserError(
                message, key=f"models[{self.name!r}]", fix="inputs are what the model is called with"
            ) from error

    def compile(self, engine: Engine | None, example: tuple[Tensor, ...]) -> Session:
        """Its session; raises StageError where the engine cannot compile it."""
        if engine is None or self.module is None or self.variant is None:
            assert self.session is not None
            return self.session
        return engine.compile(self.module, self.variant, example)


def candidates(models: Any) -> list[Candidate]:
    """The models of a mapping, by name.

    Raises:
        UserError: no mapping, an empty one, or a value that is no model.
    """
    if not isinstance(models, Mapping) or not models or not all(isinstance(name, str) and name for name in models):
        message = f"{type(models).__name__} is no mapping from names to models" if models else "there is no model"
        raise UserError(message, key="models", fix='such as {"fp32": model, "int8": int8}')
    return [_candidate(name, model) for name, model in models.items()]


def _candidate(name: str, model: Any) -> Candidate:
    key = f"models[{name!r}]"
    if isinstance(model, (str, Path)):
        folder = Path(model)
        artifact = open_artifact(folder)
        if (folder / ENGINE).is_file():
            opened = load(folder)
            assert not isinstance(opened, nn.Module)
            return Candidate(name, session=opened)
        return Candidate(name, artifact.module(), artifact.variant)
    if not isinstance(model, nn.Module) and callable(model) and callable(getattr(model, "facts", None)):
        return Candidate(name, session=model)
    try:
        module, variant = as_variant(model)
    except UserError as error:
        fix = "an nn.Module, what quantize_static and the like return, a session, or the folder of a variant"
        raise UserError(error.message, key=key, fix=fix) from error
    if module.training and MADE_FOR not in getattr(module, "meta", {}):
        raise UserError("the model is in train mode", key=key, fix="model.eval()")
    return Candidate(name, module, variant)


def find_reference(models: Sequence[Candidate], name: str | None) -> Candidate:
    """The model that the others are compared with: the one of this name, or the first."""
    if name is None:
        return models[0]
    for model in models:
        if model.name == name:
            return model
    fix = did_you_mean(str(name), [model.name for model in models])
    raise UserError(f"no model '{name}'", key="reference", value=name, fix=fix)


def find_engines(given: Engines) -> dict[str, Engine]:
    """Engines by name.

    Raises:
        UserError: none, an unknown one, one that does not work here, or two of one name.
    """
    if isinstance(given, (str, Engine)):
        given = [given]
    named = list(given.items()) if isinstance(given, Mapping) else [(None, one) for one in given]
    found: dict[str, Engine] = {}
    for own_name, one in named:
        if not isinstance(one, (str, Engine)):
            fix = "a name such as 'onnxruntime', or an engine such as OpenVINO(precision='bf16')"
            raise UserError(f"a {type(one).__name__} is no engine", key="engines", value=one, fix=fix)
        engine = ENGINES.find(one, "engines")() if isinstance(one, str) else one
        name = own_name or engine.name
        if reason := engine.unavailable():
            raise UserError(f"{name} does not work here: {reason}", key="engines", value=name)
        if name in found:
            fix = "a mapping names them: engines={'fp32': OpenVINO(), 'bf16': OpenVINO(precision='bf16')}"
            raise UserError(f"two engines are named '{name}'", key="engines", value=name, fix=fix)
        found[name] = engine
    if not found:
        raise UserError("there is no engine", key="engines", fix="such as ('eager', 'onnxruntime')")
    return found


def example_of(inputs: Any) -> tuple[Tensor, ...]:
    """The example inputs as a tuple of tensors on the CPU.

    Raises:
        UserError: anything else.
    """
    found = as_example(inputs, "inputs")
    if elsewhere := {str(x.device) for x in found if x.device.type != "cpu"}:
        fix = "sessions take tensors on the CPU: x.cpu()"
        raise UserError(f"the example is on {elsewhere.pop()}", key="inputs", fix=fix)
    return found


def batch_size_of(example: tuple[Tensor, ...]) -> int:
    """How many examples it holds: the first dimension of its first input, 1 for a number."""
    return len(example[0]) if example[0].dim() else 1


def resized(example: tuple[Tensor, ...], batch_size: int) -> tuple[Tensor, ...]:
    """The example at another batch size: its rows repeated, or the first of them.

    Raises:
        UserError: its inputs have not all as many rows.
    """
    sizes = {len(x) if x.dim() else 0 for x in example}
    if len(sizes) > 1 or 0 in sizes:
        shapes = ", ".join(str(list(x.shape)) for x in example)
        message = f"inputs of the shapes {shapes} have no batch dimension in common"
        raise UserError(message, key="batch_sizes", fix="leave batch_sizes out: the example is taken as it is")
    times = -(-batch_size // sizes.pop())
    return tuple(torch.cat([x] * times)[:batch_size] if times > 1 else x[:batch_size] for x in example)
