import copy
import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from optkit.core.errors import StageError, UserError
from optkit.prune import Sensitivity, StructuredPruning, sensitivity
from optkit.prune.cut.analysis import Analysis
from optkit.prune.cut.selection import Selector
from tests.prune import zoo

IMAGE = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
TOKENS = (torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0)),)


def _macs(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("make", "inputs"), [(zoo.CifarResNet, IMAGE), (zoo.RMSDecoder, TOKENS)])
@torch.no_grad()
def test_every_point_is_what_the_really_cut_model_gives(make, inputs):
    torch.manual_seed(0)
    model = zoo.randomize(make())
    before = copy.deepcopy(model.state_dict())

    def evaluate(net):
        return float(net(*inputs).square().mean())

    table = sensitivity(model, inputs, evaluate, shares=[0.4])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert table.dense == evaluate(model)

    analysis = Analysis(model, inputs)
    alone = Selector(analysis.units, analysis.scores(analysis.importance("l2", [], None, 0)), "local", 1, 0).alone
    assert [curve.name for curve in table.curves] == analysis.units.names
    params = sum(p.numel() for p in model.parameters())
    for group, curve in enumerate(table.curves):
        assert len(curve.removed) == 1
        for point, share in enumerate(curve.shares):
            cut = analysis.plan(alone(group, share)).apply(model)
            assert curve.values[point] == pytest.approx(evaluate(cut), rel=1e-4)
            assert params - sum(p.numel() for p in cut.parameters()) == curve.params[point]
            assert _macs(model, inputs) - _macs(cut, inputs) == curve.macs[point]


def test_the_lowest_units_go_and_what_was_really_removed_is_told():
    model = zoo.mlp().eval()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        model[0].weight *= torch.arange(64.0, 0, -1)[:, None]  # the last units are the smallest
    seen = []

    def evaluate(net):
        seen.append(((net[0].weight == 0).all(1), (net[2].weight == 0).all(1)))
        return 0.5

    table = sensitivity(model, VECTOR, evaluate, shares=(0.3, 0.01, 0.301, 0.99))
    first, second = table.curves
    assert (first.name, first.units, first.removed) == ("0.weight", 64, [1, 19, 57])
    assert second.removed == [1, 10, 28]
    assert first.shares == [1 / 64, 19 / 64, 57 / 64]
    for (gone, other), count in zip(seen[1:4], first.removed, strict=True):
        assert gone.nonzero().flatten().tolist() == list(range(64 - count, 64))
        assert not other.any()


def test_a_failing_evaluation_leaves_the_model_as_it_was():
    model = zoo.mlp().train()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def evaluate(net):
        calls.append(net.training)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, VECTOR, evaluate)
    assert calls == [False] * 3
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_harm_is_more_loss_or_less_accuracy():
    model = zoo.mlp().eval()
    for metric, harms in (("loss", [0.5, -0.25]), ("accuracy", [-0.5, 0.25])):
        values = iter([1.0, 1.5, 0.75])
        table = sensitivity(model, VECTOR, lambda net, values=values: next(values), metric=metric, shares=[0.5])
        assert [harm for curve in table.curves for harm in table.harms(curve)] == harms


def test_a_table_is_json(tmp_path):
    table = sensitivity(zoo.mlp().eval(), VECTOR, lambda net: float(net(*VECTOR).sum()), shares=[0.5])
    table.save(tmp_path / "table.json")
    assert Sensitivity.load(tmp_path / "table.json") == table
    assert Sensitivity.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False))) == table
    assert "0.weight    64 units   50%" in table.summary()
    with pytest.raises(UserError, match="not a sensitivity table"):
        Sensitivity.from_json('{"format": "optkit.cut-plan/1"}')
    with pytest.raises(UserError, match="cannot read a sensitivity table"):
        Sensitivity.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": [0.5, 1.0]}, "shares: 1.0 is not a share"),
        ({"shares": []}, "shares: no share"),
        ({"criterion": "taylr"}, "did you mean 'taylor'"),
        ({"criterion": "taylor"}, "needs data"),
        ({"protect": ["9"]}, "no module matches '9'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(UserError, match=message):
        sensitivity(zoo.mlp().eval(), VECTOR, lambda net: 0.0, **options)


def test_a_model_whose_groups_must_all_stay_whole(monkeypatch):
    monkeypatch.setattr("optkit.prune.cut.selection.Selector", partial(Selector, floor=1.0))
    with pytest.raises(UserError, match="every group is a single unit"):
        sensitivity(zoo.mlp().eval(), VECTOR, lambda net: 0.0)


def test_a_loss_that_is_no_number_is_an_error():
    values = iter([0.5, float("nan")])
    with pytest.raises(StageError, match="evaluate gives nan with 1 of 64 units of 0.weight removed"):
        sensitivity(zoo.mlp().eval(), VECTOR, lambda net: next(values), shares=[0.01])


def test_the_stage_measures_on_validation_and_keeps_the_table(context, mlp):
    ctx = context()
    whole = copy.deepcopy(mlp)
    outcome = StructuredPruning(amount=0.3, scope="sensitivity", sensitivity_examples=16).apply(mlp, ctx)
    table = Sensitivity.from_dict(json.loads(json.dumps(outcome.facts["sensitivity"])))
    places = torch.linspace(0, ctx.task.size("validation") - 1, 16).round().long()
    (batch,) = ctx.task.batches("validation", 1000)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(whole(batch.inputs[0][places]), batch.targets[places])
    assert table.dense == pytest.approx(float(expected), rel=1e-5)
    assert outcome.facts["cut"]["macs_after"] == pytest.approx(0.7 * outcome.facts["cut"]["macs_before"], rel=0.03)
