"""What stands for a user's function or object in keys: its code and its settings."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import Mapping
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

from optkit.core.source_digest import code_of_classes, code_of_module

PLAIN = (bool, int, float, str, bytes, type(None))


def identity(thing: Any) -> Any:
    """JSON that changes with the code of a function or of an object's class, and with what either holds.

    Args:
        thing: a function, a class, or an object such as a loss module; data within it count by their values.
    """
    return _identity(thing, ())


def _identity(thing: Any, within: tuple[int, ...]) -> Any:
    if isinstance(thing, PLAIN):
        return repr(thing) if isinstance(thing, (bytes, float)) else thing
    if id(thing) in within:
        return "itself"
    within = (*within, id(thing))
    if isinstance(thing, partial):
        return ["partial", *(_identity(part, within) for part in (thing.func, thing.args, thing.keywords))]
    if inspect.ismethod(thing):
        return [thing.__name__, _identity(thing.__self__, within)]
    if isinstance(thing, FunctionType):
        return _of_function(thing, within)
    if isinstance(thing, type):
        return [f"{thing.__module__}.{thing.__qualname__}", code_of_classes(thing.__mro__)]
    if isinstance(thing, Mapping):
        return {str(name): _identity(part, within) for name, part in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_identity(part, within) for part in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(map(str, thing))
    if hasattr(thing, "detach") or hasattr(thing, "__array__"):
        return _of_array(thing)
    if inspect.isroutine(thing) or inspect.ismodule(thing):  # written in C, or a namespace
        return f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', thing.__name__)}"
    held = vars(thing) if hasattr(thing, "__dict__") else {}
    kind = type(thing)
    own_text = str(thing) if not held and kind.__str__ is not object.__str__ else None
    return [f"{kind.__module__}.{kind.__qualname__}", own_text, code_of_classes(kind.__mro__), _identity(held, within)]


def _of_function(function: FunctionType, within: tuple[int, ...]) -> Any:
    """A function's name and the code of its module; what a closure or a default holds; of a lambda what it does."""
    module = function.__module__
    code = code_of_module(module) or _like_none_other(function)
    name = function.__qualname__
    body = _of_code(function.__code__) if "<" in name else None
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    held = [_identity(part, within) for part in (cells, function.__defaults__, function.__kwdefaults__)]
    return [f"{module}.{name}", code, body, held]


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _of_code(code: CodeType) -> list[Any]:
    constants = [_of_code(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _of_array(array: Any) -> Any:
    import numpy as np

    values = np.ascontiguousarray(array.detach().cpu() if hasattr(array, "detach") else array)
    return [str(values.dtype), list(values.shape), hashlib.sha256(values.tobytes()).hexdigest()]


@cache
def _like_none_other(function: FunctionType) -> str:
    """A function without a file, typed into a notebook: what it does may change unseen."""
    return uuid.uuid4().hex
