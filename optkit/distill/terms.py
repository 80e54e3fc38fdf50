"""The losses that a recipe may sum, by name or dotted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optkit.core.checks import is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import is_dotted, locate, own_part, parameters
from optkit.distill.pairs import check_pairs

LOGITS, FEATURES, ATTENTION, RELATIONS = "logits", "features", "attention", "relations"


@dataclass(frozen=True)
class Kind:
    """The inputs that a loss compares.

    Attributes:
        loss: the name of its function, in ``losses`` if it compares logits, else in ``features``; of one's own its
            dotted path.
        of: logits, features, attention or relations.
        options: arguments of the function that a recipe may give.
        pairs: which layers it compares where a recipe does not say.
        widths: whether it compares features channel by channel, so that a projection must make the widths equal.
        needs_targets: whether it must know the right classes.
        takes_mask: whether one that compares features is told what is padding.
    """

    loss: str
    of: str
    options: tuple[str, ...] = ()
    pairs: str = ""
    widths: bool = False
    needs_targets: bool = False
    takes_mask: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        """The loss, imported when it is computed: a recipe is checked without torch."""
        if is_dotted(self.loss):
            return locate(self.loss, f"losses.{self.loss}")
        from optkit.distill import features, losses

        return getattr(losses if self.of == LOGITS else features, self.loss)


KINDS: Mapping[str, Kind] = {
    "kd": Kind("kd_loss", LOGITS, ("temperature",)),
    "dkd": Kind("dkd_loss", LOGITS, ("temperature", "target_weight", "other_weight"), needs_targets=True),
    "dist": Kind("dist_loss", LOGITS, ("temperature", "inter_weight", "intra_weight")),
    "hint": Kind("hint_loss", FEATURES, pairs="stages", widths=True),
    "hidden": Kind("hint_loss", FEATURES, pairs="blocks", widths=True),
    "attention_transfer": Kind("attention_transfer_loss", FEATURES, pairs="stages"),
    "similarity": Kind("similarity_loss", FEATURES, pairs="last"),
    "rkd": Kind("rkd_loss", FEATURES, ("distance", "angle"), pairs="last"),
    "attention": Kind("attention_map_loss", ATTENTION, pairs="blocks"),
    "relations": Kind("relation_loss", RELATIONS, pairs="last"),
}


def own_kind(path: str, of: str) -> Kind:
    """The inputs of a loss of one's own: ``f(student, teacher, ...)``, a scalar for each pair of tensors.

    It gets ``targets`` (the right classes), ``mask`` (which tokens are no padding) and ``temperature`` if it has such
    parameters. Its others are options.

    Args:
        path: its dotted path.
        of: logits or features.

    Raises:
        UserError: there is no such function.
    """
    names = list(parameters(locate(path, f"losses.{path}")))[2:]
    options = tuple(name for name in names if name not in ("targets", "mask"))
    pairs = "last" if of == FEATURES else ""
    return Kind(path, of, options, pairs, widths=True, needs_targets="targets" in names, takes_mask="mask" in names)


@dataclass(frozen=True)
class Term:
    """One loss of a weighted sum.

    Attributes:
        name: in `KINDS`, or the dotted path of one's own.
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
        return KINDS[self.name] if self.name in KINDS else own_kind(self.name, FEATURES if self.pairs else LOGITS)


def read_terms(given: Mapping[str, Any] | Sequence[str], pairs: Any, temperature: float) -> list[Term]:
    """The terms of a recipe: a name with its weight, or with ``weight``, ``pairs`` and options of the loss.

    Args:
        given: by name, one that is None is left out; or a list of names, which all weigh 1.
        pairs: which layers those compare that do not say; None for each loss's own choice.
        temperature: of those losses of logits that do not say.

    Raises:
        UserError: an unknown loss, option or choice of pairs, or a weight that is not above 0.
    """
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(name, str) for name in given):
        given = dict.fromkeys(given, 1.0)
    if not isinstance(given, Mapping):
        fix = "names with their weights, such as losses.kd=1"
        raise UserError(f"{given!r} is not a mapping of losses", key="losses", value=given, fix=fix)
    terms = []
    for name, value in given.items():
        own_part(name, KINDS, f"losses.{name}", "loss")
        if value is None:
            continue
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        terms.append(_term(name, options, pairs, temperature))
    if not terms:
        raise UserError("no loss", key="losses", fix="such as losses.kd=1")
    return terms


def _term(name: str, options: dict[str, Any], pairs: Any, temperature: float) -> Term:
    key = f"losses.{name}"
    kind = KINDS[name] if name in KINDS else own_kind(name, FEATURES if options.get("pairs") else LOGITS)
    weight = options.pop("weight", 1.0)
    if not is_number(weight) or not weight > 0:
        raise UserError(f"{weight!r} is not a weight above 0", key=key, value=weight, fix=f"~{key} leaves it out")
    which = options.pop("pairs", pairs) or kind.pairs
    known = set(kind.options)
    for option in options:
        if option not in known:
            fix = did_you_mean(option, known | {"weight"} | ({"pairs"} if kind.pairs or name not in KINDS else set()))
            raise UserError(f"{name} takes no '{option}'", key=f"{key}.{option}", fix=fix)
    if kind.pairs:
        check_pairs(which)
    if "temperature" in known:
        options = {"temperature": temperature} | options
    return Term(name, float(weight), which, options)
