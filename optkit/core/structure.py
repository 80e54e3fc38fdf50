"""What a model returns, taken apart into its tensors, put together again, and written as JSON.

Tuples, lists, dicts, named tuples, dataclasses, transformers' ``ModelOutput`` and other objects with named members may
hold tensors at any depth, and beside them what a call does not compute: None, texts, numbers.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.errors import StageError, UserError

ONLY = "logits"  # the name of a tensor that is returned on its own
PLAIN = (bool, int, float, str, type(None))  # what JSON holds
CONSTANTS = (*PLAIN, complex, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format, type)
SYMBOLS = {torch.SymInt: torch.int64, torch.SymFloat: torch.float64, torch.SymBool: torch.bool}


@dataclass(frozen=True)
class Value:
    """A tensor, or a number that the model computes (a batch size, say), which stands among the tensors as one.

    Attributes:
        dtype: of the tensor.
        number: whether the model returns a number.
    """

    dtype: torch.dtype
    number: bool = False


@dataclass(frozen=True)
class Constant:
    """What every call returns alike."""

    value: Any


@dataclass(frozen=True)
class Container:
    """What holds other structures.

    Attributes:
        kind: its class.
        names: of the members: keys, fields or places.
        members: their structures.
    """

    kind: type
    names: tuple[Any, ...]
    members: tuple[Structure, ...]


Structure = Value | Constant | Container


def flatten(output: Any) -> tuple[list[Tensor], Structure]:
    """The tensors of what a model returned, in order, and the structure that `build` puts them into again.

    Raises:
        UserError: a part of it is of a kind that cannot be taken apart; the message names the part.
    """
    tensors: list[Tensor] = []
    return tensors, _structure(output, tensors, (), ())


def tensors(output: Any) -> list[Tensor]:
    """The tensors of what a model returned, in order."""
    return flatten(output)[0]


def mapped(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """What a model returned, with each of its tensors replaced by the function of it."""
    found, structure = flatten(output)
    return build(structure, map(function, found))


def as_float(output: Any) -> Any:
    """What a model returned, with its floating-point tensors in fp32: metrics and losses are computed in it."""
    return mapped(output, lambda x: x.float() if x.is_floating_point() else x)


def build(structure: Structure, values: Iterable[Tensor], *, numbers: bool = True) -> Any:
    """What has this structure and holds these tensors, in the order of `flatten`.

    Args:
        structure: from `flatten`.
        values: its tensors.
        numbers: whether numbers that the model computes become numbers, or stay tensors.
    """
    return _build(structure, iter(values), numbers)


def values(structure: Structure) -> Iterator[Value]:
    """The structure's tensors, in order."""
    if isinstance(structure, Value):
        yield structure
    elif isinstance(structure, Container):
        for member in structure.members:
            yield from values(member)


def constants(structure: Structure) -> Iterator[Any]:
    """What every call returns alike, in order."""
    if isinstance(structure, Constant):
        yield structure.value
    elif isinstance(structure, Container):
        for member in structure.members:
            yield from constants(member)


def names(structure: Structure) -> list[str]:
    """A name for each tensor: its path (``boxes``, ``0.scores``), or ``logits`` where it is all that is returned."""
    if isinstance(structure, Value):
        return [ONLY]
    found: list[str] = []
    for path in _paths(structure):
        name, count = path, 1
        while name in found:  # a key that reads like a path
            count += 1
            name = f"{path}_{count}"
        found.append(name)
    return found


def plain(output: Any) -> Any:
    """The same in tuples, lists and dicts alone: what has fields becomes a dict, a named tuple a tuple."""
    if (members := _members(output)) is None:
        return output
    found = [plain(member) for _, member in members]
    if isinstance(output, list):
        return found
    return tuple(found) if isinstance(output, tuple) else dict(zip([name for name, _ in members], found, strict=True))


def to_json(structure: Structure) -> dict[str, Any]:
    """The structure as JSON; classes become names.

    Raises:
        StageError: a constant or a key that JSON does not hold.
    """
    if isinstance(structure, Value):
        dtype = str(structure.dtype).removeprefix("torch.")
        return {"dtype": dtype, "number": True} if structure.number else {"dtype": dtype}
    held = (structure.value,) if isinstance(structure, Constant) else structure.names
    if strange := [x for x in held if type(x) not in PLAIN]:
        message = f"the model returns {strange[0]!r}, a {type(strange[0]).__name__}, which a saved session cannot hold"
        raise StageError(message, fix="return tensors, texts and numbers")
    if isinstance(structure, Constant):
        return {"constant": structure.value}
    kind = structure.kind
    members = [to_json(member) for member in structure.members]
    return {
        "kind": _family(kind),
        "of": None if kind in BUILTIN else f"{kind.__module__}.{kind.__qualname__}",
        "names": list(structure.names),
        "members": members,
    }


def from_json(data: dict[str, Any], find: Callable[[str], type | None]) -> Structure:
    """The structure that `to_json` wrote.

    Args:
        data: from a file.
        find: gives the class of a name, or None where it cannot be had: then a named tuple without it takes its place,
            a dict, or a ``SimpleNamespace``, with the same names.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    if "dtype" in data:
        if not isinstance(dtype := getattr(torch, data["dtype"], None), torch.dtype):
            raise ValueError(f"no dtype {data['dtype']!r}")
        return Value(dtype, bool(data.get("number", False)))
    if "constant" in data:
        if type(data["constant"]) not in PLAIN:
            raise ValueError(f"no constant {data['constant']!r}")
        return Constant(data["constant"])
    family, of, keys = data["kind"], data["of"], tuple(data["names"])
    if family not in FALLBACKS or any(type(key) not in PLAIN for key in keys):
        raise ValueError(f"no kind {family!r} with names {list(keys)!r}")
    kind = FALLBACKS[family] if of is None else find(of)
    if kind is None or _family(kind) != family:
        kind = namedtuple(str(of).rpartition(".")[2], keys) if family == "namedtuple" else FALLBACKS[family]
    members = tuple(from_json(member, find) for member in data["members"])
    if len(members) != len(keys):
        raise ValueError(f"{len(keys)} names for {len(members)} members")
    return Container(kind, keys, members)


BUILTIN = (tuple, list, dict, OrderedDict, SimpleNamespace)
FALLBACKS: dict[str, type] = {
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "ordered": OrderedDict,
    "namedtuple": tuple,
    "fields": OrderedDict,
    "object": SimpleNamespace,
}


def _family(kind: type) -> str:
    if issubclass(kind, dict):
        return "fields" if is_dataclass(kind) else "ordered" if issubclass(kind, OrderedDict) else "dict"
    if issubclass(kind, tuple):
        return "namedtuple" if hasattr(kind, "_fields") else "tuple"
    return "list" if issubclass(kind, list) else "object"


def _members(x: Any) -> list[tuple[Any, Any]] | None:
    """Names and members of a container; None for anything else.

    A class derived from dict or list that is not known may hold more than its members, and is no container.
    """
    if isinstance(x, dict) and (type(x) in (dict, OrderedDict) or is_dataclass(x)):
        return list(x.items())
    if type(x) is list:
        return list(enumerate(x))
    if isinstance(x, tuple):
        # what torch's operators return (torch.return_types.max) names its places so
        keys: tuple[str, ...] = getattr(x, "_fields", ()) or getattr(x, "__match_args__", ())
        return list(zip(keys, x, strict=True)) if len(keys) == len(x) else list(enumerate(x))
    if isinstance(x, (dict, list, set, frozenset, nn.Module, Tensor, *CONSTANTS)):
        return None
    if not is_dataclass(x) and (callable(x) or not hasattr(x, "__dict__")):
        return None
    stored = [f.name for f in fields(x)] if is_dataclass(x) else []
    stored += [name for name in getattr(x, "__dict__", {}) if name not in stored]
    return [(name, getattr(x, name)) for name in stored if hasattr(x, name)]


def _structure(x: Any, found: list[Tensor], path: tuple[Any, ...], within: tuple[int, ...]) -> Structure:
    if isinstance(x, Tensor):
        found.append(x)
        return Value(x.dtype)
    if type(x) in SYMBOLS:
        dtype = SYMBOLS[type(x)]
        found.append(torch.scalar_tensor(x, dtype=dtype))
        return Value(dtype, number=True)
    if isinstance(x, CONSTANTS):
        return Constant(x)
    members = None if id(x) in within else _members(x)
    if members is None:
        where = f"{'.'.join(map(str, path))}: " if path else ""
        message = f"{where}the model returns a {type(x).__name__}, which cannot be taken apart into tensors"
        fix = "return tensors in tuples, lists, dicts or dataclasses"
        raise UserError(message, fix=fix)
    inner = tuple(_structure(member, found, (*path, name), (*within, id(x))) for name, member in members)
    return Container(type(x), tuple(name for name, _ in members), inner)


def _build(structure: Structure, values: Iterator[Tensor], numbers: bool) -> Any:
    if isinstance(structure, Value):
        value = next(values)
        # torch.fx looks at what a graph returns with objects in place of tensors
        return value.item() if structure.number and numbers and isinstance(value, Tensor) else value
    if isinstance(structure, Constant):
        return structure.value
    kind = structure.kind
    members = [_build(member, values, numbers) for member in structure.members]
    if issubclass(kind, dict):
        held = zip(structure.names, members, strict=True)
        return kind(**dict(held)) if is_dataclass(kind) else kind(held)
    if issubclass(kind, (tuple, list)):
        return kind(*members) if hasattr(kind, "_fields") else kind(members)
    # without __init__: it may take other arguments, or compute anew what the members already are
    made = kind.__new__(kind)
    for name, member in zip(structure.names, members, strict=True):
        object.__setattr__(made, name, member)
    return made


def _paths(structure: Structure) -> Iterator[str]:
    if isinstance(structure, Value):
        yield ""
    elif isinstance(structure, Container):
        for name, member in zip(structure.names, structure.members, strict=True):
            for rest in _paths(member):
                yield f"{name}.{rest}" if rest else str(name)
