"""`distill_from`: any loader of batches trains a student, without a task."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import optkit
from optkit.core.errors import StageError, UserError

X, FRESH = torch.randn(756, 12, generator=torch.Generator().manual_seed(0)).split([256, 500])


def net(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 4)).eval()


TEACHER, STUDENT = net(32, 0), net(16, 1)
Y = TEACHER(X).argmax(1)
PAIRS = [(x, y) for x, y in zip(X.split(32), Y.split(32), strict=True)]


def agreement(model):
    return float((model(FRESH).argmax(1) == TEACHER(FRESH).argmax(1)).float().mean())


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


LOADERS = {
    "a list of pairs": (PAIRS, {}),
    "tensors alone": (list(X.split(32)), {}),
    "a DataLoader": (DataLoader(TensorDataset(X, Y), 32, shuffle=True), {}),
    "a DataLoader of unknown length": (DataLoader(_Stream(), batch_size=None), {}),
    "dicts": ([{"x": x, "y": y} for x, y in PAIRS], {"inputs": lambda batch: batch["x"]}),
    "pairs with a loss": (PAIRS, {"loss": F.cross_entropy}),
    "pairs with a loss by name": (PAIRS, {"loss": "cross_entropy", "alpha": 0.5}),
    "dicts with a loss": (
        [{"x": x, "y": y} for x, y in PAIRS],
        {"inputs": lambda batch: (batch["x"],), "targets": lambda batch: batch["y"], "loss": nn.CrossEntropyLoss()},
    ),
}


@pytest.mark.parametrize("case", LOADERS)
def test_a_student_learns_from_any_loader_and_both_models_stay_as_they_were(case):
    loader, options = LOADERS[case]
    before = [p.clone() for m in (TEACHER, STUDENT) for p in m.parameters()]
    trained = optkit.distill_from(TEACHER, STUDENT, loader, epochs=20, lr=0.02, **options)
    assert agreement(STUDENT) < 0.5
    assert agreement(trained) > 0.75
    assert not trained.training
    after = [p for m in (TEACHER, STUDENT) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_same_seed_gives_the_same_student():
    loader = DataLoader(TensorDataset(X, Y), 32, shuffle=True)
    first, again, other = (
        optkit.distill_from(TEACHER, STUDENT, loader, epochs=2, seed=seed)[0].weight for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_features_and_several_losses():
    trained = optkit.distill_from(
        TEACHER, STUDENT, PAIRS, epochs=20, lr=0.02, losses={"kd": 1.0, "hint": {"weight": 0.5, "pairs": {"1": "1"}}}
    )
    assert agreement(trained) > 0.75
    both = optkit.distill_from(TEACHER, STUDENT, PAIRS, epochs=1, losses=["kd", "dist"])
    assert type(both) is type(STUDENT)


def test_the_kind_of_output_follows_the_loss_or_is_stated():
    values = [(x, TEACHER(x).detach()) for x in X.split(32)]

    def error(model):
        return float((model(FRESH) - TEACHER(FRESH)).square().mean().detach())

    for options in ({"loss": "mse"}, {"output_kind": "values"}):
        trained = optkit.distill_from(TEACHER, STUDENT, values, epochs=20, lr=0.02, **options)
        assert error(trained) < 0.3 * error(STUDENT)
    with pytest.raises(UserError, match="losses.dist: dist compares classes or maps of classes, .* outputs are values"):
        optkit.distill_from(TEACHER, STUDENT, values, losses="dist", loss="mse")


class _TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net(16, 2)

    def forward(self, a, b):
        return self.inner(a + b)


def test_several_inputs_are_all_but_the_last():
    trained = optkit.distill_from(_TwoInputs().eval(), _TwoInputs(), [(X[:32], X[32:64], Y[:32])], epochs=1)
    assert trained(X, X).shape == (256, 4)


MAPS = nn.Conv2d(3, 2, 3).eval()
WRONG = {
    "a loss misspelt": ({"losses": "kdd"}, "losses.kdd: no loss 'kdd' .*did you mean 'kd'"),
    "no loader": ({"loader": X}, "loader: a Tensor is no iterable of batches"),
    "an iterator": ({"loader": iter(PAIRS)}, "loader: every epoch reads the loader"),
    "no batch": ({"loader": []}, "loader: there is no batch to train on"),
    "no tensors": ({"loader": [("a", "b")]}, "loader: batch 1 is a tuple of str, and no tensors"),
    "a dict": ({"loader": [{"x": X}]}, r"loader: batch 1 is a dict of x, and no tensors .*batch\['x'\]"),
    "targets that are not there": ({"loader": [X], "loss": F.cross_entropy}, "targets: batch 1, a Tensor, has no targets"),
    "targets that fail": ({"loss": F.cross_entropy, "targets": lambda b: b["y"]}, "targets: targets fails on batch 1"),
    "a loss that fails": ({"loss": lambda o, t: o @ t}, "loss: the loss '<lambda>' fails: RuntimeError"),
    "a loss of another shape": ({"loss": lambda o, t: o.sum(1)}, r"loss: the loss .* gives \[32\], not one number"),
    "a name that is no loss": ({"loss": "cross_entrpy"}, "loss: no loss 'cross_entrpy' .*did you mean 'cross_entropy'"),
    "no function": ({"loss": 3}, "loss: a int is no loss"),
    "alpha without a loss": ({"alpha": 0.5}, "alpha: there is no loss for the rest"),
    "alpha": ({"alpha": 2}, "alpha: 2 is not above 0 and up to 1"),
    "classes without targets": ({"losses": "dkd"}, "loss: dkd needs the right classes"),
    "no epoch": ({"epochs": 0}, "epochs: 0 is not a whole number"),
    "an optimizer": ({"optimizer": "adamm"}, "did you mean 'adam"),
    "a kind of output": ({"output_kind": "clases"}, "output_kind: no output_kind 'clases' .*did you mean 'classes'"),
    "a teacher in train mode": ({"teacher": net(8, 0).train()}, "teacher: the teacher is in train mode"),
    "maps": ({"teacher": MAPS, "student": MAPS, "loader": [torch.randn(4, 3, 8, 8)]}, r"output_kind: the model gives \[2, 6, 6\] for an example"),
    "no teacher": ({"teacher": "resnet"}, "teacher: a str is no module"),
    "other classes": ({"teacher": nn.Linear(12, 5).eval()}, "teacher"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line(case):
    given, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        optkit.distill_from(**({"teacher": TEACHER, "student": STUDENT, "loader": PAIRS, "epochs": 1} | given))


def test_a_loss_that_is_not_finite_ends_training():
    with pytest.raises(StageError, match="the loss became nan in epoch 1"):
        optkit.distill_from(TEACHER, STUDENT, PAIRS, epochs=1, loss=lambda o, t: o.sum() * float("nan"))


def test_a_student_without_parameters_is_refused():
    with pytest.raises(UserError, match="student: the student has nothing to train"):
        optkit.distill_from(TEACHER, nn.Identity(), [X[:32]])
