import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn

from optkit.core.errors import StageError, UserError
from optkit.models import ResNetCIFAR, SmallCNN
from optkit.models.stacks import find_stacks
from optkit.prune import DepthPlan, DepthPruning, prune_depth
from optkit.training import Train, Trainer
from scripts.prune_cases import transformer_cases
from tests.prune.zoo import randomize

FAMILIES = [
    "bert", "roberta", "distilbert", "electra", "mpnet", "deberta_v2", "vit", "deit", "convnextv2",
    "gpt2", "llama", "qwen3", "gemma2",
]  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width, place):
        super().__init__()
        self.place, self.width = place, width
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


class Plain(Residual):
    def forward(self, x):
        return self.inner(x)


class Net(nn.Module):
    def __init__(self, kind=Residual, blocks=5):
        super().__init__()
        self.blocks = nn.ModuleList(kind(6, i) for i in range(blocks))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


X = torch.linspace(-1, 1, 24).view(4, 6)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def _without(net, gone, x=X):
    """By hand: the blocks that are gone are not called."""
    for i, block in enumerate(net.blocks):
        x = x if i in gone else block(x)
    return net.head(x)


def _loss(model):
    with torch.no_grad():
        return float((model(X) - 1).square().mean())


def test_what_stays_computes_what_it_computed(net):
    before = copy.deepcopy(net.state_dict())
    made = prune_depth(net, (X,), keep=[0, 2, 3])
    torch.testing.assert_close(made.module(X), _without(net, {1, 4}), rtol=0, atol=0)
    assert type(made.module) is Net
    assert made.plan.facts["removed"] == ["blocks.1", "blocks.4"]
    assert len(net.blocks) == 5
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert [b.place for b in made.module.blocks] == [0, 1, 2]
    assert [b.place for b in net.blocks] == [0, 1, 2, 3, 4]
    assert all(b.width == 6 for b in made.module.blocks)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_greedy_removes_what_a_brute_force_would(net):
    gone = set()
    net.requires_grad_(False)
    for _ in range(3):
        losses = {i: float((_without(net, gone | {i}) - 1).square().mean()) for i in range(5) if i not in gone}
        gone.add(min(losses, key=losses.get))
    made = prune_depth(net, (X,), keep=2, evaluate=_loss)
    assert set(made.plan.facts["removed"]) == {f"blocks.{i}" for i in gone}
    assert made.plan.facts["evaluations"] == 1 + 5 + 4 + 3
    assert made.plan.facts["losses"][-1] == pytest.approx(_loss(made.module))
    assert made.plan.facts["loss_before"] == pytest.approx(_loss(net))


def test_one_pass_removes_those_with_the_lowest_losses(net):
    net.requires_grad_(False)
    alone = sorted(range(5), key=lambda i: float((_without(net, {i}) - 1).square().mean()))
    made = prune_depth(net, (X,), amount=0.4, evaluate=_loss, greedy=False)
    assert made.plan.facts["removed"] == [f"blocks.{i}" for i in alone[:2]]
    assert made.plan.facts["evaluations"] == 1 + 5


def test_a_block_that_does_nothing_goes_first(net):
    for p in net.blocks[3].inner[2].parameters():
        nn.init.zeros_(p)
    made = prune_depth(net, (X,), keep=4, evaluate=lambda m: float((m(X) - net(X)).abs().max()))
    assert made.plan.facts["removed"] == ["blocks.3"]


@pytest.mark.parametrize(("keep", "stay"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 3, 4])])
def test_by_position_keeps_an_even_spread(net, keep, stay):
    assert prune_depth(net, (X,), keep=keep, by="position").plan.kept == {"blocks": stay}


def test_patterns_choose_what_stays(net):
    assert prune_depth(net, (X,), keep=["blocks.[02]"]).plan.kept == {"blocks": [0, 2]}


def test_only_residual_blocks_count():
    assert find_stacks(Net(Plain), (X,)) == []
    with pytest.raises(UserError, match="Net has no residual blocks"):
        prune_depth(Net(Plain), (X,), keep=2)
    with pytest.raises(UserError, match="SmallCNN has no residual blocks"):
        prune_depth(SmallCNN(widths=[8, 8, 8]), (torch.randn(2, 3, 8, 8),), keep=2)


class Normed(nn.Module):
    def __init__(self, norm, residual):
        super().__init__()
        self.linear, self.residual = norm(nn.Linear(8, 8)), residual

    def forward(self, x):
        return torch.relu(self.linear(x)) + self.residual * x


@pytest.mark.parametrize("residual", [False, True])
def test_weight_normed_blocks_are_residual_only_where_they_add(residual):
    model = nn.Sequential(*[Normed(nn.utils.parametrizations.weight_norm, residual) for _ in range(3)])
    assert [stack.blocks for stack in find_stacks(model, (torch.randn(2, 8),))] == [(0, 1, 2)] * residual


def test_blocks_that_give_no_finite_answer_are_not_residual():
    model = nn.Sequential(*[Normed(nn.utils.parametrizations.spectral_norm, False) for _ in range(3)])
    assert find_stacks(model, (torch.randn(2, 8),)) == []


def test_a_loss_that_is_not_finite_is_no_choice(net):
    losses = iter([1.0, 0.5, math.nan])
    with pytest.raises(StageError, match="evaluate gives nan with all blocks but blocks.1"):
        prune_depth(net, (X,), keep=3, evaluate=lambda _: next(losses))


def test_blocks_that_change_the_shape_stay():
    model = ResNetCIFAR(20, 10, 1, 8).eval()
    found = {s.path: s.blocks for s in find_stacks(model, (torch.randn(2, 1, 8, 8),))}
    assert found == {"layer1": (0, 1, 2), "layer2": (1, 2), "layer3": (1, 2)}
    made = prune_depth(model, (torch.randn(2, 1, 8, 8),), keep=1, by="position")
    assert made.plan.kept == {"layer2": [0], "layer3": [0], "layer1": [0]}


def test_no_stack_is_emptied():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Net(blocks=2), Net(blocks=2)

        def forward(self, x):
            return self.one(x) + self.two(x)

    with pytest.raises(UserError, match="nothing would be left of two.blocks"):
        prune_depth(Two(), (X,), keep=[0])
    made = prune_depth(Two(), (X,), keep=2, evaluate=_loss)
    assert all(len(places) == 1 for places in made.plan.kept.values())
    with pytest.raises(UserError, match="3 blocks cannot go"):
        prune_depth(Two(), (X,), keep=1, evaluate=_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "keep: amount or keep must be given, and neither is"),
        ({"amount": 0.5, "keep": 2}, "both are"),
        ({"amount": 1.5}, "amount: 1.5 is not a share"),
        ({"amount": 0.01, "by": "position"}, "amount: removes none of 5 blocks"),
        ({"keep": 5}, "keep: removes none of 5 blocks"),
        ({"keep": -1}, "keep: -1 is no number of blocks"),
        ({"keep": 0, "by": "deepest"}, "keep: 5 blocks cannot go, 4 at most by deepest .keep 1 or more"),
        ({"keep": 0, "by": "influence", "batches": [(X,)]}, "keep: 5 blocks cannot go, 4 at most by influence"),
        ({"keep": [7]}, "keep: 7 is none of the blocks"),
        ({"keep": ["layer.*"]}, "'layer.\\*' is none of the blocks .the 5 blocks are blocks.0 to blocks.4"),
        ({"keep": [0, 1, 2, 3, 4]}, "removes none"),
        ({"keep": 2, "by": "los"}, "did you mean 'loss'"),
        ({"keep": 2}, "evaluate: missing"),
    ],
)
def test_mistakes_are_named(net, options, message):
    with pytest.raises(UserError, match=message):
        prune_depth(net, (X,), **options)


@pytest.fixture(scope="module")
def cases():
    torch.manual_seed(0)
    return transformer_cases()


def _answers(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers_lose_a_block_and_say_so_in_their_config(cases, name):
    make, inputs = cases[name]
    torch.manual_seed(0)
    model = randomize(make()).eval()
    (stack,) = [s for s in find_stacks(model, inputs) if len(s.members) > 1]
    expected_config = copy.deepcopy(model.config.to_dict())
    made = prune_depth(model, inputs, keep=[stack.block(1)])
    assert model.config.to_dict() == expected_config
    fresh = DepthPlan.from_dict(json.loads(json.dumps(made.plan.to_dict()))).apply(make().eval())
    from_config = type(model)(type(model.config).from_dict(made.module.config.to_dict())).eval()
    for other in (fresh, from_config):
        other.load_state_dict(made.module.state_dict())
        assert torch.equal(_answers(other, inputs), _answers(made.module, inputs))
    model.get_submodule(stack.block(0)).register_forward_hook(_give_back, with_kwargs=True)
    torch.testing.assert_close(_answers(model, inputs), _answers(made.module, inputs))


def _give_back(_, args, kwargs, output):
    """By hand: the block that is gone gives back what it got."""
    taken = (args or list(kwargs.values()))[0]
    return (taken, *output[1:]) if isinstance(output, tuple) else taken


def test_stages_of_different_depths_in_a_config(cases):
    make, inputs = cases["swin"]
    made = prune_depth(make(), inputs, keep=["*.0.blocks.0", "*.1.blocks.*"])
    assert made.module.config.depths == [1, 2]
    both = prune_depth(make(), inputs, keep=2, by="position")
    assert both.module.config.depths == [1, 1]


def _resnet():
    torch.manual_seed(0)
    return ResNetCIFAR(14, 10, 1, 8).eval()


def test_the_stage_in_steps_with_training_between(context):
    ctx = context(max_steps=2)
    trainer = Trainer(epochs=1, batch_size=64, lr=0.01, precision="fp32")
    outcome = DepthPruning(amount=None, keep=1, steps=3, training=Train(trainer), examples=64).apply(_resnet(), ctx)
    left = [step["depth"]["blocks_after"] for step in outcome.facts["steps"]]
    assert left == [3, 2, 1]
    assert len(outcome.facts["depth"]["removed"]) == 3
    assert outcome.facts["depth"]["macs_after"] < outcome.facts["depth"]["macs_before"]
    fresh = DepthPruning.replay(_resnet(), json.loads(json.dumps(outcome.surgery)), ctx.task.example(2))
    fresh.load_state_dict(outcome.module.state_dict())
    assert torch.equal(fresh(*ctx.task.example(4)), outcome.module(*ctx.task.example(4)))


def test_the_stage_measures_on_validation(context, digits):
    outcome = DepthPruning(keep=3, amount=None, examples=10_000).apply(_resnet(), context())
    batch = next(digits.batches("validation", 10_000))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(outcome.module(*batch.inputs), batch.targets)
    assert outcome.facts["depth"]["losses"] == [pytest.approx(float(expected), rel=1e-4)]


def test_the_stage_refuses_before_any_work(context, mlp, digits):
    for refuse in (lambda s: s.apply(mlp, context()), lambda s: s.check(mlp, digits)):
        with pytest.raises(UserError, match="model: MLP has no residual blocks"):
            refuse(DepthPruning(training=Train()))
    for options in ({"amount": 2.0}, {"steps": 2}, {"keep": 3}, {"examples": 0}):
        with pytest.raises(UserError):
            DepthPruning(**options)
    with pytest.raises(UserError, match="steps"):
        DepthPruning(amount=None, keep=[0, 1], steps=2, training=Train())


def test_every_choice_of_two_blocks_is_what_skipping_gives(net):
    for stay in itertools.combinations(range(5), 2):
        made = prune_depth(net, (X,), keep=list(stay))
        assert torch.equal(made.module(X), _without(net, set(range(5)) - set(stay)))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_model_with_weight_norm_is_copied(net):
    net.head = nn.utils.weight_norm(net.head)
    net(X)
    made = prune_depth(net, (X,), keep=3, by="position").module
    assert made(X).shape == net(X).shape
