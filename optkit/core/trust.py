"""What a saved variant may name. It is data, whoever wrote it: it reaches builders of models and stages, no other code.

What is trusted besides optkit is a list of names: of packages or modules, whose own classes of models and of stages may
then be named, or of one thing by its full path, which may be a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from optkit.core.engine import Engine, no_engine
from optkit.core.errors import UserError
from optkit.core.instantiate import call, check_parameters, locate
from optkit.core.surgeries import is_surgery_name, replayed_by

if TYPE_CHECKING:
    from torch import nn

MODELS = "optkit.models"
OUTPUTS = ("transformers", "torch.return_types")
CHECK = "check_saved"
Builder = TypeVar("Builder", bound="Callable[..., nn.Module]")


def builds_saved(check: Callable[[Mapping[str, Any]], None]) -> Callable[[Builder], Builder]:
    """Marks a function as a builder that saved variants may name.

    Args:
        check: raises UserError for parameters that do more than say a structure: fetch, or read other files.
    """

    def mark(builder: Builder) -> Builder:
        setattr(builder, CHECK, check)
        return builder

    return mark


def is_numeric(value: Any) -> bool:
    """Whether it is a number or null, or lists of these: what names no code and no file."""
    return all(map(is_numeric, value)) if isinstance(value, list) else value is None or isinstance(value, (int, float))


def check_trust(trusted: Iterable[str]) -> tuple[str, ...]:
    """The names; raises UserError unless it is a list of them."""
    names = (trusted,) if isinstance(trusted, str) else tuple(trusted)
    if isinstance(trusted, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{trusted!r} is not a list of names", key="trust", value=trusted, fix="such as ['mypackage']")
    return names


def rebuild(model: Mapping[str, Any], trusted: tuple[str, ...] = ()) -> nn.Module:
    """The fresh model of a saved variant's spec.

    Args:
        model: ``target`` and ``params``.
        trusted: names of what may be called besides the builders of optkit.

    Raises:
        UserError: a target that is not trusted or builds no models, or parameters that it does not take.
    """
    from torch import nn

    target, params = model.get("target"), model.get("params")
    if target is None:
        message, fix = "the variant does not say how to build its model", "open it on the engine that it was saved for"
        raise UserError(message, key="model", fix=fix)
    builder = _trusted(target, "model", (MODELS, *trusted))
    check = getattr(builder, CHECK, None)
    is_class = inspect.isclass(builder) and issubclass(builder, nn.Module)
    if not (is_class or check or (target in trusted and callable(builder))):
        raise UserError(f"{target} is no class of models", key="model", value=target, fix=_fix(target))
    if not isinstance(params, Mapping):
        raise UserError(f"{params!r} are no parameters", key="model", value=target)
    if check:
        check(params)
    check_parameters(builder, params, "model")
    return call(builder, params)


def stage_class(target: Any, trusted: tuple[str, ...] = ()) -> Any:
    """The class of a stage that a saved variant's surgery names, for its ``replay``.

    Args:
        target: a name of `optkit.core.surgeries`, or the dotted path of a stage of another package.
        trusted: names of what may be called besides optkit's own stages.

    Raises:
        UserError: it is not known or not trusted, or replays nothing.
    """
    if is_surgery_name(target):
        return locate(replayed_by(target), "surgery")
    found = _trusted(target, "surgery", trusted)
    if not (inspect.isclass(found) and callable(getattr(found, "replay", None))):
        raise UserError(f"{target} is no stage with a replay", key="surgery", value=target)
    return found


def output_class(target: Any, trusted: tuple[str, ...] = ()) -> type:
    """The class of what a saved session returns: one of transformers' outputs, or one that is trusted by name.

    Raises:
        UserError: it is not trusted, not there, or no class that only holds members.
    """
    from torch import nn

    found = _trusted(target, "returns", (*OUTPUTS, *trusted))
    if not inspect.isclass(found) or issubclass(found, nn.Module):
        holds = False
    else:
        holds = is_dataclass(found) or issubclass(found, tuple) or _lies_within(target, trusted)
    if not holds:
        raise UserError(f"{target} is no class of outputs", key="returns", value=target)
    return found


def engine_class(target: Any, trusted: tuple[str, ...] = ()) -> type[Engine]:
    """The class of an engine that a saved session names by its path: one that no package declares as an entry point.

    Raises:
        UserError: it is not trusted, not there, or no engine.
    """
    found = _trusted(target, "engine", trusted)
    if reason := no_engine(found):
        raise UserError(f"{target} is no engine: {reason}", key="engine", value=target)
    return found


def _trusted(target: Any, key: str, trusted: tuple[str, ...]) -> Any:
    """What is at a path, if both the path and where the thing is defined are trusted."""
    if not isinstance(target, str) or not _lies_within(target, trusted):
        package = str(target).partition(".")[0]
        raise UserError(f"would run code of the package '{package}'", key=key, value=target, fix=_fix(target))
    found = locate(target, key)
    if target not in trusted and not _lies_within(home := str(getattr(found, "__module__", None)), trusted):
        raise UserError(f"would run code of '{home}'", key=key, value=target, fix=_fix(target))
    return found


def _lies_within(path: str, trusted: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in trusted)


def _fix(target: Any) -> str:
    return f"if you trust it, add '{target}' to trust"
