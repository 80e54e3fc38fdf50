"""What a walk over the operators of a model carries and finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from optkit.prune.trace.labels import Axis, LabelSpace

Debts = tuple[tuple[np.ndarray, float], ...]


@dataclass(frozen=True)
class Shape:
    """The sizes of a tensor that an operator returns."""

    sizes: tuple[int, ...]


@dataclass
class Value:
    """A tensor in the graph: one label array per dimension.

    Attributes:
        shape: the sizes while nothing is cut.
        axes: for each dimension its labels, or None where it cannot be cut.
        zero: for each dimension, whether its cut slices are zero once the parameters of those slices are.
        param: the parameter or buffer it is, if it is one (perhaps in another type).
        offset: what was added to that parameter.
        debts: dimensions with n slices of which k stay, and the power of n / k that the value is off by.
        data: whether it depends on the model's inputs; the walk fills it in, as it does the next three.
        sources: the parameters and buffers that it is computed from, if it does not.
        whole_by: for each dimension without labels why it stays whole: an operator in a module, or the model's inputs.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    axes: list[Axis]
    zero: list[bool] = field(default_factory=list)
    param: str = ""
    offset: float = 0.0
    debts: Debts = ()
    data: bool = False
    sources: frozenset[str] = frozenset()
    whole_by: list[str] = field(default_factory=list)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.zero = self.zero or [True] * len(self.axes)

    @property
    def labelled(self) -> bool:
        """Whether any dimension can be cut."""
        return any(axis is not None for axis in self.axes)


@dataclass
class Call:
    """One operator that ran.

    Attributes:
        target: the operator.
        args, kwargs: its arguments, every tensor as a :class:`Value`.
        result: a value, or several in a list.
        multiplies: whether it is a convolution or a matrix product that can be cut.
    """

    target: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    multiplies: bool


@dataclass
class Trace:
    """What a walk found out.

    Attributes:
        params: for each parameter and buffer its labels per dimension.
        macs: for each product its module, a constant, and the labels of the sizes that multiply it.
        sizes: (module, size written out in the graph, labels it counts).
        attributes: (module, attribute, labels it counts).
        touched: (module, labels of each dimension) of every operator, in order.
        calls: the operators that run in evaluation, in order.
        attended: labels of the dimensions of queries, keys and values, and of other products of two activations.
        pads: (module, labels) of the constants that a padded dimension holds.
        shapes: for each module the dimensions of what it returned last.
        aliases: for each name of a tied tensor the first of its names.
        uses: how often each parameter is read; one that is read never cannot be cut.
        scales: parameters that make up for a debt: the offset they are used with, and the debt.
        epsilons: (module, number added to a value with a debt, the debt).
        norms: weights g of a weight norm g * v / |v|: the name of v, and the dimension that has its own norms.
        spared: dimensions of tensors whose slices must not become zero, because the model divides by them, say.
        random: the operators that draw random numbers in evaluation, and their modules.
        pointwise: what :mod:`optkit.prune.trace.rules.pointwise` found out about operators.
    """

    space: LabelSpace = field(default_factory=LabelSpace)
    params: dict[str, list[Axis]] = field(default_factory=dict)
    macs: list[tuple[str, int, list[np.ndarray]]] = field(default_factory=list)
    sizes: list[tuple[str, int, np.ndarray]] = field(default_factory=list)
    attributes: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    touched: list[tuple[str, list[np.ndarray]]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    attended: list[np.ndarray] = field(default_factory=list)
    pads: list[tuple[str, np.ndarray]] = field(default_factory=list)
    shapes: dict[str, Value] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    scales: dict[str, tuple[float, Debts]] = field(default_factory=dict)
    epsilons: list[tuple[str, float | None, Debts]] = field(default_factory=list)
    norms: dict[str, tuple[str, int]] = field(default_factory=dict)
    spared: set[tuple[str, int]] = field(default_factory=set)
    random: list[str] = field(default_factory=list)
    pointwise: dict[Any, tuple[bool, tuple[int, ...]]] = field(default_factory=dict)
