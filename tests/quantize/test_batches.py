"""Batches that cannot be calibrated with are refused, whoever reads them."""

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.quantize import calibrate, prepare_qat, quantize_static

X = torch.randn(4, 3, 8, 8)
WRONG = {
    "none": ([], "there is no batch to calibrate with"),
    "an iterator that is used up": (iter([]), "there is no batch to calibrate with"),
    "tensors": ([X, X], r"batch 1 is a Tensor, and no tuple .*\[\(x,\) for x, y in loader\]"),
    "inputs with targets": ([(X, torch.zeros(4))], "batch 1 has 2 members, and the model takes 1 input"),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("reader", [quantize_static, calibrate, prepare_qat])
def test_wrong_batches_are_named(reader, case):
    batches, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        reader(net(), (X,), batches)


def test_an_int8_model_is_not_quantized_again():
    int8 = quantize_static(net(), (X,), [(X,)]).module
    with pytest.raises(UserError, match="the model is int8 already, for inductor"):
        quantize_static(int8, (X,), [(X,)])
