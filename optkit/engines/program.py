"""A module as a graph of torch.export, the batch size and the length of texts free in it where the module lets them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from optkit.core.errors import StageError, UserError, first_line
from optkit.core.task import free_dims


def save_program(model: nn.Module, example_inputs: tuple[Tensor, ...], path: str | Path) -> None:
    """Writes a float or int8 model as a package of torch.export, which opens where there is no optkit.

    ``torch.export.load(path).module()`` is the model; ``torch.compile`` makes it as fast as on this engine. An int8
    graph needs its operators first (``import torchao.quantization.pt2e``), and is int8 in inductor's kernels alone,
    with ``torch._inductor.config.freezing``.

    Args:
        model: in eval mode; of a session, its ``module``.
        example_inputs: inputs of any batch size.
        path: of the file, ending in ``.pt2``; it is whole or not there.

    Raises:
        UserError: another ending.
        StageError: torch cannot export the model.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"'{path.name}' does not end in .pt2", key="path", value=str(path), fix=f"{path.stem}.pt2")
    try:
        program = export_program(model, example_inputs)
    except export_failures() as error:
        raise StageError(f"torch cannot export this model: {innermost_reason(error)}") from error
    part = path.with_name(f".{path.stem}-{os.getpid()}.pt2")
    try:
        torch.export.save(program, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def export_program(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """The graph of a module; its batch size is the example's only if the module says so."""
    # an export with one example would fix the batch size at one
    rows = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in example)
    with torch.no_grad():
        program = torch.export.export(module, rows, dynamic_shapes=free_dims(rows, module), strict=False)
        return program if _batch_is_free(program) else torch.export.export(module, example, strict=False)


def export_failures() -> tuple[type[Exception], ...]:
    """What exporting and compiling raise; looked up late, for dynamo takes seconds to import."""
    return (torch._dynamo.exc.TorchDynamoException, RuntimeError)


def innermost_reason(error: BaseException) -> str:
    """The first line of the innermost cause: exporters wrap it in reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _batch_is_free(program: ExportedProgram) -> bool:
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return all(isinstance(value.shape[0], torch.SymInt) for value in values)
