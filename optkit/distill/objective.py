"""The objective of distillation: a weighted sum of losses against a teacher, and the task's own against the labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError, first_line
from optkit.core.seeds import derive_seed
from optkit.core.structure import as_float
from optkit.core.task import CLASSES, LABELS, POOL, Batch, HasModelInputs, Task
from optkit.distill.bridges import bridges_for
from optkit.distill.pairs import OUTPUT, Pairs, layer_pairs
from optkit.distill.recorded import RecordedOutputs, run_teacher
from optkit.distill.taps import Attention, Tapped, Taps, tapping
from optkit.distill.terms import ATTENTION, FEATURES, OUTPUTS, RELATIONS, WORDS, Term
from optkit.models.compatibility import answer_to

CLOSED = -1e4  # scores below are masks


class DistillationObjective:
    """``alpha`` times the weighted losses against a teacher plus ``1 - alpha`` times the task's own.

    Used as a context: the taps on student and teacher are there within it and gone after it.

    Args:
        task: gives the forward pass and the loss against the labels.
        student: the module that will be trained.
        teacher: in eval mode, on the student's device.
        terms: the losses.
        alpha: weight of the teacher against the labels; 1 uses the teacher alone.
        label_smoothing: of the task's own loss.
        seed: of the first weights of projections.
        recorded: the teacher's outputs as recorded; None runs the teacher on every batch.
        run: the teacher as it is to be run, such as compiled, where only its outputs count; None is the teacher itself.

    Attributes:
        own: the projections from the student's features to the teacher's, trained with the student.
        pairs: the layers that each term compares.
        split: what is trained on: train, and what the task has without labels.

    Raises:
        UserError: a loss that does not fit the task's outputs; student and teacher do not fit: outputs, layers, or
            shapes that no projection bridges.
    """

    split = POOL

    def __init__(
        self,
        task: Task,
        student: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term],
        *,
        alpha: float,
        label_smoothing: float = 0.0,
        seed: int = 0,
        recorded: RecordedOutputs | None = None,
        run: nn.Module | None = None,
    ):
        self.task, self.terms, self.recorded = task, terms, recorded
        self.teacher = teacher if run is None else run
        self.alpha, self.label_smoothing = alpha, label_smoothing
        self.pairs: dict[str, Pairs] = {}
        self._mask_at = _place_of_mask(task)
        batch = next(task.batches("train", 2)).to(_device(student))
        for term in terms:
            term.check(task.output_kind)
            if not term.compares_outputs:
                if isinstance(task, HasModelInputs):
                    message = "layers cannot be compared where a model runs several times for a batch"
                    raise UserError(message, key="losses", value=term.name, fix="compare outputs only")
                self.pairs[term.name] = layer_pairs(student, teacher, batch.inputs, term.pairs)
        attention = any(term.kind.of in (ATTENTION, RELATIONS) for term in terms)
        ours, theirs = ([pair[side] for pairs in self.pairs.values() for pair in pairs] for side in (0, 1))
        self._ours, self._theirs = Taps(student, ours, attention), Taps(teacher, theirs, attention)
        outputs, seen = self._run_both(student, teacher, batch)
        self.own = self._fit_together(outputs, seen, seed).to(_device(student))
        with torch.no_grad():
            self._try_own(batch, outputs, seen)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._ours)
            stack.enter_context(self._theirs)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        target = self._target(batch)
        with self._ours.watching():
            output = as_float(self.task.forward(module, batch))
        ours, theirs = self._ours.pop(), self._theirs.pop()
        mask = None if self._mask_at is None else batch.inputs[self._mask_at].bool()
        with torch.autocast(batch.index.device.type, enabled=False):
            loss = torch.zeros((), device=batch.index.device)
            for term in self.terms:
                value = self._value(term, (output, target), (ours, theirs), batch.targets, mask)
                loss = loss + term.weight * value
            loss = self.alpha * loss
            if self.alpha < 1:
                loss = loss + (1 - self.alpha) * self.task.loss(output, batch, self.label_smoothing)
        return loss

    def batches_seed(self, epoch: int) -> int | None:
        """With recorded outputs, every epoch is one of the recorded passes."""
        return None if self.recorded is None else self.recorded.begin(epoch)

    def _target(self, batch: Batch) -> Any:
        if self.recorded is not None:
            return self.recorded(batch)
        with self._theirs.watching():
            return run_teacher(self.task, self.teacher, batch)

    def facts(self) -> dict[str, Any]:
        """The pairs of layers that are compared, and their projections; JSON-able."""
        pairs = {t.name: self.pairs.get(t.name, [(OUTPUT, OUTPUT)]) for t in self.terms if t.kind.pairs}
        projections = {
            f"{ours} to {theirs}": list(bridge.project.weight.shape[:2])
            for term in self.terms
            if term.kind.of == FEATURES
            for bridge, (ours, theirs) in zip(self.own[_key(term)], pairs[term.name], strict=True)  # type: ignore[call-overload]
            if not isinstance(bridge.project, nn.Identity)
        }
        listed = {name: [list(pair) for pair in found] for name, found in pairs.items()}
        return {"losses": {t.name: t.weight for t in self.terms}, "pairs": listed, "projections": projections}

    def _run_both(
        self, student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> tuple[list[Any], list[dict[str, Tapped]]]:
        """What both return for a batch, and what their taps see."""
        seen: list[dict[str, Tapped]] = []
        outputs: list[Any] = []
        for model, taps, key in ((student, self._ours, "model"), (teacher, self._theirs, "teacher")):
            with tapping(model, taps.paths, taps.attention) as probe:
                outputs.append(as_float(answer_to(batch.inputs, model, key, lambda m: self.task.forward(m, batch))))
                seen.append(probe.pop())
            for path in taps.paths:
                if path not in seen[-1]:
                    raise UserError(f"{path} did not run, or gives no tensor", key="pairs", value=path)
        return outputs, seen

    def _fit_together(self, outputs: list[Any], seen: list[dict[str, Tapped]], seed: int) -> nn.ModuleDict:
        """Do the outputs and layers of both fit? Returns the bridges between their features."""
        bridges = nn.ModuleDict()
        for term in self.terms:
            if term.compares_outputs and not (term.kind.is_own and term.kind.of == OUTPUTS):
                _check_outputs(term, self.task.output_kind, *outputs)
            if term.kind.of == FEATURES:
                if term.compares_outputs:
                    ours, theirs = ({OUTPUT: x} for x in outputs)
                else:
                    ours, theirs = ({path: t.output for path, t in tapped.items()} for tapped in seen)
                pairs = self.pairs.get(term.name, [(OUTPUT, OUTPUT)])
                of_term = derive_seed(seed, "bridges", term.name)
                bridges[_key(term)] = bridges_for(ours, theirs, pairs, term.kind.widths, of_term)
            elif term.name in self.pairs:
                for pair in self.pairs[term.name]:
                    _check_attention(term, pair, seen[0][pair[0]], seen[1][pair[1]])
        return bridges

    def _try_own(self, batch: Batch, outputs: list[Any], seen: list[dict[str, Tapped]]) -> None:
        """Raises UserError if a loss of one's own fails on two examples, or gives no finite scalar."""
        for term in self.terms:
            if not term.kind.is_own:
                continue
            key = f"losses.{term.name}"
            try:
                value = self._value(term, outputs, seen, batch.targets, None)
            except Exception as error:
                message = f"fails: {type(error).__name__}: {first_line(error)}"
                raise UserError(message, key=key, fix="it is called as loss(student, teacher, ...)") from error
            if not isinstance(value, Tensor) or value.dim() or not torch.isfinite(value):
                shown = list(value.shape) if isinstance(value, Tensor) and value.dim() else value
                raise UserError(f"gives {shown!r}", key=key, fix="it must give a finite scalar tensor")

    def _value(self, term: Term, outputs: Any, seen: Any, targets: Any, mask: Tensor | None) -> Any:
        """A loss of the student's and the teacher's outputs, or of what their taps have seen."""
        ours, theirs = outputs if term.compares_outputs else seen
        if not term.compares_outputs:
            return self._of_layers(term, ours, theirs, mask)
        if term.kind.of == FEATURES:
            return self._of_features(term, 0, ours, theirs, None)
        return term.of_outputs(self.task.output_kind, ours, theirs, targets)

    def _of_layers(self, term: Term, ours: dict[str, Tapped], theirs: dict[str, Tapped], mask: Tensor | None) -> Tensor:
        """The mean of a loss over its pairs of layers."""
        values = []
        for number, (s, t) in enumerate(self.pairs[term.name]):
            if term.kind.of == FEATURES:
                values.append(self._of_features(term, number, ours[s].output, theirs[t].output, mask))
            else:
                of_one = _of_scores if term.kind.of == ATTENTION else _of_relations
                both = zip(ours[s].attention, theirs[t].attention, strict=True)
                values += [of_one(term, a, b, mask) for a, b in both]
        return torch.stack(values).mean()

    def _of_features(self, term: Term, pair: int, ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
        student, teacher = self.own[_key(term)][pair](ours.float(), theirs.float())  # type: ignore[index]
        given = {"mask": mask} if term.kind.takes_mask else {}
        return term.kind.function(student, teacher, **given, **term.options)


def _check_outputs(term: Term, kind: str, ours: Any, theirs: Any) -> None:
    """Raises UserError unless a loss can compare two models' outputs."""
    for output, key in ((ours, "model"), (theirs, "teacher")):
        if not isinstance(output, Tensor):
            message = f"{term.name} compares outputs of one tensor, and the {key} gives a {type(output).__name__}"
            raise UserError(message, key=f"losses.{term.name}", fix="losses of features compare such models")
    if term.kind.of != FEATURES and kind in (CLASSES, LABELS) and ours.dim() != 2:
        message = f"the model gives {list(ours.shape[1:])} for an example, which are no {WORDS[kind]}"
        fix = "say what the outputs are: output_kind='class_maps', 'tokens', or another kind"
        raise UserError(message, key="output_kind", value=kind, fix=fix)
    if term.kind.of == FEATURES or ours.shape == theirs.shape:  # bridges say what they cannot bridge
        return
    if kind in (CLASSES, LABELS) and ours.dim() == theirs.dim():
        message = f"the teacher has {theirs.shape[-1]} {WORDS[kind]}, the student {ours.shape[-1]}"
    else:
        message = f"the teacher gives {list(theirs.shape[1:])} for an example, the student {list(ours.shape[1:])}"
    raise UserError(message, key="teacher", fix="pick another teacher, or compare features only")


def _of_scores(term: Term, ours: Attention, theirs: Attention, mask: Tensor | None) -> Tensor:
    student, open_ = _scores(ours)
    teacher, _ = _scores(theirs)
    if mask is not None and mask.shape == (student.shape[0], student.shape[2]):
        open_ = open_ & mask[:, None, :, None]
    return term.kind.function(student, teacher, open_, **term.options)


def _of_relations(term: Term, ours: Attention, theirs: Attention, mask: Tensor | None) -> Tensor:
    options = dict(term.options)
    values = []
    for name in ("query", "key", "value"):
        student, teacher = getattr(ours, name).float(), getattr(theirs, name).float()
        heads = options.get("heads") or theirs.query.shape[1]  # type: ignore[union-attr]
        fits = mask is not None and mask.shape == (student.shape[0], student.shape[2])
        values.append(term.kind.function(student, teacher, heads, mask if fits else None))
    return torch.stack(values).mean()


def _scores(attention: Attention) -> tuple[Tensor, Tensor]:
    """Scores before the softmax ``(N, heads, L, S)``, without a mask where it is known, and which pairs may attend."""
    if attention.scores is not None:
        scores = attention.scores.float()
        return scores, scores > CLOSED
    assert attention.query is not None
    assert attention.key is not None
    query, key = attention.query.float(), attention.key.float()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(-1, -2) * (attention.scale or query.shape[-1] ** -0.5)
    mask = attention.mask
    if mask is None:
        return scores, scores.new_ones((), dtype=torch.bool)
    if mask.dtype == torch.bool:
        return scores, mask
    return scores + mask.float(), mask > CLOSED


def _check_attention(term: Term, pair: tuple[str, str], ours: Tapped, theirs: Tapped) -> None:
    """Raises UserError unless the attention of two layers can be compared."""
    where = f"{pair[0]} and {pair[1]}"
    if not ours.attention or len(ours.attention) != len(theirs.attention):
        message = f"{where}: {len(ours.attention)} and {len(theirs.attention)} attention operations inside"
        fix = "pair blocks with one each, or leave the loss out"
        raise UserError(message, key=f"losses.{term.name}", fix=fix)
    for a, b in zip(ours.attention, theirs.attention, strict=True):
        if term.kind.of == ATTENTION:
            shapes = [tuple(_scores(x)[0].shape) for x in (a, b)]
            if shapes[0] != shapes[1]:
                message = f"{where}: attention maps {list(shapes[0])} and {list(shapes[1])}"
                fix = "relations compares models of different numbers of heads"
                raise UserError(message, key="losses.attention", fix=fix)
        elif a.query is None or b.query is None:
            message = (
                f"{where}: attention without scaled_dot_product_attention, which shows no queries, keys and values"
            )
            raise UserError(message, key="losses.relations", fix="attention and hidden need none")
        else:
            _check_heads(term, where, a, b)


def _check_heads(term: Term, where: str, ours: Attention, theirs: Attention) -> None:
    assert ours.query is not None
    assert theirs.query is not None
    heads = term.options.get("heads") or theirs.query.shape[1]
    for name in ("query", "key", "value"):
        a, b = getattr(ours, name), getattr(theirs, name)
        widths = [x.shape[1] * x.shape[3] for x in (a, b)]
        if any(width % heads for width in widths) or a.shape[2] != b.shape[2]:
            message = f"{where}: {name} of widths {widths} over {a.shape[2]} and {b.shape[2]} tokens, {heads} heads"
            raise UserError(message, key="losses.relations.heads", value=heads, fix="a divisor of both widths")


def _key(term: Term) -> str:
    """Names a loss's bridges: modules have no dots in their names."""
    return term.name.replace(".", "/")


def _place_of_mask(task: Task) -> int | None:
    """Which of the inputs says what is padding."""
    names = task.model_defaults().get("inputs") or []
    return names.index("attention_mask") if "attention_mask" in names else None


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
