"""U-Net and dense detector: shapes, and that they can be cut, made int8, and run on every engine."""

import pytest
import torch

from optkit.engines import compile as compile_for
from optkit.models import DenseDetector, UNet
from optkit.prune import prune_structured
from optkit.quantize import quantize_static

MODELS = {
    "unet": lambda: UNet(4, widths=[8, 16, 16]),
    "dense_detector": lambda: DenseDetector(3, widths=[8, 16], head=1),
}


@pytest.mark.parametrize("size", [(32, 32), (30, 45), (17, 64)])
def test_a_unet_gives_a_class_at_each_pixel(size):
    assert UNet(5, 1, widths=[4, 8, 8])(torch.randn(2, 1, *size)).shape == (2, 5, *size)
    assert UNet(5, 1, widths=[4])(torch.randn(2, 1, *size)).shape == (2, 5, *size)


def test_a_detector_gives_a_box_around_each_cells_centre():
    torch.manual_seed(0)
    out = DenseDetector(3, widths=[4, 8])(torch.randn(2, 3, 16, 24))
    assert {name: tuple(x.shape) for name, x in out.items()} == {"boxes": (2, 24, 4), "scores": (2, 24, 3)}
    centers = [(4 * x + 2, 4 * y + 2) for y in range(4) for x in range(6)]
    for (x, y), box in zip(centers, out["boxes"][0].tolist(), strict=True):
        assert box[0] < x < box[2]
        assert box[1] < y < box[3]
    assert 0.005 < out["scores"].sigmoid().mean().item() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_cut_one_has_the_same_outputs_and_fewer_channels(name):
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 32, 32), MODELS[name]().eval()
    cut = prune_structured(model, (x,), amount=0.4).module
    before, after = ([*out.values()] if isinstance(out, dict) else [out] for out in (model(x), cut(x)))
    assert [a.shape for a in before] == [a.shape for a in after]
    assert sum(p.numel() for p in cut.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_engines_agree_in_fp32_and_int8(name, engine):
    torch.manual_seed(0)
    x, model = torch.randn(4, 3, 32, 32), MODELS[name]().eval()
    int8 = quantize_static(model, (x,), [(x,)], target=engine)
    for made, tolerance in ((model, 1e-4), (int8, 0.15)):
        session = compile_for(made, engine=engine, example_inputs=(x,))
        found, expected = session(x), model(x)
        for a, b in zip(
            *([*out.values()] if isinstance(out, dict) else [out] for out in (found, expected)), strict=True
        ):
            assert (a - b).abs().mean() < tolerance * b.abs().mean()
