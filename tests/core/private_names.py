"""Finds, by syntax tree, where a file touches a private name of another library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import torch
from torch import nn

# a leading underscore, but documented
PUBLIC = {"_fields", "_replace", "_asdict", "_make", "_exit"}  # namedtuple, os._exit
# no leading underscore, but said to be internal
INTERNAL = re.compile(r"(torch\.fx\.experimental|torch\.ao|onnxruntime\.capi)(\.|$)")
LIBRARIES = (
    "torch", "torchvision", "torchao", "transformers", "accelerate", "datasets", "evaluate", "onnxruntime", "onnx",
    "onnxscript", "onnx_ir", "openvino", "hydra", "omegaconf", "safetensors", "huggingface_hub", "numpy", "scipy",
)  # fmt: skip
PATH = re.compile(rf"({'|'.join(LIBRARIES)})(\.\w+)+")
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
# the private methods and attributes that a class of optkit would override or read of the class it derives from
INHERITED = {
    name
    for kind in (nn.Module, nn.BatchNorm2d, torch.fx.GraphModule, torch.optim.Optimizer, torch.autograd.Function)
    for name in (*dir(kind), *vars(nn.Module()))
    if name.startswith("_") and not name.startswith("__")
}


def private_names(source: str) -> list[str]:
    """Each private name of another library that Python code touches, as ``line: code``."""
    tree = ast.parse(source)
    own, foreign = set(_own(tree)), set(_foreign(tree))
    found = [node for node in ast.walk(tree) if _touches(node, own, foreign)]
    found += [
        node for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) and kind.bases for node in _inherits(kind)
    ]
    return [f"{node.lineno}: {ast.unparse(node).splitlines()[0]}" for node in found]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in PUBLIC


def _touches(node: ast.AST, own: set[str], foreign: set[str]) -> bool:
    match node:
        case ast.Import(names=names):
            return any(_is_internal(alias.name) for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            if module == "__future__" or module.partition(".")[0] == "optkit":
                return False
            return _is_internal(module) or any(_is_internal(f"{module}.{alias.name}") for alias in names)
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return False
        case ast.Attribute(attr=attr):
            return is_private(attr) and (attr not in own or _root(node) in foreign)
        case ast.Call(func=ast.Name(id=called), args=[_, ast.Constant(value=str(name)), *_]) if called in BY_NAME:
            return is_private(name) and name not in own
        case ast.Subscript(value=held, slice=ast.Constant(value=str(name))):
            members = ast.unparse(held).endswith("__dict__") or ast.unparse(held).startswith("vars(")
            return members and is_private(name) and name not in own
        case ast.keyword(arg=str(name)):
            return is_private(name) and name not in own
        case ast.Constant(value=str(text)) if PATH.fullmatch(text):
            return _is_internal(text)
    return False


def _inherits(kind: ast.ClassDef) -> Iterator[ast.AST]:
    """Where a class overrides or reads what is private to a class of torch's that it may derive from."""
    for node in ast.walk(kind):
        match node:
            case ast.FunctionDef(name=name) | ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                if name in INHERITED:
                    yield node


def _is_internal(path: str) -> bool:
    return INTERNAL.match(path) is not None or any(map(is_private, path.split(".")))


def _root(node: ast.expr) -> str | None:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _own(tree: ast.AST) -> Iterator[str]:
    """The names that a file defines itself, at any depth, but for what it would override."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found = name
            case ast.arg(arg=found) | ast.Name(id=found, ctx=ast.Store()):
                pass
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=found, ctx=ast.Store()):
                pass
            case _:
                continue
        if found not in INHERITED:
            yield found


def _foreign(tree: ast.AST) -> Iterator[str]:
    """The names under which a file imports modules and names of other packages."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] != "optkit":
                yield from (alias.asname or alias.name for alias in names)
