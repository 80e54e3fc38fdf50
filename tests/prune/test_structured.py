import copy
import warnings

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from optkit.core.errors import StageError, UserError
from optkit.models import MLP
from optkit.prune import StructuredPruning
from optkit.prune.cut.plan import CutPlan
from optkit.prune.cut.verify import check_runs, deviation, run
from optkit.prune.options import CRITERIA, NEED_DATA
from optkit.prune.structured import prune_structured
from optkit.tasks import Digits
from tests.prune import zoo

IMAGE = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
TOKENS = (torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0)),)

CASES = {
    "mlp": (zoo.mlp, VECTOR),
    "plain_cnn": (zoo.plain_cnn, IMAGE),
    "cifar_resnet": (zoo.CifarResNet, IMAGE),
    "cifar_resnet_fixed_pad": (lambda: zoo.CifarResNet(fixed=True), IMAGE),
    "grouped_queries": (zoo.Encoder, TOKENS),
    "tied_keys_and_values": (lambda: zoo.Encoder(tied=True), TOKENS),
    "as_many_heads_as_head_dims": (lambda: zoo.Encoder(heads=4, groups=4), TOKENS),
    "rms_norm": (zoo.RMSDecoder, TOKENS),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), IMAGE),
    "resnext": (lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4), IMAGE),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), IMAGE),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), IMAGE),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10), IMAGE),
    "convnext": (lambda: torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(16, 32, 1), torchvision.models.convnext.CNBlockConfig(32, None, 1)],
        num_classes=10), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cut_is_exact_and_replays(name):
    make, inputs = CASES[name]
    torch.manual_seed(0)
    model = zoo.randomize(make())
    before = copy.deepcopy(model.state_dict())
    pruned = prune_structured(model, inputs, amount=0.5)
    assert 0.45 <= zoo.share(pruned) <= 0.55
    assert sum(p.numel() for p in pruned.module.parameters()) == pruned.plan.facts["params_after"]
    zoo.assert_exact(model, pruned, inputs)
    zoo.assert_replays(make, pruned, inputs)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("amount", [0.2, 0.5, 0.7])
def test_budget_is_met(budget, scope, amount):
    model = zoo.randomize(torchvision.models.resnet18(num_classes=10))
    pruned = prune_structured(model, IMAGE, amount=amount, budget=budget, scope=scope)
    assert abs(zoo.share(pruned, budget) - amount) < 0.02
    zoo.assert_exact(model, pruned, IMAGE)


def test_macs_are_those_that_the_flop_counter_sees():
    from torch.utils.flop_counter import FlopCounterMode

    for make, inputs in (CASES["cifar_resnet"], CASES["resnext"], CASES["grouped_queries"]):
        model = zoo.randomize(make())
        pruned = prune_structured(model, inputs, amount=0.4, budget="macs")
        for net, key in ((model, "macs_before"), (pruned.module, "macs_after")):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                net(*inputs)
            assert counter.get_total_flops() // 2 == pruned.plan.facts[key]


def test_padded_shortcuts_are_cut_where_the_padding_can_follow():
    free = prune_structured(zoo.CifarResNet().eval(), IMAGE, amount=0.5)
    fixed = prune_structured(zoo.CifarResNet(fixed=True).eval(), IMAGE, amount=0.5)
    assert free.module.linear.in_features < 32
    assert fixed.module.linear.in_features >= 24  # the 24 padded channels of the last group stay


def test_heads_are_cut_whole_with_the_keys_they_share():
    model = zoo.randomize(zoo.Encoder())
    attention = prune_structured(model, TOKENS, amount=0.5).module.attention
    assert attention.head_dim == 4
    assert attention.heads == 2 * attention.groups < 8


def test_rms_norm_weights_make_up_for_the_cut():
    model = zoo.randomize(zoo.RMSDecoder())
    pruned = prune_structured(model, TOKENS, amount=0.5)
    width = pruned.module.embed.embedding_dim
    assert width < 24
    assert pruned.module.norm1.eps == pytest.approx(0.1 * 24 / width)
    assert pruned.plan.scales["norm1.weight"][0] == pytest.approx((24 / width) ** 0.5)


def test_hard_coded_sizes_freeze_what_they_touch():
    model = zoo.randomize(zoo.HardCoded())
    pruned = prune_structured(model, (torch.randn(2, 3, 8, 8),), amount=0.3)
    assert pruned.module.conv.out_channels == 8
    assert pruned.module.mix.out_features < 16
    assert any("written out" in reason for reason in pruned.plan.frozen["conv.weight[0]"])
    zoo.assert_exact(model, pruned, (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize(("budget", "percent"), [("params", "49.8"), ("macs", "50.0")])
def test_a_missed_budget_is_told(budget, percent, caplog):
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    prune_structured(model, VECTOR, amount=0.3, budget=budget)
    assert not caplog.records
    facts = prune_structured(model, VECTOR, amount=0.3, budget=budget, round_to=32).plan.facts
    assert f"asked for 30.0% of the {budget}, cut {percent}%" in caplog.text
    assert facts["amount"] == 0.3
    assert facts[f"{budget}_after"] / facts[f"{budget}_before"] == pytest.approx(1 - float(percent) / 100, abs=1e-3)


class Between(nn.Module):
    """Two linear layers and a head, with a function between the first and the second."""

    def __init__(self, between, width=32):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(width, 32), nn.Linear(32, 4)
        self.bound, self.between = nn.Parameter(torch.tensor(0.5)), between

    def forward(self, x):
        return self.c(self.b(self.between(self.a(x), self.bound)).relu())


@pytest.mark.parametrize(
    ("between", "width", "frozen_by"),
    [
        (lambda x, bound: torch.clamp(x, max=bound), 32, None),
        (lambda x, bound: torch.clamp(x, bound, bound + 1), 32, None),
        (lambda x, bound: x / (1 + x.std(False)), 32, "std"),
        (lambda x, bound: x / (1 + x.var(1, False, True)), 32, "var"),
        (lambda x, bound: nn.functional.max_pool1d(x, 2), 16, "max_pool1d"),
        (lambda x, bound: nn.functional.adaptive_avg_pool2d(x.unsqueeze(0), (4, 16))[0], 16, "adaptive_avg_pool2d"),
        (lambda x, bound: torch.max(x, bound), 32, None),  # not the maximum along a dimension
    ],
)
def test_operators_in_forms_of_their_own(between, width, frozen_by):
    model = zoo.randomize(Between(between, width))
    pruned = prune_structured(model, VECTOR, amount=0.3)
    zoo.assert_exact(model, pruned, VECTOR)
    if frozen_by is None:
        assert pruned.module.a.out_features < 32
    else:
        assert f"{frozen_by} in the model" in pruned.plan.frozen["a.weight[0]"]


def test_a_mean_over_channels_that_is_an_output_freezes_them_alone():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.a(x).relu().mean(1), self.c(self.b(x).relu())

    model = zoo.randomize(Mean())
    pruned = prune_structured(model, VECTOR, amount=0.2)
    zoo.assert_exact(model, pruned, VECTOR)
    assert pruned.plan.frozen["a.weight[0]"] == ["model output"]
    assert [layer["name"] for layer in pruned.plan.layers] == ["b.weight"]


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.mask = nn.Linear(8, 32), nn.Linear(32, 4), None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.mask is None:
            self.mask = torch.ones(x.shape[1])
        return self.b(self.a(x * self.mask).relu())


class TrainedAside(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.aside = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x):
        x = self.norm(self.a(x))
        return (self.b(x), self.aside(x)) if self.training else self.b(x)


def old_weight_norm():
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(8, 32))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model(*VECTOR)  # leaves a weight with a history on the layer
    return model


def keeping():
    class Keeping(nn.Module):
        """Holds what it computed, as models that show their activations do."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.maps = nn.Linear(8, 32), nn.Linear(32, 4), {"hidden": []}

        def forward(self, x):
            self.maps["hidden"] = [self.a(x).relu()]
            return self.b(self.maps["hidden"][0])

    model = Keeping()
    model(*VECTOR)
    return model


@pytest.mark.parametrize("make", [Caching, TrainedAside, old_weight_norm, keeping])
def test_what_a_run_writes_to_a_model_does_not_reach_the_users(make):
    model = make()
    state = copy.deepcopy(model.state_dict())
    written = [dict(vars(module)) for module in model.modules()]
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    for module, before in zip(model.modules(), written, strict=True):
        assert all(value is before[name] for name, value in vars(module).items() if name != "training")
    assert type(model(*VECTOR)[0]) is type(pruned.module(*VECTOR)[0]) is torch.Tensor


def test_operators_without_a_rule_freeze_and_are_reported():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.c(self.b(self.a(x).sort(-1).values).relu())

    pruned = prune_structured(Sorted().eval(), VECTOR, amount=0.3)
    assert pruned.module.a.out_features == 16
    assert "sort in the model" in pruned.plan.frozen["a.weight[0]"]
    assert "sort in the model" in pruned.plan.summary()


def test_heads_that_only_training_uses_are_cut_too():
    model = zoo.randomize(torchvision.models.googlenet(num_classes=10, init_weights=False))
    inputs = (torch.randn(2, 3, 64, 64),)
    pruned = prune_structured(model, inputs, amount=0.3)
    zoo.assert_exact(model, pruned, inputs)
    outputs = pruned.module.train()(*inputs)
    assert [tuple(t.shape) for t in outputs] == [(2, 10)] * 3


@pytest.mark.parametrize("multiple", [4, 8])
def test_round_to_keeps_multiples(multiple):
    model = torchvision.models.resnet18(num_classes=10).eval()
    pruned = prune_structured(model, IMAGE, amount=0.5, round_to=multiple, budget="macs")
    convs = [m for m in pruned.module.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % multiple == 0 for conv in convs)
    assert abs(zoo.share(pruned, "macs") - 0.5) < 0.03


def test_protected_layers_stay_whole():
    model = torchvision.models.resnet18(num_classes=10).eval()
    pruned = prune_structured(model, IMAGE, amount=0.1, protect=["layer4*", "conv1"])
    for name, module in model.layer4.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape == pruned.module.layer4.get_submodule(name).weight.shape
    assert "protect" in pruned.plan.frozen["layer4.1.conv1.weight[0]"]


def test_pruned_again_exported_compiled_and_trained():
    model = zoo.randomize(zoo.CifarResNet())
    once = prune_structured(model, IMAGE, amount=0.3)
    twice = prune_structured(once.module, IMAGE, amount=0.3)
    zoo.assert_exact(once.module, twice, IMAGE)
    torch.export.export(twice.module, IMAGE)
    compiled = torch.compile(twice.module, backend="aot_eager")
    assert torch.allclose(compiled(*IMAGE), twice.module(*IMAGE), atol=1e-5)
    optimizer = torch.optim.SGD(twice.module.parameters(), lr=0.1)
    twice.module.train()(*IMAGE).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None for p in twice.module.parameters())


def test_replay_of_two_cuts_in_a_row():
    model = zoo.CifarResNet().eval()
    once = prune_structured(model, IMAGE, amount=0.3)
    twice = prune_structured(once.module, IMAGE, amount=0.3)
    fresh = twice.plan.apply(once.plan.apply(zoo.CifarResNet()))
    fresh.load_state_dict(twice.module.state_dict())
    assert torch.equal(fresh.eval()(*IMAGE), twice.module.eval()(*IMAGE))


def test_plan_round_trip(tmp_path):
    pruned = prune_structured(zoo.mlp().eval(), VECTOR, amount=0.5)
    pruned.plan.save(tmp_path / "plan.json")
    assert CutPlan.load(tmp_path / "plan.json") == pruned.plan
    assert "keeps" in pruned.plan.summary()


def test_training_mode_gradients_and_dtype_are_kept():
    model = zoo.CifarResNet().train().double()
    model.linear.weight.requires_grad_(False)
    model.layers[0].eval()
    pruned = prune_structured(model, (IMAGE[0].double(),), amount=0.4)
    assert model.training
    assert not model.layers[0].training
    assert pruned.module.training
    assert not pruned.module.linear.weight.requires_grad
    assert pruned.module.linear.weight.dtype == torch.float64
    assert all(p.grad is None for p in [*model.parameters(), *pruned.module.parameters()])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_and_is_repeatable(criterion):
    model = zoo.randomize(zoo.CifarResNet())
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4)) for _ in range(2)]

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    first, second = (
        prune_structured(model, IMAGE, amount=0.5, criterion=criterion, batches=batches, loss_fn=loss, seed=3)
        for _ in range(2)
    )
    assert first.plan == second.plan
    assert abs(zoo.share(first) - 0.5) < 0.03
    zoo.assert_exact(model, first, IMAGE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0.0}, "amount: 0.0 is not a share"),
        ({"amount": 1.0}, "amount: 1.0 is not a share"),
        ({"criterion": "taylr"}, "did you mean 'taylor'"),
        ({"budget": "mac"}, "did you mean 'macs'"),
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"round_to": 0}, "round_to: 0 is not a whole number"),
        ({"protect": ["layer9*"]}, "no module matches 'layer9"),
        ({"amount": 0.999}, "at most"),
        *[({"criterion": name}, "needs data") for name in NEED_DATA],
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        prune_structured(zoo.mlp().eval(), VECTOR, **{"amount": 0.5, **options})


def test_empty_batches():
    with pytest.raises(UserError, match="no batch"):
        prune_structured(
            zoo.mlp().eval(), VECTOR, amount=0.5, criterion="taylor", batches=[], loss_fn=lambda m, b: m(b).sum()
        )


def test_model_whose_control_flow_depends_on_data():
    class Branching(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UserError, match="cannot be traced"):
        prune_structured(Branching(), VECTOR, amount=0.5)
    with pytest.raises(UserError, match="example_inputs is a Tensor"):
        prune_structured(zoo.mlp(), VECTOR[0], amount=0.5)


def test_nothing_to_cut():
    with pytest.raises(UserError, match="nothing in this model can be cut"):
        prune_structured(nn.Linear(8, 4).eval(), VECTOR, amount=0.5)


def test_plans_for_another_model_are_refused(tmp_path):
    plan = prune_structured(zoo.mlp().eval(), VECTOR, amount=0.5).plan
    with pytest.raises(UserError, match="fresh dense"):
        plan.apply(plan.apply(zoo.mlp()))
    with pytest.raises(UserError, match="not a cut plan"):
        CutPlan.from_json('{"format": "something"}')
    with pytest.raises(UserError, match="cannot read"):
        CutPlan.load(tmp_path / "absent.json")


class Masked(nn.Module):
    """Some outputs are never finite."""

    def __init__(self, share):
        super().__init__()
        self.net, self.share = zoo.mlp(), share

    def forward(self, x):
        scores = self.net(x)
        hidden = torch.arange(scores.shape[1]) < self.share * scores.shape[1]
        return scores.masked_fill(hidden, float("-inf"))


def test_outputs_that_are_not_finite_must_be_the_same_and_are_not_enough():
    assert prune_structured(Masked(0.5), VECTOR, amount=0.3).plan.facts["params_after"]
    with pytest.raises(UserError, match="outputs of Masked are not finite"):
        prune_structured(Masked(1.0), VECTOR, amount=0.3)


def test_a_cut_that_makes_nan_is_not_taken_for_exact():
    model, cut = zoo.mlp().eval(), prune_structured(zoo.mlp(), VECTOR, amount=0.3)
    outputs = [tensor.detach() * float("nan") for tensor in run(cut.module, VECTOR).outputs]
    assert deviation(model, cut.plan, VECTOR, outputs) == float("inf")


def test_a_cut_model_that_does_not_run_names_the_module():
    model = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(StageError, match=r"fails in 1\.1"):
        check_runs(model, VECTOR)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm2d(7), (1, 8, 4, 4)), (nn.LayerNorm(7), (1, 3, 8)), (nn.Linear(7, 2), (1, 3, 8))],
    ids=["batch norm", "layer norm", "linear"],
)
def test_layers_that_do_not_fit_are_named_as_torch_names_them(layer, shape):
    model = nn.Sequential(nn.Identity(), layer)
    with pytest.raises(UserError, match="Sequential cannot be traced: .*7"):
        prune_structured(model, (torch.randn(shape),), amount=0.5)


class Sorted(Digits):
    """Digits that list one class after the other."""

    def load(self):
        splits, classes = super().load()
        return {name: split.subset(np.argsort(split.labels)) for name, split in splits.items()}, classes


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_the_stage_ranks_by_a_sample_of_all_classes(criterion):
    task, stage = Sorted(image_size=8), StructuredPruning(criterion=criterion, batches=1)
    seen = []

    def loss(logits, batch):
        seen.append(batch.index)
        return Digits.loss(task, logits, batch)

    task.loss = loss
    drawn = []
    for seed in (1, 1, 2):
        ranking = stage._ranking(task, seed)
        prune_structured(MLP([1, 8, 8], 10, [16]).eval(), task.example(2), amount=0.5, **ranking)
        drawn.append(torch.cat(seen).unique().tolist())
        seen.clear()
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(task._split("train").labels[drawn[0]]) == set(range(10))
