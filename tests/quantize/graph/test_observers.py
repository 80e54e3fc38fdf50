import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optkit.core.errors import StageError, UserError
from optkit.models import MLP
from optkit.quantize import calibrate, quantize_static
from optkit.quantize.graph.float_layers import float_layers
from optkit.quantize.graph.observers import OBSERVERS, ActivationObserver, Grid, Statistics
from optkit.quantize.stages.proof import prove_int8


def seen(*batches):
    statistics = Statistics()
    for batch in batches:
        statistics.add(batch, histogram=True)
    return statistics


def error(x, low, high, grid):
    """Mean squared, as torch's own rounding gives it; a symmetric grid reaches equally far below and above 0."""
    if grid.symmetric:
        scale, zero_point = max(-low / 128, high / 127), 128
    else:
        scale = (high - low) / grid.quant_max
        zero_point = round(-low / scale)
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.quant_min, grid.quant_max)
    return float((rounded - x).square().mean())


def test_minmax_is_the_range_of_all_batches():
    x = torch.randn(4, 1000)
    assert OBSERVERS["minmax"](seen(*x), Grid()) == (float(x.min()), float(x.max()))


def test_a_moving_average_forgets_a_single_outlier():
    batches = [torch.linspace(-1, 1, 50)] * 30 + [torch.tensor([-100.0, 100.0])] + [torch.linspace(-1, 1, 50)] * 30
    low, high = OBSERVERS["moving_average"](seen(*batches), Grid())
    assert -2 < low < -1
    assert 1 < high < 2


def test_percentile_cuts_what_numpy_would_cut():
    torch.manual_seed(0)
    x = torch.randn(200_000)
    low, high = OBSERVERS["percentile"](seen(*x.chunk(10)), Grid())
    expected = torch.quantile(x.double(), torch.tensor([5e-5, 1 - 5e-5], dtype=torch.float64))
    assert low == pytest.approx(float(expected[0]), rel=0.05)
    assert high == pytest.approx(float(expected[1]), rel=0.05)


GRIDS = [Grid(), Grid(quant_max=127), Grid(symmetric=True)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_histogram_scheme_has_less_squared_error_than_any_other_share_of_the_range(grid, shift):
    torch.manual_seed(0)
    x = torch.distributions.StudentT(3.0).sample((100_000,)) + shift
    found = error(x, *OBSERVERS["histogram"](seen(*x.chunk(7)), grid), grid)
    assert found < error(x, float(x.min()), float(x.max()), grid)
    shares = torch.linspace(0.2, 1, 81).tolist()
    assert found <= 1.05 * min(error(x, s * float(x.min()), s * float(x.max()), grid) for s in shares)


def test_entropy_keeps_a_uniform_whole_and_clips_a_long_tail():
    torch.manual_seed(0)
    low, high = OBSERVERS["entropy"](seen(torch.rand(100_000) * 2 - 1), Grid())
    assert (low, high) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))
    tail = torch.cat([torch.rand(100_000), torch.tensor([50.0])])
    assert OBSERVERS["entropy"](seen(tail), Grid())[1] < 25


@pytest.mark.parametrize("scheme", ["histogram", "entropy"])
def test_the_range_is_sought_on_the_grid_that_the_activation_will_have(scheme):
    torch.manual_seed(0)
    x = torch.distributions.StudentT(5.0).sample((100_000,))
    x = torch.where(x < 0, x / 3, x)
    ranges = set()
    for grid in GRIDS:
        observer = ActivationObserver(scheme, **grid._asdict())
        observer(x)
        assert observer.range() == OBSERVERS[scheme](observer.statistics, grid)
        ranges.add(observer.range())
    assert len(ranges) == 3


def test_on_a_symmetric_grid_a_long_side_costs_the_short_one_its_steps():
    """What the short side cuts off is still within the grid: only the long side decides."""
    torch.manual_seed(0)
    x = torch.cat([torch.rand(1000) * -0.1, torch.rand(100_000), torch.tensor([20.0])])
    for scheme in ("histogram", "entropy"):
        observer = ActivationObserver(scheme, symmetric=True)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        assert int(zero_point) == 128
        assert float(scale) * 127 == pytest.approx(observer.range()[1], rel=1e-5)


def test_a_histogram_that_grows_loses_no_count():
    statistics = seen(torch.rand(100), torch.rand(100) * 37, torch.randn(100) * 1000)
    centers, counts = statistics.histogram()
    assert counts.sum() == 300
    assert centers[0] < statistics.low
    assert centers[-1] > statistics.high


@pytest.mark.parametrize(("low", "zero_point"), [(0.0, 0), (-1.0, 128)])
def test_a_symmetric_activation_has_its_zero_point_in_the_middle_or_at_zero(low, zero_point):
    observer = ActivationObserver("minmax", symmetric=True)
    observer(torch.tensor([low, 0.5, 1.0]))
    scale, found = observer.calculate_qparams()
    assert int(found) == zero_point
    assert (255 - zero_point) * float(scale) >= 1.0 - 1e-6


def test_one_calibration_gives_what_each_scheme_gives_on_its_own():
    torch.manual_seed(0)
    model, x = MLP([1, 8, 8], 10, [32]).eval(), torch.randn(16, 1, 8, 8)
    batches = [(x * n,) for n in (1, 3, 2)]
    calibrated = calibrate(model, (x,), batches, target="openvino")
    found = {}
    for name in OBSERVERS:
        found[name] = calibrated.convert(name).activations
        assert found[name] == quantize_static(model, (x,), batches, target="openvino", observer=name).activations
    assert len({str(activations) for activations in found.values()}) > 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_batches():
    model, x = MLP([1, 8, 8], 10, [32]).eval(), torch.randn(64, 1, 8, 8)

    def peak(count):
        tracemalloc.start()
        calibrated = calibrate(model, (x,), ((x + n,) for n in range(count)), target="openvino")
        kept = sum(m.statistics.counts.numel() for m in calibrated.graph.modules() if isinstance(m, ActivationObserver))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return kept, found

    peak(1)
    (few, few_bytes), (many, many_bytes) = peak(10), peak(1000)
    assert few == many
    assert many_bytes < 1.2 * few_bytes + 100_000


class Shared(nn.Module):
    """A linear whose weight is computed from the input, which nothing quantizes, behind one that is."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(32, 64), nn.Parameter(torch.randn(64, 64))

    def forward(self, x):
        return nn.functional.linear(self.first(x), self.weight * x.mean())


class Counting:
    """An engine that finds a third of the MACs in int8 kernels."""

    def compile(self, module, variant, example):
        return SimpleNamespace(facts=lambda: {"int8_share": 1 / 3})


def test_too_small_a_share_fails_and_names_the_layers(monkeypatch):
    monkeypatch.setattr("optkit.quantize.stages.proof.ENGINES", {"openvino": Counting})
    x = torch.randn(4, 32)
    graph = quantize_static(Shared().eval(), (x,), [(x,)], target="openvino").module
    assert len(float_layers(graph)) == 1
    message = (
        r"33\.3% of the MACs run in int8 on openvino, 90\.0% are asked for; in float: linear.* \(its weight depends"
    )
    with pytest.raises(StageError, match=message):
        prove_int8(graph, (x,), "openvino", 0.9)
    assert prove_int8(graph, (x,), "openvino", 0.3) == 1 / 3


def test_an_unknown_observer_or_target_is_refused():
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(UserError, match="did you mean 'minmax'"):
        quantize_static(MLP([1, 8, 8], 10, [8]), (x,), [(x,)], observer="minmx")
    with pytest.raises(UserError, match="did you mean 'openvino'"):
        quantize_static(MLP([1, 8, 8], 10, [8]), (x,), [(x,)], target="openvin")


@pytest.mark.parametrize("observer", ["minmax", "histogram"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named(observer, value):
    model, batches = nn.Linear(4, 2).eval(), [torch.randn(3, 4) for _ in range(3)]
    batches[1][0, 0] = value
    with pytest.raises(UserError, match="batches: an activation of batch 2 is not finite"):
        quantize_static(model, batches[0], batches, observer=observer)
