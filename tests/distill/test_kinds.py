"""Losses of outputs for every kind of output, what fits which, and what is refused before any work."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context
from optkit.core.task import CLASS_MAPS, CLASSES, EMBEDDINGS, LABELS, OTHER, VALUES, SealedTask
from optkit.core.variant import Variant
from optkit.distill import (
    Distillation,
    DistillationObjective,
    dist_loss,
    embedding_kd_loss,
    kd_loss,
    label_kd_loss,
    map_dist_loss,
    map_kd_loss,
    rkd_loss,
    value_kd_loss,
)
from optkit.distill.ensemble import Ensemble
from optkit.distill.terms import KINDS, read_terms
from optkit.quantize import QuantizationAwareTraining
from optkit.training import Trainer
from tests.contracts.kinds import NUMBERS, KindTask, TinyNet

TRAINER = Trainer(epochs=1, batch_size=16, optimizer="adamw", lr=0.01, schedule="constant", precision="fp32")


def _net(kind, seed=0, **options):
    torch.manual_seed(seed)
    return TinyNet(kind, **options).eval()


def _context(task, teacher, folder, max_steps=None):
    return Context(
        task=SealedTask(task),
        variant=Variant("id", None, frozenset({"float"}), {}),
        baseline=lambda: copy.deepcopy(teacher),
        build_model=lambda node: copy.deepcopy(teacher),
        seed=0,
        device=torch.device("cpu"),
        workdir=folder,
        max_steps=max_steps,
    )


def _pair(*shape):
    torch.manual_seed(0)
    return torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)


def test_labels_are_kd_of_two_classes_each():
    student, teacher = _pair(5, 3)
    zero = torch.zeros(5, 3)
    # the chance of a label with logit z is the softmax of (z, 0)
    two = [torch.stack([x, zero], -1).flatten(0, 1) for x in (student, teacher)]
    torch.testing.assert_close(label_kd_loss(student, teacher, 3.0), kd_loss(*two, 3.0))


def test_values_are_the_mean_square():
    student, teacher = _pair(4, 2, 3)
    torch.testing.assert_close(value_kd_loss(student, teacher), (student - teacher).square().mean())


def test_maps_are_kd_at_every_place():
    student, teacher = _pair(2, 4, 3, 5)
    found = [kd_loss(student[:, :, y, x], teacher[:, :, y, x], 2.0) for y in range(3) for x in range(5)]
    torch.testing.assert_close(map_kd_loss(student, teacher, 2.0), torch.stack(found).mean())
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (student, teacher)]
    torch.testing.assert_close(map_dist_loss(student, teacher, 1.0), dist_loss(*rows, 1.0))


def test_embeddings_are_compared_by_their_angle():
    student, teacher = _pair(6, 4)
    cosines = (student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))
    torch.testing.assert_close(embedding_kd_loss(student, teacher), 1 - cosines.mean())
    torch.testing.assert_close(embedding_kd_loss(3 * teacher, teacher), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("loss", "shape", "options"),
    [
        (label_kd_loss, (5, 3), (2.0,)),
        (value_kd_loss, (5,), ()),
        (map_kd_loss, (2, 3, 4), (2.0,)),
        (map_dist_loss, (2, 3, 4, 4), (2.0,)),
        (embedding_kd_loss, (5, 3), ()),
    ],
)
def test_gradients_reach_the_student_alone_and_equal_outputs_cost_nothing(loss, shape, options):
    student, teacher = _pair(*shape)
    loss(student, teacher, *options).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    same = loss(teacher.detach().clone(), teacher, *options)
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_student_comes_nearer_to_its_teacher_by_kd_alone(kind, tmp_path):
    task, teacher, student = KindTask(kind), _net(kind, 1), _net(kind)
    nn.init.normal_(teacher.head.weight)  # an answer that differs between examples
    stage = Distillation(alpha=1.0, trainer=replace(TRAINER, epochs=12))
    stage.check(student, SealedTask(task))
    losses = stage.apply(student, _context(task, teacher, tmp_path)).facts["training"]["losses"]
    assert losses[-1] < 0.7 * losses[0]


def test_the_objective_weighs_teacher_and_task():
    task, student, teacher = KindTask(VALUES), _net(VALUES), _net(VALUES, 1)
    batch = next(task.batches("train", 16))
    ours, theirs = student(*batch.inputs), teacher(*batch.inputs)
    objective = DistillationObjective(SealedTask(task), student, teacher, read_terms({"kd": 2.0}, None, 4.0), alpha=0.7)
    expected = 0.7 * 2 * F.mse_loss(ours, theirs) + 0.3 * F.mse_loss(ours, batch.targets)
    torch.testing.assert_close(objective(student, batch), expected)


FITTING = {
    CLASSES: {"kd", "dkd", "dist"},
    LABELS: {"kd"},
    VALUES: {"kd"},
    CLASS_MAPS: {"kd", "dist"},
    EMBEDDINGS: {"kd"},
    OTHER: set(),
}


@pytest.mark.parametrize("kind", FITTING)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.of == "outputs"])
def test_a_loss_of_outputs_trains_what_it_fits_and_refuses_the_rest(kind, name, tmp_path):
    of_model = kind if kind in NUMBERS else "dict"
    task, student = KindTask(of_model), _net(of_model)
    stage = Distillation({name: 1.0}, trainer=TRAINER)
    if name in FITTING[kind]:
        stage.check(student, SealedTask(task))
        after = stage.apply(student, _context(task, _net(of_model, 1), tmp_path, max_steps=2)).module
        assert all(x.isfinite().all() for x in after.state_dict().values())
        return
    with pytest.raises(UserError) as caught:
        stage.check(student, SealedTask(task))
    assert caught.value.key == f"losses.{name}"
    named = caught.value.fix.partition("losses of features")[0]
    assert {word.strip() for word in named.split(",")} - {""} == FITTING[kind]
    assert caught.value.fix.endswith(f"{name}: null in a recipe leaves it out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_features_are_compared_whatever_the_outputs(kind, tmp_path):
    task, student, teacher = KindTask(kind), _net(kind), _net(kind, 1, blocks=4)
    stage = Distillation({"hidden": 1.0, "attention": 1.0, "rkd": 0.1}, trainer=replace(TRAINER, epochs=4))
    stage.check(student, SealedTask(task))
    losses = stage.apply(student, _context(task, teacher, tmp_path)).facts["training"]["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (CLASSES, "teacher: the teacher has 7 classes, the student 4"),
        (LABELS, "teacher: the teacher has 7 labels, the student 5"),
        (VALUES, r"teacher: the teacher gives \[7\] for an example, the student \[2\]"),
        (CLASS_MAPS, r"teacher: the teacher gives \[7, 4, 4\] for an example, the student \[3, 4, 4\]"),
        (EMBEDDINGS, r"teacher: the teacher gives \[7\] for an example, the student \[6\]"),
    ],
)
def test_a_teacher_of_another_number_of_outputs_is_refused(kind, message, tmp_path):
    task, teacher = KindTask(kind), _net(kind, outputs=7)
    with pytest.raises(UserError, match=message):
        Distillation().apply(_net(kind), _context(task, teacher, tmp_path))


def test_a_teacher_of_other_outputs_teaches_features(tmp_path):
    task, teacher = KindTask(CLASSES), _net(CLASSES, outputs=7)
    stage = Distillation({"hint": 1.0}, trainer=TRAINER)
    assert stage.apply(_net(CLASSES), _context(task, teacher, tmp_path, max_steps=1)).facts["pairs"]["hint"]


def test_distances_between_embeddings_of_another_width(tmp_path):
    task, student, teacher = KindTask(EMBEDDINGS), _net(EMBEDDINGS), _net(EMBEDDINGS, 1, outputs=9)
    losses = {"rkd": {"weight": 0.5, "pairs": "output"}}
    batch = next(task.batches("train", 8))
    with DistillationObjective(SealedTask(task), student, teacher, read_terms(losses, None, 4.0), alpha=1.0) as found:
        expected = 0.5 * rkd_loss(student(*batch.inputs), teacher(*batch.inputs))
        torch.testing.assert_close(found(student, batch), expected)
        assert found.facts()["pairs"] == {"rkd": [["output", "output"]]}
    # no layer inside is needed: the teacher may be recorded
    stage = Distillation(losses, alpha=1.0, cached_views=1, trainer=TRAINER)
    stage.check(student, SealedTask(task))
    stage.apply(student, _context(task, teacher, tmp_path))


@pytest.mark.parametrize("kind", [VALUES, CLASS_MAPS, EMBEDDINGS])
def test_outputs_of_any_shape_are_recorded(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    task, teacher = KindTask(kind), _net(kind, 1)
    made = []
    for views in (1, None):
        stage = Distillation(alpha=1.0, cached_views=views, trainer=TRAINER)
        folder = tmp_path / str(views)
        folder.mkdir()
        if views is None:  # the same batches, the teacher running
            seed = derive_seed(0, "recorded", 0)
            monkeypatch.setattr(DistillationObjective, "batches_seed", lambda _, epoch, seed=seed: seed)
        made.append(stage.apply(_net(kind), _context(task, teacher, folder)).facts["training"]["losses"])
    assert made[0] == pytest.approx(made[1], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            VALUES,
            {"cached_views": 1, "cached_top": 1},
            "cached_top: keeps the largest logits of classes or tokens, .* values",
        ),
        ("dict", {"losses": {"kd": 1}, "cached_views": 1}, "losses.kd: kd compares .* of another kind"),
        (
            VALUES,
            {"losses": {"kd": {"temperature": 2}}},
            "losses.kd.temperature: a temperature softens logits, .*values",
        ),
        ("dict", {"losses": {"rkd": 1}, "pairs": "output"}, "losses.rkd.pairs: rkd compares outputs of one tensor"),
    ],
)
def test_options_that_do_not_fit_the_outputs_are_refused_before_any_work(kind, options, message):
    with pytest.raises(UserError, match=message):
        Distillation(**options).check(_net(kind), SealedTask(KindTask(kind)))


def test_attention_has_layers():
    with pytest.raises(UserError, match="losses.attention.pairs: attention compares layers with attention inside"):
        Distillation({"attention": 1.0}, pairs="output")


@pytest.mark.parametrize("kind", [LABELS, VALUES, EMBEDDINGS, "dict"])
def test_smoothing_without_classes_is_refused_before_any_work(kind):
    with pytest.raises(UserError, match="label_smoothing: "):
        Trainer(label_smoothing=0.1).check(_net(kind), SealedTask(KindTask(kind)))
    Trainer().check(_net(kind), SealedTask(KindTask(kind)))


@pytest.mark.parametrize("kind", [CLASSES, CLASS_MAPS])
def test_classes_are_smoothed(kind):
    Trainer(label_smoothing=0.1).check(_net(kind), SealedTask(KindTask(kind)))


def test_several_teachers_of_values_are_averaged(tmp_path):
    task, student, teacher = KindTask(VALUES), _net(VALUES), _net(VALUES, 1)
    stage = Distillation(teacher=[None, None], trainer=TRAINER)
    stage.apply(student, _context(task, teacher, tmp_path, max_steps=1))
    with pytest.raises(UserError, match="teacher: a teacher gives a dict, and the mean of several is of tensors"):
        Ensemble([_net("dict"), _net("dict")])(*task.example(2))
    with pytest.raises(UserError, match=r"teacher: the teachers give \[2, 2\], \[2, 7\]"):
        Ensemble([_net(VALUES), _net(VALUES, outputs=7)])(*task.example(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LABELS, VALUES, CLASS_MAPS, EMBEDDINGS])
def test_int8_is_trained_by_a_teacher_of_any_kind(kind, tmp_path):
    task, student, teacher = KindTask(kind), _net(kind), _net(kind, 1)
    stage = QuantizationAwareTraining(batches=2, training=Distillation(trainer=TRAINER))
    stage.check(student, SealedTask(task))
    outcome = stage.apply(student, _context(task, teacher, tmp_path, max_steps=2))
    assert outcome.module(*task.example(3)).isfinite().all()


def boxes_loss(student, teacher, targets, sharpness=1.0):
    assert set(targets) == {"box", "label"}
    return sharpness * F.l1_loss(student["boxes"], teacher["boxes"])


def rows_loss(student, teacher):
    return (student["boxes"] - teacher["boxes"]).abs().mean(1)


def features_loss(student, teacher):
    return F.l1_loss(student, teacher)


def test_a_loss_of_ones_own_compares_outputs_of_any_structure(tmp_path):
    task, student, teacher = KindTask("dict"), _net("dict"), _net("dict", 1)
    losses = {
        f"{__name__}.boxes_loss": {"weight": 2.0, "sharpness": 3.0},
        f"{__name__}.features_loss": {"pairs": "blocks"},
    }
    stage = Distillation(losses, alpha=1.0, trainer=TRAINER)
    stage.check(student, SealedTask(task))
    batch = next(task.batches("train", 8))
    with DistillationObjective(SealedTask(task), student, teacher, stage._terms[:1], alpha=1.0) as objective:
        expected = 6 * F.l1_loss(student(*batch.inputs)["boxes"], teacher(*batch.inputs)["boxes"])
        torch.testing.assert_close(objective(student, batch), expected)
    facts = stage.apply(student, _context(task, teacher, tmp_path, max_steps=2)).facts
    assert len(facts["pairs"][f"{__name__}.features_loss"]) == 2
    with pytest.raises(UserError, match=r"losses.*rows_loss: gives \[\d+\] \(it must give a finite scalar tensor"):
        Distillation({f"{__name__}.rows_loss": 1.0}).check(student, SealedTask(task))
