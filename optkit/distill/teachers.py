"""Teachers: the baseline, a variant of another run, any model, or several of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optkit.core.errors import UserError
from optkit.core.instantiate import TARGET
from optkit.core.stage import KeyContext
from optkit.engines.compiler import missing_compiler
from optkit.models.spec import TRUST, VARIANT

if TYPE_CHECKING:
    from torch import nn

    from optkit.core.artifact import Artifact

BASELINE = "baseline"
BuildModel = Callable[[dict[str, Any]], "nn.Module"]


def check_teacher(spec: Any) -> None:
    """Raises UserError unless ``spec`` names a teacher: see `load_teacher`."""
    if isinstance(spec, list):
        if len(spec) < 2:
            raise UserError(f"{len(spec)} in the list", key="teacher", value=spec, fix="list two or more, or give one")
        for one in spec:
            check_teacher(one)
    elif isinstance(spec, dict):
        if VARIANT in spec and TARGET not in spec:
            if unknown := [name for name in spec if name not in (VARIANT, TRUST)]:
                message = f"unknown key; a teacher that is a variant takes no '{unknown[0]}'"
                raise UserError(message, key=f"teacher.{unknown[0]}", fix=f"it takes {VARIANT} and {TRUST}")
            check_teacher(str(spec[VARIANT]))
        elif TARGET not in spec:
            fix = "such as optkit.models.ResNetCIFAR, or give the folder of a variant: variant=DIR"
            raise UserError("a model spec without _target_", key="teacher", fix=fix)
    elif isinstance(spec, str) and spec != BASELINE:
        _open(spec)
    elif spec is not None and spec != BASELINE:
        fix = "baseline, a variant's folder, a model spec, or a list of these"
        raise UserError(f"{spec!r} is no teacher", key="teacher", value=spec, fix=fix)


def load_teacher(
    spec: Any, baseline: Callable[[], nn.Module], build_model: BuildModel, trust: Iterable[str] = ()
) -> nn.Module:
    """A teacher in evaluation mode, without gradients.

    Args:
        spec: None or ``baseline``; the folder of a variant (``runs/RUN/variants/2-recover``), or a mapping with
            ``variant`` and ``trust``; a model spec; or a list of these, whose logits are averaged.
        baseline: gives the recipe's baseline.
        build_model: builds a model spec.
        trust: what variants may name besides optkit's models and stages, as for `optkit.load`.

    Raises:
        UserError: a variant names something else.
    """
    from optkit.distill.ensemble import Ensemble

    spec, trust = _folder_of(spec, trust)
    if isinstance(spec, list):
        teacher: nn.Module = Ensemble([load_teacher(one, baseline, build_model, trust) for one in spec])
    elif isinstance(spec, dict):
        teacher = build_model(spec)
    elif spec is None or spec == BASELINE:
        teacher = baseline()
    else:
        teacher = _rebuilt(spec, trust)
    return teacher.eval().requires_grad_(False)


def compiled(teacher: nn.Module) -> nn.Module:
    """A teacher that inductor compiles when it is first run.

    Raises:
        UserError: there is no C++ compiler.
    """
    import torch

    if reason := missing_compiler():
        raise UserError(reason, key="compile_teacher", fix="or compile_teacher=false")
    return cast("nn.Module", torch.compile(teacher))


def teacher_name(spec: Any) -> Any:
    """The name of a teacher in the record."""
    spec, _ = _folder_of(spec)
    if isinstance(spec, list):
        return [teacher_name(one) for one in spec]
    if isinstance(spec, dict):
        return spec[TARGET]
    return BASELINE if spec is None or spec == BASELINE else _open(spec).variant.id


def teacher_identity(spec: Any, context: KeyContext) -> Any:
    """The identity of a teacher: it differs for another model in the same folder; JSON."""
    spec, _ = _folder_of(spec)
    if isinstance(spec, list):
        return [teacher_identity(one, context) for one in spec]
    if isinstance(spec, dict):
        return context.identify(spec)
    if spec is None or spec == BASELINE:
        return context.baseline
    artifact = _open(spec)
    return [artifact.variant.id, artifact.weights_digest()]


def _folder_of(spec: Any, trust: Iterable[str] = ()) -> tuple[Any, Iterable[str]]:
    """``{variant: DIR, trust: [...]}`` as the folder alone, and all that is trusted."""
    if isinstance(spec, dict) and VARIANT in spec and TARGET not in spec:
        return str(spec[VARIANT]), (*trust, *(spec.get(TRUST) or ()))
    return spec, trust


def _open(folder: str) -> Artifact:
    """A variant in floating point; its description is read and checked."""
    from optkit.core.artifact import open_artifact

    try:
        artifact = open_artifact(Path(folder).expanduser())
    except UserError as error:
        where = f"{error.key}: " if error.key else ""
        raise UserError(f"{where}{error.message}", key="teacher", value=folder, fix=error.fix) from error
    if "float" not in artifact.variant.traits:
        found = ", ".join(sorted(artifact.variant.traits))
        raise UserError(f"the variant is {found}, not float", key="teacher", value=folder, fix="take one before int8")
    return artifact


def _rebuilt(folder: str, trust: Iterable[str]) -> nn.Module:
    artifact = _open(folder)
    try:
        return artifact.module(trust)
    except UserError as error:
        raise UserError(f"{folder}: {error.message}", key="teacher", value=folder, fix=error.fix) from error
