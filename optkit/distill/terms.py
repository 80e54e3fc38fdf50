"""The losses that a recipe may sum, by name or dotted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optkit.core.checks import is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import is_dotted, locate, own_part, parameters
from optkit.core.task import CLASS_MAPS, CLASSES, EMBEDDINGS, LABELS, OTHER, TOKENS, VALUES
from optkit.distill.pairs import OUTPUT, check_pairs

OUTPUTS, FEATURES, ATTENTION, RELATIONS = "outputs", "features", "attention", "relations"
TEMPERATURE = "temperature"
SOFTENED = (CLASSES, LABELS, CLASS_MAPS, TOKENS)  # logits, which a temperature softens
WORDS = {
    CLASSES: "classes",
    LABELS: "labels",
    VALUES: "values",
    CLASS_MAPS: "maps of classes",
    EMBEDDINGS: "embeddings",
    TOKENS: "tokens",
    OTHER: "of another kind",
}


@dataclass(frozen=True)
class Kind:
    """The inputs that a loss compares.

    Attributes:
        loss: the name of its function, in ``losses`` if it compares outputs, else in ``features``; of one's own its
            dotted path.
        of: outputs, features, attention or relations.
        options: arguments of the function that a recipe may give.
        pairs: which layers it compares where a recipe does not say.
        widths: whether it compares features channel by channel, so that a projection must make the widths equal.
        needs_targets: whether it must know the right classes.
        also: of a loss of outputs, its function for other kinds of output than classes, by kind; it fits no others.
        takes_mask: whether one that compares features is told what is padding.
    """

    loss: str
    of: str
    options: tuple[str, ...] = ()
    pairs: str = ""
    widths: bool = False
    needs_targets: bool = False
    also: Mapping[str, str] = field(default_factory=dict)
    takes_mask: bool = True

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own, named by a dotted path."""
        return is_dotted(self.loss)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The kinds of output that a loss of outputs compares."""
        if self.of != OUTPUTS:
            return ()
        return tuple(WORDS) if self.is_own else (CLASSES, *self.also)

    @property
    def function(self) -> Callable[..., Any]:
        """The loss, imported when it is computed: a recipe is checked without torch."""
        return self.function_for(CLASSES)

    def function_for(self, output_kind: str) -> Callable[..., Any]:
        """The loss for a kind of output."""
        if self.is_own:
            return locate(self.loss, f"losses.{self.loss}")
        from optkit.distill import features, losses

        return getattr(losses if self.of == OUTPUTS else features, self.also.get(output_kind, self.loss))


KINDS: Mapping[str, Kind] = {
    "kd": Kind(
        "kd_loss",
        OUTPUTS,
        ("temperature",),
        also={
            LABELS: "label_kd_loss",
            CLASS_MAPS: "map_kd_loss",
            VALUES: "value_kd_loss",
            EMBEDDINGS: "embedding_kd_loss",
            TOKENS: "token_kd_loss",
        },
    ),
    "dkd": Kind("dkd_loss", OUTPUTS, ("temperature", "target_weight", "other_weight"), needs_targets=True),
    "dist": Kind(
        "dist_loss", OUTPUTS, ("temperature", "inter_weight", "intra_weight"), also={CLASS_MAPS: "map_dist_loss"}
    ),
    "hint": Kind("hint_loss", FEATURES, pairs="stages", widths=True),
    "hidden": Kind("hint_loss", FEATURES, pairs="blocks", widths=True),
    "attention_transfer": Kind("attention_transfer_loss", FEATURES, pairs="stages"),
    "similarity": Kind("similarity_loss", FEATURES, pairs="last"),
    "rkd": Kind("rkd_loss", FEATURES, ("distance", "angle"), pairs="last"),
    "attention": Kind("attention_map_loss", ATTENTION, pairs="blocks"),
    "relations": Kind("relation_loss", RELATIONS, pairs="last"),
}


def own_kind(path: str, of: str) -> Kind:
    """The inputs of a loss of one's own: ``f(student, teacher, ...)``, a scalar for each pair of features or outputs.

    Outputs are what the models return, of whatever structure, their floating-point tensors in fp32.
    It gets ``targets`` (the batch's), ``mask`` (which tokens are no padding) and ``temperature`` if it has such
    parameters. Its others are options.

    Args:
        path: its dotted path.
        of: outputs or features.

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
        pairs: which layers it compares (see `layer_pairs`), or ``output``.
        options: other arguments of the loss.
        softened: whether a recipe gives it a temperature of its own.
    """

    name: str
    weight: float
    pairs: Any = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    softened: bool = False

    @property
    def kind(self) -> Kind:
        return KINDS[self.name] if self.name in KINDS else own_kind(self.name, FEATURES if self.pairs else OUTPUTS)

    @property
    def compares_outputs(self) -> bool:
        """Whether it looks at what the models return, and at no layer inside."""
        return self.kind.of == OUTPUTS or self.pairs == OUTPUT

    def of_outputs(self, output_kind: str, student: Any, teacher: Any, targets: Any) -> Any:
        """A loss of outputs, for outputs of a kind that it fits."""
        given = {"targets": targets} if self.kind.needs_targets else {}
        softened = self.kind.is_own or output_kind in SOFTENED
        options = {name: value for name, value in self.options.items() if name != TEMPERATURE or softened}
        return self.kind.function_for(output_kind)(student, teacher, **given, **options)

    def check(self, output_kind: str) -> None:
        """Raises UserError if it does not fit a kind of output; the message names the losses that do."""
        key, found = f"losses.{self.name}", WORDS[output_kind]
        if self.kind.of != OUTPUTS:
            if self.pairs == OUTPUT and output_kind == OTHER:
                message = f"{self.name} compares outputs of one tensor, and this task's are {found}"
                raise UserError(message, key=f"{key}.pairs", value=OUTPUT, fix="pairs=last, or paths of layers")
        elif output_kind not in self.kind.outputs:
            fitting = [name for name, kind in KINDS.items() if output_kind in kind.outputs]
            features = ", ".join(name for name, kind in KINDS.items() if kind.of == FEATURES)
            message = f"{self.name} compares {_any_of(self.kind.outputs)}, and this task's outputs are {found}"
            fix = ", ".join([*fitting, f"losses of features ({features}), or your own by its dotted path"])
            fix += f"; {self.name}: null in a recipe leaves it out"
            raise UserError(message, key=key, fix=fix)
        elif self.softened and output_kind not in SOFTENED and not self.kind.is_own:
            message = f"a temperature softens logits, and this task's outputs are {found}"
            raise UserError(message, key=f"{key}.{TEMPERATURE}", value=self.options[TEMPERATURE], fix="leave it out")


def read_terms(given: Mapping[str, Any] | Sequence[str], pairs: Any, temperature: float) -> list[Term]:
    """The terms of a recipe: a name with its weight, or with ``weight``, ``pairs`` and options of the loss.

    Args:
        given: by name, one that is None is left out; or a list of names, which all weigh 1.
        pairs: which layers those compare that do not say; None for each loss's own choice.
        temperature: of those losses of outputs that do not say.

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
    kind = KINDS[name] if name in KINDS else own_kind(name, FEATURES if options.get("pairs") else OUTPUTS)
    weight = options.pop("weight", 1.0)
    if not is_number(weight) or not weight > 0:
        raise UserError(f"{weight!r} is not a weight above 0", key=key, value=weight, fix=f"~{key} leaves it out")
    which = (options.pop("pairs", pairs) or kind.pairs) if kind.pairs else ""
    known = set(kind.options)
    for option in options:
        if option not in known:
            fix = did_you_mean(option, known | {"weight"} | ({"pairs"} if kind.pairs or name not in KINDS else set()))
            raise UserError(f"{name} takes no '{option}'", key=f"{key}.{option}", fix=fix)
    if kind.pairs:
        check_pairs(which)
        if which == OUTPUT and kind.of != FEATURES:
            message = f"{name} compares layers with attention inside"
            raise UserError(message, key=f"{key}.pairs", value=which, fix="blocks, stages, last, or paths of layers")
    softened = TEMPERATURE in options
    if TEMPERATURE in known:
        options = {TEMPERATURE: temperature} | options
    return Term(name, float(weight), which, options, softened)


def _any_of(kinds: tuple[str, ...]) -> str:
    *most, last = (WORDS[kind] for kind in kinds)
    return f"{', '.join(most)} or {last}" if most else last
