"""A module as a graph of torch.export, the batch size and the length of texts free in it where the module lets them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from optkit.core.calls import ERRORS
from optkit.core.compat.torch_compiler import compiler_errors
from optkit.core.compat.torch_graphs import Made, graph_returning, graph_structure
from optkit.core.engine import check_eval
from optkit.core.errors import StageError, UserError, first_line
from optkit.core.loaders import as_example
from optkit.core.structure import Structure, Value, build, constants, flatten, plain
from optkit.core.task import free_dims

Export = Callable[[nn.Module, tuple[Tensor, ...]], ExportedProgram]
log = logging.getLogger(__name__)


def save_program(
    model: Any, example_inputs: tuple[Tensor, ...], path: str | Path, texts: Mapping[str, str] | None = None
) -> None:
    """Writes a float or int8 model as a package of torch.export, which opens where there is no optkit.

    ``torch.export.load(path).module()`` is the model; ``torch.compile`` makes it as fast as on this engine. An int8
    graph needs its operators first (``import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer``, which also
    gives inductor their kernels), and is int8 in inductor's kernels alone, with ``torch._inductor.config.freezing``.

    Where the model returns dataclasses or other classes with named members, the package returns dicts: it must open
    where there are no such classes.

    Args:
        model: in eval mode, or a result that holds one (`Quantized`, `Pruned`, a session).
        example_inputs: inputs of any batch size.
        path: of the file, ending in ``.pt2``; it is whole or not there.
        texts: to be kept in the file, by name; ``torch.export.load(path, extra_files={name: ""})`` reads them.

    Raises:
        UserError: another ending, a model in train mode, or inputs that are no tensors.
        StageError: torch cannot export the model, or it returns texts.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"'{path.name}' does not end in .pt2", key="path", value=str(path), fix=f"{path.stem}.pt2")
    check_eval(whole := module_of(model))
    with named_failures(), torch.no_grad(), _returning(whole, _plain) as module:
        program = _export_free(module, as_example(example_inputs))
    _drop_origin(program)
    part = path.with_name(f".{path.stem}-{os.getpid()}.pt2")
    try:
        torch.export.save(program, part, extra_files=dict(texts or {}))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _drop_origin(program: ExportedProgram) -> None:
    """Removes the example inputs, which may be training data, and the paths of the source files."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _plain(structure: Structure, tensors: Iterable[Tensor]) -> Any:
    """What a package holds of an output; raises StageError for constants that it cannot."""
    if strange := [x for x in constants(structure) if not isinstance(x, (bool, int, float, type(None)))]:
        fix = "return tensors and numbers alone"
        raise StageError(f"a package of torch.export cannot hold {strange[0]!r}, which the model returns", fix=fix)
    return plain(build(structure, tensors, numbers=False))


def module_of(model: Any) -> nn.Module:
    """The model itself, or that of a result that holds one (`Quantized`, `Pruned`, `Shortened`, a session).

    Raises:
        UserError: it is neither.
    """
    held = (model, getattr(model, "module", None), getattr(model, "model", None))
    if found := next((x for x in held if isinstance(x, nn.Module)), None):
        return found
    fix = "give an nn.Module, or what quantize_static, prune_structured and the like return"
    raise UserError(f"a {type(model).__name__} is no model", key="model", fix=fix)


def export_program(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[ExportedProgram, Structure]:
    """The graph of a module; its batch size is the example's only if the module says so.

    Args:
        module: in eval mode.
        example: inputs of any batch size.

    Returns:
        A program that returns the tensors of what the module returns, and the structure that holds them.

    Raises:
        UserError: the module returns what cannot be taken apart.
    """
    return _flat(module, example, _export_free)


def export_fixed(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[ExportedProgram, Structure]:
    """The same for the example's shapes alone."""
    return _flat(module, example, partial(torch.export.export, strict=False))


def tensors_alone(module: nn.Module) -> nn.Module:
    """A module to be called for its tensors: an exported graph gives those that it makes numbers of, too."""
    return graph_returning(module, lambda _, tensors: tuple(tensors)) if isinstance(module, GraphModule) else module


def _flat(module: nn.Module, example: tuple[Tensor, ...], export: Export) -> tuple[ExportedProgram, Structure]:
    """What a function exports of a module, which gives it tensors alone."""
    found: list[Structure] = []

    def tensors_of(structure: Structure, tensors: Iterable[Tensor]) -> Any:
        found.append(structure)
        return next(iter(tensors)) if isinstance(structure, Value) else tuple(tensors)

    with _returning(module, tensors_of) as changed:
        program = export(changed, example)
    if found:
        return program, found[-1]
    # a graph that returns one tensor, or that somebody else made
    structure = graph_structure(module.graph) if isinstance(module, GraphModule) else None
    if structure is None:
        with torch.no_grad():
            structure = flatten(module(*example))[1]
    return program, structure


def _export_free(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    # an export with one example would fix the batch size at one
    alone = all(len(x) == 1 for x in example if x.dim())
    rows = tuple(torch.cat([x, x]) if x.dim() else x for x in example) if alone else example
    try:
        program = torch.export.export(module, rows, dynamic_shapes=free_dims(rows, module), strict=False)
        if _batch_is_free(program):
            return program
    except export_failures() + ERRORS as error:
        if not alone:
            raise
        log.info("the batch size stays 1: this model does not take 2 examples (%s)", first_line(error))
    return torch.export.export(module, example, strict=False)


@contextmanager
def _returning(module: nn.Module, made: Made) -> Iterator[nn.Module]:
    """The module, which returns what a function makes of its structure and tensors, while the context lasts."""
    if isinstance(module, GraphModule):
        # torch.export interprets a graph node by node, without its hooks
        yield graph_returning(module, made)
        return

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        tensors, structure = flatten(output)
        return made(structure, tensors)

    handle = module.register_forward_hook(hook)
    try:
        yield module
    finally:
        handle.remove()


def export_failures() -> tuple[type[Exception], ...]:
    """What exporting and compiling raise; looked up late, for dynamo takes seconds to import."""
    return (*compiler_errors(), RuntimeError)


@contextmanager
def named_failures() -> Iterator[None]:
    """What torch raises where it cannot export a model becomes a StageError of one line."""
    try:
        yield
    except export_failures() as error:
        raise StageError(f"torch cannot export this model: {innermost_reason(error)}") from error


def innermost_reason(error: BaseException) -> str:
    """The first line of the innermost cause: exporters wrap it in reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _batch_is_free(program: ExportedProgram) -> bool:
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return all(is_free(value.shape[0]) for value in values if value.dim())


def is_free(size: int | torch.SymInt) -> bool:
    """Whether an exported program takes other sizes; one that the module fixes is a symbol, too, named by a number."""
    return isinstance(size, torch.SymInt) and not str(size).isdigit()
