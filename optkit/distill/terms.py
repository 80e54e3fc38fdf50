"""The losses that a recipe may sum, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optkit.core.checks import is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import parameters
from optkit.distill import features, losses
from optkit.distill.pairs import check_pairs

LOGITS, FEATURES, ATTENTION, RELATIONS = "logits", "features", "attention", "relations"
GIVEN = {"student", "teacher", "targets", "mask", "open_"}  # by the training, not by the recipe


@dataclass(frozen=True)
class Kind:
    """The inputs that a loss compares.

    Attributes:
        function: the loss.
        of: logits, features, attention or relations.
        pairs: which layers it compares where a recipe does not say.
        widths: whether it compares features channel by channel, so that a projection must make the widths equal.
    """

    function: Callable[..., Any]
    of: str
    pairs: str = ""
    widths: bool = False


KINDS: Mapping[str, Kind] = {
    "kd": Kind(losses.kd_loss, LOGITS),
    "dkd": Kind(losses.dkd_loss, LOGITS),
    "dist": Kind(losses.dist_loss, LOGITS),
    "hint": Kind(features.hint_loss, FEATURES, "stages", widths=True),
    "hidden": Kind(features.hint_loss, FEATURES, "blocks", widths=True),
    "attention_transfer": Kind(features.attention_transfer_loss, FEATURES, "stages"),
    "similarity": Kind(features.similarity_loss, FEATURES, "last"),
    "rkd": Kind(features.rkd_loss, FEATURES, "last"),
    "attention": Kind(features.attention_map_loss, ATTENTION, "blocks"),
    "relations": Kind(features.relation_loss, RELATIONS, "last"),
}


@dataclass(frozen=True)
class Term:
    """One loss of a weighted sum.

    Attributes:
        name: in `KINDS`.
        weight: above 0.
        pairs: which layers it compares (see `layer_pairs`).
        options: other arguments of the loss.
    """

    name: str
    weight: float
    pairs: Any = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def needs_targets(self) -> bool:
        """Whether it needs the right classes."""
        return "targets" in parameters(self.kind.function)


def read_terms(given: Mapping[str, Any], pairs: Any, temperature: float) -> list[Term]:
    """The terms of a recipe: a name with its weight, or with ``weight``, ``pairs`` and options of the loss.

    Args:
        given: by name; one that is None is left out.
        pairs: which layers those compare that do not say; None for each loss's own choice.
        temperature: of those losses of logits that do not say.

    Raises:
        UserError: an unknown loss, option or choice of pairs, or a weight that is not above 0.
    """
    terms = []
    for name, value in given.items():
        if name not in KINDS:
            raise UserError(f"no loss '{name}'", key=f"losses.{name}", fix=did_you_mean(name, KINDS))
        if value is None:
            continue
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        terms.append(_term(name, options, pairs, temperature))
    if not terms:
        raise UserError("no loss", key="losses", fix="such as losses.kd=1")
    return terms


def _term(name: str, options: dict[str, Any], pairs: Any, temperature: float) -> Term:
    kind, key = KINDS[name], f"losses.{name}"
    weight = options.pop("weight", 1.0)
    if not is_number(weight) or not weight > 0:
        raise UserError(f"{weight!r} is not a weight above 0", key=key, value=weight, fix=f"~{key} leaves it out")
    which = options.pop("pairs", pairs) or kind.pairs
    known = set(parameters(kind.function)) - GIVEN
    for option in options:
        if option not in known:
            fix = did_you_mean(option, known | {"weight"} | ({"pairs"} if kind.pairs else set()))
            raise UserError(f"{name} takes no '{option}'", key=f"{key}.{option}", fix=fix)
    if kind.pairs:
        check_pairs(which)
    if "temperature" in known:
        options = {"temperature": temperature} | options
    return Term(name, float(weight), which, options)
