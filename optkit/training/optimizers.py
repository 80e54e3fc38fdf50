"""Optimizers by name or dotted path, with their options: torch's are read from its source without importing it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import own_part, parameters

if TYPE_CHECKING:
    import torch

FIELDS = ("lr", "weight_decay")


def check_optimizer(name: str, options: Mapping[str, Any]) -> None:
    """Raises UserError for an unknown optimizer, an option it does not take, or one that is a field of its own."""
    own = own_optimizer(name)
    arguments = list(parameters(own)) if own else _arguments(_class_name(name))
    if inspect.isclass(own) and not issubclass(own, import_module("torch.optim").Optimizer):
        fix = "inherit torch.optim.Optimizer, or give a function that makes one"
        raise UserError(f"'{name}' is no optimizer", key="optimizer", value=name, fix=fix)
    if own and "lr" not in arguments:
        fix = "it is called with groups of parameters, lr and its options, as optimizers of torch.optim"
        raise UserError(f"'{name}' takes no lr", key="optimizer", value=name, fix=fix)
    known = set(arguments) - {"params", *arguments[:1], *FIELDS}
    for option in options:
        if option in FIELDS:
            fix = f"set {option} beside optimizer_options"
            raise UserError("is a field of the trainer", key=f"optimizer_options.{option}", fix=fix)
        if option not in known:
            fix = did_you_mean(option, known)
            raise UserError(f"{name} takes no '{option}'", key=f"optimizer_options.{option}", fix=fix)


def own_optimizer(name: str) -> Callable[..., torch.optim.Optimizer] | None:
    """The class or function that a dotted path names; None for a name of ``torch.optim``. Raises UserError."""
    return own_part(name, [name], "optimizer")


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer with this dotted path, or that of ``torch.optim`` with this name, in any case.

    Raises:
        UserError: there is none.
    """
    if own := own_optimizer(name):
        return own
    import torch

    return getattr(torch.optim, _class_name(name))


def _class_name(name: str) -> str:
    """The name as torch writes it."""
    known = {own.lower(): own for own in _optimizers()}
    own_part(str(name).lower(), known, "optimizer")
    return known[name.lower()]


@cache
def _optimizers() -> dict[str, Path]:
    """The file of each optimizer, as the package ``torch.optim`` imports it: ``from torch.optim.adam import Adam``."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0]).parent
    imports = [node for node in _tree(root / "torch/optim/__init__.py").body if isinstance(node, ast.ImportFrom)]
    named = [(alias.name, str(node.module)) for node in imports for alias in node.names]
    classes = [(name, module) for name, module in named if name[0].isupper() and name != "Optimizer"]
    return {name: root / f"{module.replace('.', '/')}.py" for name, module in classes}


@cache
def _arguments(name: str) -> tuple[str, ...]:
    """The arguments of an optimizer's constructor, without ``self``."""
    body = next(x for x in _tree(_optimizers()[name]).body if isinstance(x, ast.ClassDef) and x.name == name).body
    made = next(x for x in body if isinstance(x, ast.FunctionDef) and x.name == "__init__").args
    return tuple(arg.arg for arg in (*made.posonlyargs, *made.args, *made.kwonlyargs))[1:]


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())
