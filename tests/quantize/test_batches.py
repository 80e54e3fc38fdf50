"""Batches of any loader are calibrated with, and those that cannot be are refused, whoever reads them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optkit
from optkit.core.errors import UserError
from optkit.quantize import (
    calibrate,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weight_only,
    quantize_within,
)

X = torch.randn(4, 3, 8, 8)
PAIR = [(X, torch.zeros(4))]
NAMED = [{"pixels": X, "label": 1}]
WRONG = {
    "none": ([], "batches: there is no batch to calibrate with"),
    "an iterator that is used up": (iter([]), "there is no batch to calibrate with"),
    "one tensor": (X, "batches: a Tensor is no iterable of batches .*a DataLoader"),
    "a number": (3, "batches: a int is no iterable of batches"),
    "inputs with targets": (PAIR, r"batch 1 has 2 members, and the model takes 1 input .*inputs=lambda batch: batch\[0\]"),
    "texts": ([["a", "b"]], r"batches: batch 1 is a list of str, str, and no tensors .*inputs=lambda batch"),
    "dicts": (NAMED, r"batch 1 is a dict of pixels, label, and no tensors .*lambda batch: \(batch\['pixels'\],\)"),
}  # fmt: skip
GOOD = {
    "tuples": ([(X,)], None),
    "lists": ([[X]], None),
    "tensors": ([X], None),
    "a DataLoader of pairs": (DataLoader(TensorDataset(X, torch.zeros(4)), 2), lambda batch: batch[0]),
    "a generator of dicts": ((batch for batch in NAMED), lambda batch: (batch["pixels"],)),
}
BAD_PICKS = {
    "another key": (lambda batch: batch["image"], "inputs: inputs fails on batch 1, a dict of pixels, label: KeyError"),
    "the whole dict": (lambda batch: batch, "inputs: inputs gives for batch 1 what is a dict of .* must give a tensor"),
    "no function": ("pixels", "inputs: 'pixels' is no function of a batch"),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 64)).eval()


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("reader", [quantize_static, calibrate, prepare_qat])
def test_wrong_batches_are_named(reader, case):
    batches, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        reader(net(), (X,), batches)


@pytest.mark.parametrize("case", GOOD)
def test_any_loader_calibrates_alike(case):
    batches, inputs = GOOD[case]
    found = quantize_static(net(), (X,), batches, inputs=inputs, observer="minmax")
    assert found.activations == quantize_static(net(), (X,), [(X,)], observer="minmax").activations


@pytest.mark.parametrize("case", BAD_PICKS)
def test_a_wrong_choice_of_inputs_is_named(case):
    inputs, message = BAD_PICKS[case]
    with pytest.raises(UserError, match=message):
        quantize_static(net(), (X,), NAMED, inputs=inputs)


def test_whoever_calibrates_takes_a_choice_of_inputs():
    first = {"inputs": lambda batch: batch[0]}
    prepared = prepare_qat(net(), (X,), PAIR, **first)
    assert prepared.module(X).shape == (4, 64)
    within = quantize_within(net(), (X,), PAIR, max_drop=1, evaluate=lambda m: 1.0, loss=lambda m: 0.0, **first)
    assert within.activations == quantize_static(net(), (X,), [X]).activations
    rounded = quantize_weight_only(net(), batches=PAIR, **first).module
    plain = quantize_weight_only(net(), batches=[(X,)]).module
    torch.testing.assert_close(rounded(X), plain(X))


@pytest.mark.parametrize("reader", [quantize_static, calibrate, prepare_qat])
def test_an_example_is_a_tensor_or_a_tuple_of_tensors(reader):
    assert type(reader(net(), X, [X])) is type(reader(net(), (X,), [X]))
    with pytest.raises(
        UserError, match=r"example_inputs: a dict of x is no example of the model's inputs \(a tensor, or"
    ):
        reader(net(), {"x": X}, [X])


def test_one_tensor_is_an_example_of_the_other_functions_too():
    torch.testing.assert_close(quantize_dynamic(net(), X).module(X), quantize_dynamic(net(), (X,)).module(X))
    torch.testing.assert_close(optkit.compile(net(), X, engine="onnxruntime")(X), net()(X), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="example_inputs: a int is no example"):
        optkit.compile(net(), 3)


def test_an_int8_model_is_not_quantized_again():
    int8 = quantize_static(net(), (X,), [(X,)]).module
    with pytest.raises(UserError, match="the model is int8 already, for inductor"):
        quantize_static(int8, (X,), [(X,)])
