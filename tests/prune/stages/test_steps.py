import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from torchvision.models import VisionTransformer

from optkit.core.errors import UserError
from optkit.distill import Distillation
from optkit.models import ResNetCIFAR, SmallCNN
from optkit.prune import MagnitudePruning, StructuredPruning
from optkit.prune.stages.steps import geometric_amounts, size_of
from optkit.training import Callback, Train, Trainer

TRAINER = Trainer(epochs=2, batch_size=64, lr=0.01, precision="fp32")


def _model():
    torch.manual_seed(0)
    return ResNetCIFAR(8, 10, 1, 8).eval()


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, module, step, total):
        if step == self.step:
            raise KeyboardInterrupt


@dataclass
class Recorded:
    """A training that notes its contexts and dies in one of them, three quarters through."""

    trainer: Trainer = field(default_factory=lambda: TRAINER)
    dies_in: int = 0
    contexts: list = field(default_factory=list)

    def apply(self, module, ctx, callbacks=()):
        self.contexts.append(ctx)
        total = ctx.max_steps or self.trainer.epochs * math.ceil(ctx.task.size("train") / self.trainer.batch_size)
        kill = Kill(total * 3 // 4 if len(self.contexts) == self.dies_in else None)
        return Train(self.trainer).apply(module, ctx, [*callbacks, kill])


def test_every_step_takes_the_same_share_of_what_is_left():
    amounts = geometric_amounts(0.75, 4)
    left = [1.0] + [1 - amount for amount in amounts]
    assert amounts[-1] == 0.75
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.25**0.25] * 4)
    assert geometric_amounts(0.3, 1) == [0.3]


@pytest.mark.parametrize("training", [Train(TRAINER), Distillation(trainer=TRAINER)])
def test_cuts_in_steps_reach_the_amount_and_replay(context, training):
    ctx = context(max_steps=2)
    object.__setattr__(ctx, "baseline", _model)
    stage = StructuredPruning(0.5, steps=3, training=training)
    outcome = stage.apply(_model(), ctx)
    cut, steps = outcome.facts["cut"], outcome.facts["steps"]
    assert cut["macs_after"] / cut["macs_before"] == pytest.approx(0.5, abs=0.03)
    reached = [1 - step["cut"]["macs_after"] / step["cut"]["macs_before"] for step in steps]
    assert reached == pytest.approx(geometric_amounts(0.5, 3), abs=0.03)
    assert all(step["training"]["steps"] == 2 for step in steps)
    assert len(outcome.surgery["steps"]) == 3

    fresh = StructuredPruning.replay(_model(), json.loads(json.dumps(outcome.surgery)), ctx.task.example(2))
    fresh.load_state_dict(outcome.module.state_dict())
    inputs = ctx.task.example(4)
    assert torch.equal(fresh.eval()(*inputs), outcome.module(*inputs))


def test_masks_in_steps_keep_their_zeros_through_the_training(mlp, context):
    outcome = MagnitudePruning(0.8, steps=4, training=Train(TRAINER)).apply(mlp, context())
    removed = [step["weights_removed"] / step["weights"] for step in outcome.facts["steps"]]
    assert removed == pytest.approx(geometric_amounts(0.8, 4), abs=1e-3)
    zeros = sum(int((p == 0).sum()) for p in outcome.module.parameters() if p.dim() > 1)
    assert zeros == outcome.facts["weights_removed"]
    assert outcome.surgery is None


def test_a_step_smaller_than_a_channel_is_left_to_the_next(context):
    torch.manual_seed(0)
    model = SmallCNN(10, 1, [4, 4]).eval()
    stage = StructuredPruning(0.6, budget="params", steps=5, training=Recorded())
    outcome = stage.apply(model, context(max_steps=1))
    assert None in outcome.surgery["steps"]
    assert len(stage.training.contexts) == 5
    cut = outcome.facts["cut"]
    assert cut["params_after"] == sum(p.numel() for p in outcome.module.parameters())
    rebuilt = StructuredPruning.replay(SmallCNN(10, 1, [4, 4]), outcome.surgery, ())
    rebuilt.load_state_dict(outcome.module.state_dict())


def test_a_first_step_smaller_than_a_channel_takes_nothing(context):
    torch.manual_seed(0)
    ctx, model = context(max_steps=1), SmallCNN(10, 1, [4, 4]).eval()
    whole = size_of(model, ctx.task.example(1))
    outcome = StructuredPruning(0.5, floor=0.5, steps=20, between=0.1, training=Recorded()).apply(model, ctx)
    first = outcome.facts["steps"][0]["cut"]
    assert outcome.surgery["steps"][0] is None
    assert first["macs_after"] == first["macs_before"] == whole["macs"]
    assert first["amount"] == pytest.approx(1 - 0.5 ** (1 / 20))
    cut = outcome.facts["cut"]
    assert (cut["macs_before"], cut["criterion"], cut["amount"]) == (whole["macs"], "l2", 0.5)
    assert cut["macs_after"] == size_of(outcome.module, ctx.task.example(1))["macs"]
    assert cut["macs_after"] / cut["macs_before"] == pytest.approx(0.5, abs=0.1)
    rebuilt = StructuredPruning.replay(SmallCNN(10, 1, [4, 4]), outcome.surgery, ())
    rebuilt.load_state_dict(outcome.module.state_dict())


@pytest.mark.parametrize("steps", [1, 2])
def test_an_amount_smaller_than_a_channel_is_refused(context, steps):
    stage = StructuredPruning(0.01, steps=steps, training=Recorded() if steps > 1 else None)
    with pytest.raises(UserError, match="the smallest cut is far from 1.0% of the macs"):
        stage.apply(SmallCNN(10, 1, [4, 4]).eval(), context(max_steps=1))


def test_the_floor_counts_from_the_model_before_the_first_step(context):
    stage = StructuredPruning(0.65, budget="params", floor=0.5, steps=2, training=Recorded())
    outcome = stage.apply(_model(), context(max_steps=1))
    first, second = ({layer["name"]: layer for layer in cut["layers"]} for cut in outcome.surgery["steps"])
    assert all(2 * second[name]["kept"] >= layer["units"] for name, layer in first.items())
    assert any(layer["kept"] < layer["units"] for layer in second.values())


def test_between_shortens_all_trainings_but_the_last(mlp, context):
    training = Recorded()
    ctx = context(max_steps=None)
    outcome = MagnitudePruning(0.5, steps=3, between=0.25, training=training).apply(mlp, ctx)
    whole = 2 * -(-ctx.task.size("train") // 64)
    assert [step["training"]["steps"] for step in outcome.facts["steps"]] == [-(-whole // 4), -(-whole // 4), whole]
    assert len({c.seed for c in training.contexts}) == len({c.workdir for c in training.contexts}) == 3
    assert all("sparse" in c.variant.traits for c in training.contexts)


@pytest.mark.parametrize("make", [StructuredPruning, MagnitudePruning])
@pytest.mark.parametrize("dies_in", [2, 3])
def test_a_kill_costs_the_unfinished_step_only_and_changes_nothing(context, tmp_path, make, dies_in):
    def apply(training, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        ctx = replace(context(max_steps=None), workdir=tmp_path / folder)
        return make(0.5, steps=3, between=0.5, training=training).apply(_model(), ctx)

    whole = apply(Recorded(), "whole")
    with pytest.raises(KeyboardInterrupt):
        apply(Recorded(dies_in=dies_in), "killed")
    again = Recorded()
    resumed = apply(again, "killed")
    assert len(again.contexts) == 4 - dies_in
    assert resumed.surgery == whole.surgery
    assert resumed.resumed_s > 0
    expected = whole.module.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in resumed.module.state_dict().items())
    assert [f["training"]["losses"] for f in resumed.facts["steps"]] == [
        f["training"]["losses"] for f in whole.facts["steps"]
    ]


def test_a_kill_in_the_training_keeps_the_cut(context, tmp_path):
    class Unsteady(StructuredPruning):
        """Cuts other channels each time, as a budget of latency may."""

        cuts = 0

        def one_step(self, module, ctx, amount, earlier):
            Unsteady.cuts += 1
            return super().one_step(module, replace(ctx, seed=Unsteady.cuts), amount, earlier)

    ctx = replace(context(max_steps=None), workdir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Unsteady(0.5, criterion="random", training=Recorded(dies_in=1)).apply(_model(), ctx)
    outcome = Unsteady(0.5, criterion="random", training=Recorded()).apply(_model(), ctx)
    assert Unsteady.cuts == 1
    fresh = Unsteady.replay(_model(), outcome.surgery, ctx.task.example(2))
    fresh.load_state_dict(outcome.module.state_dict())


@pytest.mark.parametrize("make", [StructuredPruning, MagnitudePruning])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: 0 is not a whole number"),
        ({"steps": 3}, r"training: missing; 3 steps need a training stage.*\+stage@stages.NAME.training=train"),
        ({"between": 0}, "between: 0 is not a share above 0 and up to 1"),
        ({"training": "train"}, "training: 'train' is not a training stage"),
    ],
)
def test_mistakes_are_named(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_steps_add_up_for_attention_that_torch_fuses_in_evaluation(context):
    torch.manual_seed(0)
    model = VisionTransformer(8, 4, 2, 4, 32, 64, num_classes=10)
    model.conv_proj = torch.nn.Conv2d(1, 32, 4, 4)
    amounts = geometric_amounts(0.4, 3)
    outcomes, module = [], model.eval()
    for amount in amounts:
        stage = StructuredPruning(0.4, steps=3, training=Recorded())
        outcomes.append(stage.one_step(module, context(), amount, [outcome.facts for outcome in outcomes]))
        module = outcomes[-1].module
    cuts = [outcome.facts["cut"] for outcome in outcomes]
    assert [1 - cut["macs_after"] / cut["macs_before"] for cut in cuts] == pytest.approx(amounts, abs=0.03)
