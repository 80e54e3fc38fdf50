"""The stage as a whole: what it compares, what it refuses, what it leaves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.core.task import SealedTask
from optkit.distill import Distillation, DistillationObjective, hint_loss, kd_loss
from optkit.distill.pairs import layer_pairs
from optkit.distill.terms import read_terms
from optkit.models import ResNetCIFAR, SmallCNN
from optkit.prune import prune_depth
from optkit.training import Callback, Trainer
from tests.distill.texts import bert, task_of

ADAMW = {"optimizer": "adamw", "lr": 0.01, "batch_size": 32, "precision": "fp32"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return task_of(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def text_context(context, texts):
    def make(teacher, max_steps=None):
        ctx = context(max_steps=max_steps)
        object.__setattr__(ctx, "task", SealedTask(texts))
        object.__setattr__(ctx, "baseline", lambda: copy.deepcopy(teacher))
        return ctx

    return make


def _bert(texts, **sizes):
    return bert(**sizes, **texts.model_defaults())


def _hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def _objective(task, student, teacher, losses, alpha=1.0, pairs=None):
    return DistillationObjective(SealedTask(task), student, teacher, read_terms(losses, pairs, 4.0), alpha=alpha)


def test_hidden_states_are_compared_where_there_is_text(texts):
    student, teacher = _bert(texts), _bert(texts, layers=4, seed=1)
    batch = next(texts.batches("train", 16, training=True))
    ids, mask = batch.inputs
    assert not mask.bool().all()
    for model in (student, teacher):
        model.model.set_attn_implementation("eager")
    theirs = teacher.model(ids, mask, output_hidden_states=True, output_attentions=True)
    ours = student.model(ids, mask, output_hidden_states=True, output_attentions=True)
    real = mask.bool()
    expected = torch.stack(
        [F.mse_loss(ours.hidden_states[s][real], theirs.hidden_states[t][real]) for s, t in ((1, 2), (2, 4))]
    ).mean()
    losses = {"kd": 1.0, "hidden": 0.5}
    with _objective(texts, student, teacher, losses, alpha=0.8) as objective:
        found = objective(student, batch)
    kd = kd_loss(ours.logits, theirs.logits, 4.0)
    labels = F.cross_entropy(ours.logits, batch.targets)
    torch.testing.assert_close(found, 0.8 * (kd + 0.5 * expected) + 0.2 * labels)
    assert list(objective.own.parameters()) == []


def test_what_stands_in_the_padding_does_not_matter(texts):
    student, teacher = _bert(texts), _bert(texts, seed=1)
    batch = next(texts.batches("train", 16, training=True))
    losses = {"hidden": 1.0, "attention": 1.0, "relations": 1.0, "similarity": 1.0, "rkd": 1.0, "hint": 1.0}
    with _objective(texts, student, teacher, losses) as objective:
        before = objective(student, batch)
        ids, mask = batch.inputs
        batch.inputs = (torch.where(mask.bool(), ids, 7), mask)
        torch.testing.assert_close(objective(student, batch), before)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_maps_are_compared_before_the_softmax(texts, implementation):
    student, teacher = _bert(texts, layers=1), _bert(texts, layers=1, seed=1)
    batch = next(texts.batches("train", 4, training=True))
    ids, mask = batch.inputs
    expected = []
    for model in (student, teacher):
        model.model.set_attn_implementation(implementation)
        layer = model.model.bert.encoder.layer[0].attention.self
        x = model.model.bert.embeddings(ids)
        split = (len(ids), ids.shape[1], 2, 8)
        q, k = (f(x).view(split).transpose(1, 2) for f in (layer.query, layer.key))
        expected.append(q @ k.transpose(-1, -2) / 8**0.5)
    both = (mask[:, None, :, None] * mask[:, None, None, :]).bool().expand_as(expected[0])
    with _objective(texts, student, teacher, {"attention": 1.0}) as objective:
        torch.testing.assert_close(objective(student, batch), F.mse_loss(expected[0][both], expected[1][both]))


def test_a_student_learns_its_teachers_hidden_states_through_a_projection(texts, text_context):
    teacher, student = _bert(texts, layers=4, width=32, seed=1), _bert(texts)
    names = set(student.state_dict())
    ctx = text_context(teacher)
    stage = Distillation({"kd": 1.0, "hidden": 1.0, "relations": 1.0}, trainer=Trainer(epochs=6, **ADAMW))
    outcome = stage.apply(student, ctx)
    losses = outcome.facts["training"]["losses"]
    assert losses[-1] < 0.7 * losses[0]
    assert set(outcome.module.state_dict()) == names
    assert _hooks(outcome.module) == 0
    assert outcome.facts["pairs"]["hidden"] == [
        ["model.bert.encoder.layer.0", "model.bert.encoder.layer.1"],
        ["model.bert.encoder.layer.1", "model.bert.encoder.layer.3"],
    ]
    assert list(outcome.facts["projections"].values()) == [[32, 16], [32, 16]]


class _Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, module, step, total):
        if step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_distillation_gets_its_projections_back(texts, text_context, tmp_path):
    teacher = _bert(texts, layers=2, width=32, seed=1)
    stage = Distillation({"hidden": 1.0}, alpha=1.0, trainer=Trainer(epochs=3, **ADAMW))
    made = []
    for name, killed_at in (("whole", (None,)), ("broken", (4, None))):
        ctx = text_context(teacher)
        (tmp_path / name).mkdir()
        object.__setattr__(ctx, "workdir", tmp_path / name)
        for step in killed_at:
            student = _bert(texts)
            if step is not None:
                with pytest.raises(KeyboardInterrupt):
                    stage.apply(student, ctx, [_Kill(step)])
                assert _hooks(student) == 0
            else:
                made.append(stage.apply(student, ctx, [_Kill(None)]))
    assert made[0].facts["training"]["losses"] == made[1].facts["training"]["losses"]
    whole, resumed = (m.module.state_dict() for m in made)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_layer_dropped_student_learns_from_its_teacher(texts, text_context):
    teacher = _bert(texts, layers=4, seed=1)
    student = prune_depth(teacher, texts.example(2), keep=2, by="position").module
    stage = Distillation({"kd": 1.0, "hidden": 1.0, "attention": 1.0}, trainer=Trainer(epochs=1, **ADAMW))
    outcome = stage.apply(student, text_context(teacher))
    assert outcome.facts["projections"] == {}
    assert outcome.module.model.config.num_hidden_layers == 2


def _resnet(depth, width=8, seed=0):
    torch.manual_seed(seed)
    return ResNetCIFAR(depth, 10, 1, width).eval()


def test_stages_of_convolutional_networks_correspond(digits):
    x = digits.example(2)
    assert layer_pairs(_resnet(14), _resnet(20), x, "stages") == [
        ("layer1.1", "layer1.2"), ("layer2.1", "layer2.2"), ("layer3.1", "layer3.2"),
    ]  # fmt: skip
    assert layer_pairs(_resnet(14), _resnet(32), x, "blocks")[:2] == [
        ("layer1.0", "layer1.1"),
        ("layer1.1", "layer1.4"),
    ]
    assert layer_pairs(_resnet(14), _resnet(20), x, "last") == [("layer3.1", "layer3.2")]
    assert layer_pairs(_resnet(14), _resnet(20), x, {"layer[12].1": "layer[12].2"}) == [
        ("layer1.1", "layer1.2"), ("layer2.1", "layer2.2"),
    ]  # fmt: skip


def test_maps_of_other_widths_and_sizes_are_bridged(digits):
    student, teacher = _resnet(14), _resnet(14, width=12, seed=1)
    batch = next(digits.batches("train", 8))
    pairs = {"layer2.1": "layer1.1"}
    with _objective(digits, student, teacher, {"hint": 1.0}, pairs=pairs) as objective:
        found = objective(student, batch)
    (project,) = [m for m in objective.own.modules() if isinstance(m, nn.Conv2d)]
    assert project.weight.shape == (12, 16, 1, 1)
    x = batch.inputs[0]

    def first(model):
        return model.layer1(F.relu(model.bn1(model.conv1(x))))

    with torch.no_grad():
        ours, theirs = student.layer2(first(student)), F.adaptive_avg_pool2d(first(teacher), 4)
        torch.testing.assert_close(found, hint_loss(project(ours), theirs))


@pytest.mark.parametrize("name", ["hint", "attention_transfer", "similarity", "rkd", "dkd", "dist", "hidden"])
def test_every_loss_trains_a_small_network(digits, context, name):
    ctx = context(max_steps=3)
    object.__setattr__(ctx, "baseline", lambda: _resnet(20, seed=1))
    before = _resnet(14).state_dict()
    stage = Distillation({name: 1.0}, alpha=1.0, trainer=Trainer(epochs=1, batch_size=32, lr=0.01, precision="fp32"))
    after = stage.apply(_resnet(14), ctx).module.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert all(torch.isfinite(v).all() for v in after.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {"kdd": 1.0}}, "losses.kdd: no loss 'kdd' .did you mean 'kd'"),
        ({"losses": {"kd": 0}}, "losses.kd: 0 is not a weight above 0"),
        ({"losses": {"kd": None}}, "losses: no loss"),
        ({"losses": {"dkd": {"weight": 1, "beta": 2}}}, "losses.dkd.beta: dkd takes no 'beta'"),
        ({"losses": {"hint": 1}, "pairs": "block"}, "did you mean 'blocks'"),
        ({"losses": {"hint": 1}, "pairs": {}}, "pairs"),
        ({"temperature": 0}, "temperature: 0 is not above 0"),
        ({"alpha": 1.5}, "alpha: 1.5 is not above 0 and up to 1"),
    ],
)
def test_mistakes_in_a_recipe_are_named(options, message):
    if options.get("pairs") == {}:
        options = options | {"pairs": {"a": 1}}
    with pytest.raises(UserError, match=message):
        Distillation(**options)


@pytest.mark.parametrize(
    ("losses", "pairs", "message"),
    [
        ({"hint": 1}, {"layr1.1": "layer1.1"}, "pairs: no module of ResNetCIFAR matches 'layr1.1'"),
        ({"hint": 1}, {"layer*.1": "layer1.1"}, "'layer\\*.1' matches 3 modules of the student, 'layer1.1' 1"),
        ({"hint": 1}, {"layer1.1": "linear"}, "layer1.1 and linear: no projection leads from"),
        ({"attention": 1}, None, "losses.attention: layer1.0 and layer1.0: 0 and 0 attention operations"),
        ({"relations": 1}, None, "losses.relations: layer3.1 and layer3.1: 0 and 0 attention"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(digits, losses, pairs, message):
    stage = Distillation(losses, pairs=pairs)
    model = _resnet(14)
    with pytest.raises(UserError, match=message):
        stage.check(model, SealedTask(digits))
    assert _hooks(model) == 0


def test_models_without_blocks_need_pairs(digits, mlp):
    with pytest.raises(UserError, match="pairs: the blocks of student and teacher do not correspond: none in MLP"):
        Distillation({"hint": 1.0}).check(mlp, SealedTask(digits))
    Distillation({"hint": 1.0}, pairs={"layers.2": "layers.2"}).check(mlp, SealedTask(digits))


def test_heads_that_differ_need_relations(texts):
    few, many = _bert(texts, heads=2), _bert(texts, heads=4, seed=1)
    with pytest.raises(UserError, match="attention maps .*relations compares models of different numbers"):
        _objective(texts, few, many, {"attention": 1.0})
    batch = next(texts.batches("train", 4, training=True))
    with _objective(texts, few, many, {"relations": 1.0}) as objective:
        assert torch.isfinite(objective(few, batch))
    with pytest.raises(UserError, match="losses.relations.heads"):
        _objective(texts, few, many, {"relations": {"heads": 3}})


def test_a_teacher_of_other_classes_is_refused(digits, context):
    ctx = context()
    object.__setattr__(ctx, "baseline", lambda: SmallCNN(7, 1, [8]))
    with pytest.raises(UserError, match="teacher: the teacher has 7 classes, the student 10"):
        Distillation().apply(_resnet(14), ctx)
