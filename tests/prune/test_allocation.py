import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from optkit.core.errors import UserError
from optkit.prune import Curve, Sensitivity, prune_structured, sensitivity
from optkit.prune.allocation import hull_slopes, order_by_harm
from optkit.prune.cut.selection import Meter, Selector, select
from optkit.prune.cut.units import Slot, Units
from tests.prune import zoo

SIZE = 10
PRICES = (3, 1, 7)  # what a unit of each group saves
VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)


def _case(harms):
    """Three groups of ten units whose costs add up, and the table of given harms for 1, 2, ... units."""
    labels = np.arange(3 * SIZE).reshape(3, SIZE)
    slots = [Slot(name, 0, row) for name, row in zip("abc", labels, strict=True)]
    units = Units(
        30, slots, np.arange(30), np.repeat(range(3), SIZE), list("abc"), np.ones(3, np.int64), np.ones(30, np.int64)
    )
    meter = Meter(units, [(price, [row]) for price, row in zip(PRICES, labels, strict=True)])
    counts = list(range(1, SIZE))
    curves = [
        Curve(n, SIZE, counts, [0] * 9, [0] * 9, [1.0 + h for h in hs]) for n, hs in zip("abc", harms, strict=True)
    ]
    return units, meter, Sensitivity("Synthetic", "loss", "l2", 1.0, 0, 0, curves)


def _best(harms, saving):
    """The least summed harm of all cuts that save so much, by trying them all."""
    totals = [
        sum(hs[n - 1] if n else 0.0 for hs, n in zip(harms, cut, strict=True))
        for cut in itertools.product(range(SIZE), repeat=3)
        if sum(p * n for p, n in zip(PRICES, cut, strict=True)) >= saving
    ]
    return min(totals)


@pytest.mark.parametrize("amount", [0.2, 0.4, 0.6, 0.8])
def test_convex_curves_are_cut_as_trying_all_cuts_finds_best(amount):
    harms = [[scale * n**power for n in range(1, SIZE)] for scale, power in ((0.3, 2), (0.02, 1), (0.1, 3))]
    units, meter, table = _case(harms)
    scores = np.random.default_rng(0).random(30)
    removed = select(
        Selector(units, order_by_harm(table, units, scores, meter), "global", 1, 0), meter, amount, "params"
    )
    counts = np.bincount(units.group[removed], minlength=3)
    for group, count in enumerate(counts):  # within a group the scores decide
        lowest = np.argsort(scores[units.group == group])[:count] + SIZE * group
        assert set(lowest) == set(np.flatnonzero(removed & (units.group == group)))
    harm = sum(hs[n - 1] if n else 0.0 for hs, n in zip(harms, counts, strict=True))
    saved = meter.total - meter(removed)
    assert saved == pytest.approx(amount * meter.total, abs=max(PRICES))
    assert harm == pytest.approx(_best(harms, saved))


def test_equal_slopes_go_by_scores():
    units, meter, table = _case([[float(p * n) for n in range(1, SIZE)] for p in PRICES])
    scores = np.random.default_rng(0).random(30)
    order = order_by_harm(table, units, scores, meter)
    last = np.concatenate([np.argsort(scores[10 * g : 10 * g + 10])[-1:] + 10 * g for g in range(3)])  # not measured
    rest = np.setdiff1d(np.arange(30), last)
    assert (rest[np.argsort(order[rest])] == rest[np.argsort(scores[rest])]).all()
    assert (order[last] >= 27).all()


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(-3, 3)), min_size=1, max_size=12))
def test_hull_slopes_are_the_isotonic_regression_of_the_slopes(steps):
    widths, rises = np.array(steps).T
    expected = isotonic_regression(rises / widths, weights=widths).x
    assert hull_slopes(np.cumsum(widths), np.cumsum(rises)) == pytest.approx(expected, abs=1e-6)


def test_what_saves_nothing_has_no_price():
    assert hull_slopes([1.0, 0.5, 2.0, 2.0], [1.0, 0.5, 3.0, 0.0]) == [0.0, 0.0, 0.0, 0.0]
    assert hull_slopes([1.0, 1.0], [1.0, 5.0]) == [1.0, np.inf]
    assert hull_slopes([0.0, 0.0], [0.0, 1.0]) == [np.inf, np.inf]
    assert hull_slopes([], []) == []


def test_the_harmless_layer_is_cut():
    model = zoo.mlp().eval()
    table = sensitivity(model, VECTOR, lambda net: float((net[2].weight == 0).all(1).sum()))
    pruned = prune_structured(model, VECTOR, amount=0.5, scope="sensitivity", sensitivity=table)
    assert pruned.module[2].out_features == 32
    assert pruned.module[0].out_features < 36
    zoo.assert_exact(model, pruned, VECTOR)


def test_the_table_and_the_scope_go_together():
    model = zoo.mlp().eval()
    table = sensitivity(model, VECTOR, lambda net: 1.0, shares=[0.5])
    for options in ({"scope": "sensitivity"}, {"sensitivity": table}):
        with pytest.raises(UserError, match="go together"):
            prune_structured(model, VECTOR, amount=0.5, **options)
    by_table = {"amount": 0.2, "scope": "sensitivity", "sensitivity": table}
    with pytest.raises(UserError, match="the table was measured under l2, not l1"):
        prune_structured(model, VECTOR, criterion="l1", **by_table)
    table.curves[0].name = "other"
    plan = prune_structured(model, VECTOR, **by_table).plan
    assert [layer["name"] for layer in plan.layers] == ["2.weight"]
    assert plan.frozen["0.weight[0]"] == ["not in the sensitivity table"]
    table.curves[1].name = "another"
    with pytest.raises(UserError, match=r"the table has no group 0.weight, nor any other \(measure it on this model"):
        prune_structured(model, VECTOR, **by_table)


def test_a_table_lacks_what_trial_cuts_showed_to_be_fixed():
    model, inputs = zoo.randomize(zoo.HardCoded()), (torch.randn(2, 3, 8, 8),)
    table = sensitivity(model, inputs, lambda net: 1.0, shares=[0.5])
    pruned = prune_structured(model, inputs, amount=0.2, scope="sensitivity", sensitivity=table)
    assert {layer["name"] for layer in pruned.plan.layers} <= {curve.name for curve in table.curves}
    zoo.assert_exact(model, pruned, inputs)
