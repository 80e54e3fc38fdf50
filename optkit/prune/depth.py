"""Depth pruning: whole residual blocks go."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from optkit.core.calls import Inputs
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import Pick, model_inputs
from optkit.core.model_copy import duplicate, sharing
from optkit.core.progress import track
from optkit.models.hf_config import depth_entries, set_entries
from optkit.models.stacks import Stack, find_stacks
from optkit.prune.block_choice import at_random, block_influence, deepest, evenly, least, leaves_some
from optkit.prune.cut.verify import check_runs
from optkit.prune.options import Keep, check_depth
from optkit.prune.trace.wrappers import unwrapped

log = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module], float]


@dataclass
class DepthPlan:
    """Which members of a model's stacks stay.

    Attributes:
        kept: places of the members that stay, by the path of their container.
        config: entries of a Hugging Face config that change with it, by the same paths.
        facts: JSON-able account of what was removed and why.
    """

    kept: dict[str, list[int]]
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> nn.Module:
        """A shorter copy of a model."""
        return _shorten_(duplicate(model, {}), self.kept, self.config)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, the inverse of `from_dict`."""
        return {"kept": self.kept, "config": self.config}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DepthPlan:
        return cls(data["kept"], data["config"])


@dataclass
class Shortened:
    """A model with fewer blocks and the plan that made it."""

    module: nn.Module
    plan: DepthPlan


def prune_depth(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    amount: float | None = None,
    keep: Keep | None = None,
    by: str = "loss",
    evaluate: Evaluate | None = None,
    greedy: bool = True,
    batches: Iterable[Any] | None = None,
    inputs: Pick | None = None,
    seed: int = 0,
) -> Shortened:
    """Remove whole residual blocks of any model, those that it misses least.

    What is a block follows from the model's behaviour (:func:`~optkit.models.stacks.find_stacks`), not from names. By
    loss, blocks go one at a time, each time the one without which ``evaluate`` is lowest, as greedy layer pruning does
    (Peer et al., "Greedy-layer pruning", 2022). By influence, those go whose output is most like their input
    (`block_influence`; Men et al., "ShortGPT", 2024). By position, those that stay are spread evenly from the first to
    the last (as in Sajjad et al., "On the effect of dropping layers of pre-trained transformer models", 2023); the
    deepest are the last blocks but the very last (Gromov et al., "The unreasonable ineffectiveness of the deeper
    layers", 2024).

    Args:
        model: any module; it is not touched, and the result is of the same class.
        example_inputs: a tuple of arguments or a dict of keyword arguments, on the model's device.
        amount: share of the blocks to remove, in (0, 1); this or ``keep``.
        keep: how many blocks stay, or which: their places among all blocks, or patterns (as in :mod:`fnmatch`) of
            their paths.
        by: ``"loss"``, ``"influence"``, ``"position"``, ``"deepest"`` or ``"random"`` (the control); of no meaning
            where ``keep`` lists the blocks.
        evaluate: the loss of a model in evaluation mode, for ``by="loss"``.
        greedy: by loss, measure all blocks that are left again after every one removed; else all are measured once.
        batches: data, for ``by="influence"``: any iterable of batches.
        inputs: picks the model's inputs of a batch that holds more, ``inputs=lambda batch: batch[0]``.
        seed: for ``by="random"``.

    Raises:
        UserError: arguments out of range, a model without such blocks, nothing to remove, or a stack left empty.
        StageError: the shorter model does not run, or ``evaluate`` gives no finite number.
    """
    check_depth(amount, keep, by)
    model = unwrapped(model)
    stacks = removable(model, example_inputs)
    names = [name for stack in stacks for name in stack.block_paths()]
    left = how_many_stay(names, amount, keep)
    chosen = _listed(names, keep)
    facts: dict[str, Any] = {"by": by}
    if chosen is not None:
        gone, facts = [n for n in names if n not in chosen], {"by": "list"}
    elif by == "position":
        gone = evenly(names, len(names) - left)
    elif by == "deepest":
        gone = deepest(names, len(names) - left)
    elif by == "random":
        gone = at_random(names, len(names) - left, seed)
        facts["seed"] = seed
    elif by == "influence":
        if batches is None:
            raise UserError("missing; influence is measured on data", key="batches", fix="or set by=position")
        given = [model_inputs(batch, inputs, number) for number, batch in enumerate(batches, 1)]
        influence = block_influence(model, names, given, lambda module, batch: module(*batch))
        gone = least(influence, stacks, len(names) - left)
        facts["influence"] = influence
    elif evaluate is None:
        raise UserError("missing; blocks are chosen by their loss", key="evaluate", fix="or set by=position")
    else:
        gone, facts = _by_loss(model, stacks, len(names) - left, evaluate, greedy)
    if chosen is None and len(gone) < len(names) - left:
        message = f"{len(names) - left} blocks cannot go, {len(gone)} at most by {by}"
        raise UserError(message, key="keep", value=keep, fix=f"keep {len(names) - len(gone)} or more")
    plan = _plan(model, stacks, gone)
    shorter = plan.apply(model)
    try:
        check_runs(shorter, example_inputs)
    except StageError as error:
        raise StageError(f"without {', '.join(gone)}: {error.message}", fix="keep other blocks") from error
    plan.facts = {
        "removed": gone, "blocks_before": len(names), "blocks_after": len(names) - len(gone), **facts,
        "config": plan.config,
    }  # fmt: skip
    return Shortened(shorter, plan)


def removable(model: nn.Module, example_inputs: Inputs) -> list[Stack]:
    """The stacks of a model that can do with fewer blocks.

    Raises:
        UserError: there is none.
    """
    stacks = [stack for stack in find_stacks(model, example_inputs) if len(stack.members) > 1]
    if not stacks:
        message = f"{type(model).__name__} has no residual blocks that could be left out"
        fix = "a block is a member of an nn.ModuleList or nn.Sequential, runs once, and adds to what it takes in"
        raise UserError(message, key="model", fix=fix)
    return stacks


def how_many_stay(names: Sequence[str], amount: float | None, keep: Keep | None) -> int:
    """How many of these blocks stay. Raises UserError if all would, or if `keep` lists one that is not there."""
    total, chosen = len(names), _listed(names, keep)
    if isinstance(keep, int):
        left = keep
    else:
        left = len(chosen) if chosen is not None else max(total - round(total * (amount or 0)), 1)
    if left >= total:
        key, value = ("keep", keep) if keep is not None else ("amount", amount)
        raise UserError(f"removes none of {total} blocks", key=key, value=value, fix=f"keep {total - 1} at most")
    return left


def _listed(names: Sequence[str], keep: Keep | None) -> set[str] | None:
    """The blocks that a list of places or patterns keeps; None if it is no list."""
    if keep is None or isinstance(keep, int):
        return None
    chosen = set[str]()
    for item in keep:
        found = {names[item]} if isinstance(item, int) and 0 <= item < len(names) else set[str]()
        if isinstance(item, str):
            found = {name for name in names if fnmatchcase(name, item)}
        if not found:
            fix = f"the {len(names)} blocks are {names[0]} to {names[-1]}"
            raise UserError(f"{item!r} is none of the blocks", key="keep", value=item, fix=fix)
        chosen |= found
    return chosen


def _plan(model: nn.Module, stacks: Sequence[Stack], gone: Sequence[str]) -> DepthPlan:
    """The plan without these blocks.

    Raises:
        UserError: a stack would be left empty.
    """
    kept = {s.path: [i for i in range(len(s.members)) if s.block(i) not in gone] for s in stacks}
    if empty := [path for path, places in kept.items() if not places]:
        message = f"nothing would be left of {empty[0]}"
        raise UserError(message, key="keep", fix="keep more, name those that stay, or choose by=loss")
    kept = {s.path: kept[s.path] for s in stacks if len(kept[s.path]) < len(s.members)}
    sizes = {s.path: len(s.members) for s in stacks}
    config, work = {}, sharing(model, buffers=True)
    for path, places in kept.items():  # one after the other: they may share an entry
        if entries := depth_entries(work, path, sizes[path], places):
            config[path] = entries
        _shorten_(work, {path: places}, config)
    return DepthPlan(kept, config)


def _by_loss(
    model: nn.Module, stacks: Sequence[Stack], count: int, evaluate: Evaluate, greedy: bool
) -> tuple[list[str], dict[str, Any]]:
    """The blocks without which the loss is lowest, in the order in which they go, and what was measured."""
    started = time.perf_counter()
    names = [name for stack in stacks for name in stack.block_paths()]
    before, first = _loss(evaluate, sharing(model, buffers=True), "all blocks"), dict[str, float]()
    evaluations = 1
    gone, losses = list[str](), list[float]()
    for _ in track(range(count), "blocks removed", count):
        measured = first if not greedy and gone else {}
        for name in names if not measured else ():
            if name in gone or not leaves_some(stacks, [*gone, name]):
                continue
            without = _plan(model, stacks, [*gone, name])
            shorter = _shorten_(sharing(model, buffers=True), without.kept, without.config)
            measured[name] = _loss(evaluate, shorter, f"all blocks but {', '.join([*gone, name])}")
            evaluations += 1
        first = first or dict(measured)
        open_ = [n for n in measured if n not in gone and leaves_some(stacks, [*gone, n])]
        if not open_:
            fix = f"remove {len(gone)} at most: a block of each stack stays"
            raise UserError(f"{count} blocks cannot go", key="keep", value=len(names) - count, fix=fix)
        gone.append(min(open_, key=measured.__getitem__))
        losses.append(measured[gone[-1]])
        log.info("without %s: loss %.4f (%.4f with all blocks)", gone[-1], losses[-1], before)
    facts = {
        "by": "loss", "greedy": greedy, "loss_before": before, "losses": losses, "loss_without": first,
        "evaluations": evaluations, "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    return gone, facts


def _loss(evaluate: Evaluate, model: nn.Module, blocks: str) -> float:
    number = float(evaluate(model.eval()))
    if not math.isfinite(number):
        raise StageError(f"evaluate gives {number} with {blocks}")
    return number


def _shorten_(model: nn.Module, kept: dict[str, list[int]], config: dict[str, dict[str, Any]]) -> nn.Module:
    """Takes members out of a model's containers, in place."""
    for path, places in kept.items():
        container = model.get_submodule(path)
        # a module may stand in several places
        paths = container.named_modules(remove_duplicate=False)
        members = [(name, member) for name, member in paths if name and "." not in name]
        numbered = all(name.isdigit() for name, _ in members)
        counters = _counters([member for _, member in members])
        for name, _ in members:
            delattr(container, name)
        for new, old in enumerate(places):
            name, member = members[old]
            container.add_module(str(new) if numbered else name, member)
            if member is not None:
                for inner, attribute in counters:
                    setattr(member.get_submodule(inner), attribute, new)
        set_entries(model, path, config.get(path, {}))
    return model


def _counters(members: Sequence[nn.Module]) -> set[tuple[str, str]]:
    """Attributes that hold the place of every member (``layer_idx``), as (path within the member, name)."""
    found: set[tuple[str, str]] | None = None
    for place, member in enumerate(members):
        here = {
            (path, name)
            for path, module in member.named_modules()
            for name, value in vars(module).items()
            if type(value) is int and value == place
        }
        found = here if found is None else found & here
    return found or set()
