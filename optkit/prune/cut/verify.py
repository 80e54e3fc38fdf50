"""Does the cut model run, and does it compute what the dense model with the same channels zeroed computes?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.calls import ERRORS, Inputs, call, few_tokens, same_draws
from optkit.core.compat import torch_trees as pytree
from optkit.core.errors import StageError, UserError, first_line
from optkit.core.model_copy import duplicate, sharing
from optkit.core.nested import outputs_of
from optkit.prune.cut.plan import CutPlan, like, norms, scaled
from optkit.prune.cut.units import Units
from optkit.prune.trace.recorder import running
from optkit.prune.trace.values import Trace

TOLERANCE = 2e-5  # relative; rounding in single precision stays below, or it is checked again in double


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def zeroed(model: nn.Module, plan: CutPlan) -> dict[str, torch.Tensor]:
    """The tensors that the plan cuts, dense, with what it removes set to zero.

    What the plan spares stays: the model divides by it, and something else makes these channels zero.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    result = {name: _emptied(tensors[name], dims, plan.spared.get(name, ())) for name, dims in plan.indices().items()}
    for name, (direction, dim) in plan.norms.items():
        g = scaled(tensors[name], norms(tensors[direction], dim), norms(result[direction], dim))
        result[name] = _emptied(g, plan.indices().get(name, {}), ())
    return result


def _emptied(tensor: torch.Tensor, kept: Mapping[int, torch.Tensor], spared: Sequence[int]) -> torch.Tensor:
    tensor = tensor.detach().clone()
    for dim, index in kept.items():
        if dim not in spared:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[index] = False
            tensor.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    return tensor


@contextmanager
def zeroing(model: nn.Module, plan: CutPlan) -> Iterator[None]:
    """What the plan removes is zero inside, in place, so that the model computes what the cut one would."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    zeros = zeroed(model, plan)
    before = {name: tensors[name].detach().clone() for name in zeros}
    try:
        _write(tensors, zeros)
        yield
    finally:
        _write(tensors, before)


@torch.no_grad()
def _write(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


@dataclass
class Run:
    """One forward pass in evaluation mode, from which gradients can flow back, or what went wrong in it.

    Attributes:
        outputs: the tensors that the model returns.
        where: the path of the innermost module whose forward raised, if one did.
        problem: what it raised.
    """

    outputs: list[torch.Tensor]
    where: str = ""
    problem: str = ""


def run(model: nn.Module, inputs: Inputs) -> Run:
    """Call a model that may not work."""
    with running(model) as stack, evaluating(model), torch.enable_grad(), same_draws(inputs):
        try:
            return Run(outputs_of(call(model, inputs)))
        except ERRORS as error:
            return Run([], stack[-1] if stack else "", first_line(error))


def deviation(model: nn.Module, plan: CutPlan, inputs: Inputs, outputs: list[torch.Tensor]) -> float:
    """Largest difference between the outputs of the cut model and those of the zeroed dense one, over the largest.

    Where single precision leaves doubt, both are run again in double precision. Values that are not finite must be the
    same ones.

    Raises:
        UserError: if no output of the dense model is finite.
    """
    found = _deviation(model, plan, inputs, outputs)
    if TOLERANCE <= found < 0.1:
        inputs = pytree.tree_map_only(torch.Tensor, _double, inputs)
        tensors = [*model.parameters(), *model.buffers()]
        model = duplicate(model, {id(tensor): like(tensor, _double(tensor.detach())) for tensor in tensors})
        found = _deviation(model, plan, inputs, run(plan.apply(model), inputs).outputs)
    return found


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float64)) if _is_inexact(tensor) else tensor


def _is_inexact(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@torch.no_grad()
def _deviation(model: nn.Module, plan: CutPlan, inputs: Inputs, small: list[torch.Tensor]) -> float:
    with evaluating(model):
        dense = outputs_of(_call_zeroed(model, plan, inputs))
    if [t.shape for t in dense] != [t.shape for t in small]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(dense, small, strict=True) if _is_inexact(a) and a.numel()]
    if pairs and not any(a.isfinite().any() for a, _ in pairs):
        raise UserError(
            f"the outputs of {type(model).__name__} are not finite, so that no cut can be checked",
            key="example_inputs",
            fix="give inputs on which it works",
        )
    return max([_difference(a, b) for a, b in pairs] or [0.0])


def _difference(dense: torch.Tensor, small: torch.Tensor) -> float:
    dense, small = (torch.view_as_real(t) if t.is_complex() else t for t in (dense, small))
    known = dense.isfinite()
    if not torch.equal(dense[~known].nan_to_num(), small[~known].nan_to_num()):
        return math.inf
    if not known.any():
        return 0.0
    a, b = dense[known], small[known]
    spread = (a - a.mean()).abs().max() if a.numel() > 1 else a.abs().max()
    found = float((a - b).abs().max() / spread.clamp_min(1e-12))
    return found if math.isfinite(found) else math.inf


def _call_zeroed(model: nn.Module, plan: CutPlan, inputs: Inputs) -> Any:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    with same_draws(inputs):
        return torch.func.functional_call(sharing(model), zeroed(model, plan), args, kwargs)


@torch.no_grad()
def repeats(model: nn.Module, inputs: Inputs, seeds: tuple[int, int] = (0, 0)) -> bool:
    """Whether two runs of a model give the same outputs, with random numbers of these seeds."""
    runs = []
    with evaluating(model):
        for seed in seeds:
            with same_draws(inputs, seed):
                runs.append(outputs_of(call(sharing(model), inputs)))
    return all(_difference(a, b) < TOLERANCE for a, b in zip(*runs, strict=True) if _is_inexact(a) and a.numel())


@torch.no_grad()
def diverging_module(
    model: nn.Module, cut: nn.Module, plan: CutPlan, inputs: Inputs, trace: Trace, units: Units, removed: np.ndarray
) -> str:
    """The first module whose output in the cut model is not the kept part of the zeroed dense one's, or ``""``."""
    dense: list[tuple[str, float, tuple[int, ...]]] = []
    small: list[tuple[str, float, tuple[int, ...]]] = []

    def watch(root: nn.Module, record: list, keep: bool) -> list:
        def hook(name: str, output: Any) -> None:
            value = trace.shapes.get(name)
            if isinstance(output, torch.Tensor) and value is not None and len(value.shape) == output.ndim:
                for dim, axis in enumerate(value.axes if keep and value.shape == tuple(output.shape) else ()):
                    if axis is not None:
                        found = units.of(axis)
                        index = np.flatnonzero(~((found >= 0) & removed[found]))
                        output = output.index_select(dim, torch.from_numpy(index).to(output.device))
                record.append((name, float(output.abs().double().square().sum()), tuple(output.shape)))

        return [m.register_forward_hook(lambda _m, _i, o, n=n: hook(n, o)) for n, m in root.named_modules()]

    handles = watch(model, dense, True) + watch(cut, small, False)
    try:
        with evaluating(model), evaluating(cut):
            with same_draws(inputs):
                call(cut, inputs)
            _call_zeroed(model, plan, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for (name, a, shape), (_, b, other) in zip(dense, small, strict=False):
        if shape != other or abs(a - b) > TOLERANCE * max(a, 1e-12):
            return name
    return ""


def check_runs(cut: nn.Module, inputs: Inputs) -> None:
    """One forward and one backward pass.

    Raises:
        StageError: naming the module that fails, or saying that no gradient flows.
    """
    found = run(cut, few_tokens(cut, inputs))
    if found.problem:
        raise StageError(f"the cut model fails in {found.where or 'the model'}: {found.problem}")
    check_gradient(cut, found.outputs)


def check_gradient(cut: nn.Module, outputs: list[torch.Tensor]) -> None:
    """Let gradients flow from the outputs, once, to the parameters, which hold none afterwards.

    Raises:
        StageError: if they do not.
    """
    outputs = [tensor for tensor in outputs if tensor.requires_grad]
    try:
        if outputs:
            with torch.enable_grad():
                reals = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in outputs]
                torch.autograd.backward([tensor.float().sum() for tensor in reals])
    except ERRORS as error:
        raise StageError(f"the cut model fails in the backward pass: {first_line(error)}") from error
    reached = any(p.grad is not None for p in cut.parameters())
    cut.zero_grad(set_to_none=True)
    if not reached and any(p.requires_grad for p in cut.parameters()):
        raise StageError("no gradient reaches the parameters of the cut model")
