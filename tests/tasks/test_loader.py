"""LoaderTask: own data, losses and metrics, whichever way they are given."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from optkit.core.errors import SealedSplitError, UserError
from optkit.core.metric import observed
from optkit.core.structure import as_float
from optkit.core.task import SealedTask
from optkit.tasks import LoaderTask


class Noisy(Dataset):
    """Examples whose transform draws from the global generators."""

    def __init__(self, count=30, noise=0.1):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        drawn = random.random() + np.random.random() + torch.rand(3)
        return place + self.noise * drawn.float(), place % 3


class NoLength(Dataset):
    def __getitem__(self, place):
        return torch.ones(2), 0


class Broken:
    def __iter__(self):
        yield torch.ones(2, 3), torch.ones(2)
        raise OSError("no more")


class Failing(Noisy):
    def __getitem__(self, place):
        if place == 17:
            raise OSError("images/17.png is no image")
        return super().__getitem__(place)


def pairs(count=20):
    x = torch.arange(count * 4.0).view(count, 4)
    return x, x.sum(1)


def task(train=None, test=None, **options):
    options = {"loss": "cross_entropy", "metrics": "accuracy", "workers": 0} | options
    return LoaderTask(train=Noisy() if train is None else train, test=Noisy(12) if test is None else test, **options)


def numbers(train=None, **options):
    train = TensorDataset(*pairs()) if train is None else train
    return task(train, TensorDataset(*pairs(10)), **({"loss": "mse", "metrics": ["mae"]} | options))


def read(task, split="train", size=8, **options):
    batches = list(task.batches(split, size, **options))
    return torch.cat([b.inputs[0] for b in batches]), torch.cat([b.index for b in batches])


def test_every_way_of_giving_data_gives_the_same_batches():
    x, y = pairs()

    class Batches:
        def __iter__(self):
            yield from [(x[:7].numpy(), y[:7].tolist()), (x[7:], y[7:])]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    data = TensorDataset(x, y)
    ways = [
        data, DataLoader(data, 3, shuffle=True), [(x[:5], y[:5]), (x[5:], y[5:])], Batches(), lambda: data,
        Subset(TensorDataset(torch.cat([x, x]), torch.cat([y, y])), range(20)), Stream(), DataLoader(Stream(), 6),
        f"{__name__}.whole",
    ]  # fmt: skip
    expected = None
    for way in ways:
        found = numbers(way)
        assert (found.size("train"), found.size("validation"), found.size("test")) == (18, 2, 10)
        batches = [
            (b.inputs[0].tolist(), b.targets.tolist(), b.index.tolist()) for b in found.batches("train", 8, seed=1)
        ]
        expected = expected or (batches, found.fingerprint)
        assert (batches, found.fingerprint) == expected


def whole():
    return TensorDataset(*pairs())


@pytest.mark.parametrize("options", [{}, {"seed": 4}, {"training": True, "seed": 4}])
def test_workers_change_nothing_not_even_random_transforms(options):
    alone, many = task(), task(workers=2)
    assert alone.fingerprint == many.fingerprint
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for ours, theirs in zip(alone.batches("train", 4, **options), many.batches("train", 4, **options), strict=True):
        assert torch.equal(ours.inputs[0], theirs.inputs[0])
        assert torch.equal(ours.index, theirs.index)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_epochs_draw_other_transforms_and_orders():
    found = task()
    (first, order), (again, same), (other, another) = (read(found, training=True, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(order, same)
    assert not torch.equal(order, another)
    assert sorted(order.tolist()) == sorted(another.tolist()) == list(range(27))
    assert not torch.equal(first.sort(0).values, other.sort(0).values)


def test_validation_is_cut_from_train_at_random_and_said(caplog):
    caplog.set_level("INFO", logger="optkit")
    found = task(Noisy(noise=0), validation_share=0.2)
    train, validation = (set(read(found, split)[0][:, 0].tolist()) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (24, 6)
    assert train | validation == set(map(float, range(30)))
    assert [r.getMessage() for r in caplog.records] == [
        "validation is cut from train: 6 of 30 examples, drawn at random"
    ]
    assert found.facts()["validation"] == "0.2 of train, drawn at random"
    given = task(validation=Noisy(5))
    assert (given.size("train"), given.size("validation")) == (30, 5)
    assert "validation" not in given.facts()


def test_limit_takes_examples_spread_over_each_split():
    found = task(Noisy(noise=0), limit=3)
    assert [found.size(split) for split in ("train", "validation", "test", "pool")] == [3, 3, 3, 3]


def test_the_first_batch_is_the_example_and_repeats_where_train_is_short():
    x, y = pairs(4)
    found = task(TensorDataset(x, y), TensorDataset(x, y), validation=TensorDataset(x, y), loss="mse", metrics="mae")
    assert torch.equal(found.example(6)[0], x[[0, 1, 2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("batch", "options", "inputs", "targets"),
    [
        ({"a": 1, "b": 2, "y": 3}, {"inputs": ["b", "a"]}, [2, 1], 3),
        ({"a": 1, "b": 2, "y": 3}, {"inputs": "a", "targets": "b"}, [1], 2),
        ({"a": 1, "y": 2, "z": 3}, {"inputs": "a"}, [1], {"y": 2, "z": 3}),
        ({"a": 1, "y": 2, "z": 3}, {"inputs": "a", "targets": ["z", "y"]}, [1], {"z": 3, "y": 2}),
        ({"a": 1, "y": 2}, {"inputs": lambda batch: batch["a"] * 10, "targets": "y"}, [10], 2),
        ((1, 2), {}, [1], 2),
        ((1, 2, 3), {}, [1, 2], 3),
        (((1, 2), 3), {}, [1, 2], 3),
        ((1, 2, 3), {"inputs": 1, "targets": 0}, [2], 1),
        ((1, 2, 3), {"inputs": [2, 0], "targets": [1, 0]}, [3, 1], (2, 1)),
    ],
)
def test_inputs_and_targets_are_picked(batch, options, inputs, targets):
    def filled(value):
        if isinstance(value, dict):
            return {name: filled(part) for name, part in value.items()}
        return tuple(map(filled, value)) if isinstance(value, tuple) else torch.full((2, 1), float(value))

    data = [filled(batch)]
    found = task(
        data, data, validation=data, loss=lambda *_: torch.zeros(()), metrics=lambda o, t: torch.zeros(2), **options
    )
    (read,) = found.batches("train", 2)
    assert [int(x[0]) for x in read.inputs] == inputs

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return tuple(map(plain, value)) if isinstance(value, tuple) else int(value[0])

    assert plain(read.targets) == targets


def test_targets_of_any_structure_are_shuffled_with_their_examples():
    data = [(torch.arange(6.0)[:, None], [{"boxes": torch.ones(n, 4)} for n in range(6)])]
    found = task(
        data,
        data,
        validation=data,
        loss=lambda *_: torch.zeros(()),
        metrics=lambda o, t: torch.zeros(2),
        output_kind="other",
    )
    for batch in found.batches("train", 4, seed=3):
        assert [len(target["boxes"]) for target in batch.targets] == batch.inputs[0][:, 0].tolist()
    assert len(found.fingerprint) == 16


@pytest.mark.parametrize(
    ("loss", "targets", "kind"),
    [
        ("cross_entropy", torch.tensor([0, 1]), "classes"),
        ("cross_entropy", torch.zeros(2, 5, 5, dtype=torch.long), "class_maps"),
        ("binary_cross_entropy_with_logits", torch.zeros(2, 3), "labels"),
        ("mse", torch.zeros(2), "values"),
        ("l1", torch.zeros(2), "values"),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1]), "classes"),
        (nn.BCEWithLogitsLoss, torch.zeros(2, 3), "labels"),
        (F.l1_loss, torch.zeros(2, 3), "values"),
        ("torch.nn.functional.cross_entropy", torch.tensor([0, 1]), "classes"),
        (lambda o, t: o.mean(), torch.zeros(2), "other"),
    ],
)
def test_the_kind_of_output_is_that_of_a_plain_loss(loss, targets, kind):
    data = [(torch.zeros(2, 4), targets)]
    assert task(data, data, validation=data, loss=loss).output_kind == kind
    assert task(data, data, validation=data, loss=loss, output_kind="embeddings").output_kind == "embeddings"


def test_losses_are_those_of_torch():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, -1, 2, 1, -1])
    data = [(torch.zeros(6, 2), labels)]
    found = task(data, data, validation=data)
    (batch,) = found.batches("train", 6)
    torch.testing.assert_close(found.loss(logits, batch), F.cross_entropy(logits, labels, ignore_index=-1))
    torch.testing.assert_close(
        found.loss(logits, batch, 0.1), F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=0.1)
    )
    batch.targets = torch.full((6,), -1)
    assert found.loss(logits, batch) == 0
    own = numbers(loss=nn.SmoothL1Loss(beta=2.0))
    (batch,) = own.batches("validation", 2)
    torch.testing.assert_close(
        own.loss(torch.zeros(2), batch), F.smooth_l1_loss(torch.zeros(2), batch.targets, beta=2.0)
    )
    with pytest.raises(UserError, match="label smoothing is for loss=cross_entropy"):
        own.loss(torch.zeros(2), batch, 0.1)


def test_a_column_of_one_number_is_no_matrix_of_differences():
    found = numbers()
    (batch,) = found.batches("validation", 2)
    assert found.loss(batch.targets[:, None] + 1, batch) == 1
    with pytest.raises(UserError, match=r"the model gives \[2, 3\] for targets \[2\]"):
        found.loss(torch.zeros(2, 3), batch)


def test_forward_picks_the_output():
    found = numbers(forward=lambda module, batch: module(*batch.inputs)["out"])
    model = lambda x: {"out": x.sum(1), "aux": x}  # noqa: E731
    (batch,) = found.batches("validation", 2)
    assert torch.equal(found.forward(model, batch), batch.inputs[0].sum(1))
    assert found.mismatch(model(*found.example(2)), 2) is None


def test_facts_are_json_and_say_what_the_fingerprint_is_of(monkeypatch):
    monkeypatch.setattr("optkit.tasks.given.HASHED", 20)
    found = task()
    assert json.loads(json.dumps(found.facts())) == {
        "fingerprint": found.fingerprint,
        "fingerprint_of": {"train": "20 of 27 examples", "validation": "all examples", "test": "all examples"},
        "examples": {"train": 27, "validation": 3, "test": 12},
        "loss": "cross_entropy", "output_kind": "classes", "validation": "0.1 of train, drawn at random",
    }  # fmt: skip
    assert task(fingerprint="v1").facts()["fingerprint_of"] == "stated"


def test_the_fingerprint_follows_the_data():
    class Named(Noisy):
        fingerprint = "a"

    found = [
        task(), task(Noisy(noise=0.2)), task(Noisy(31)), task(test=Noisy(13)), task(validation_share=0.2),
        task(validation=Noisy(3)), task(limit=5), task(fingerprint="a"), task(fingerprint="b"),
        task(Named()), task(inputs=0, targets=1),
    ]  # fmt: skip
    assert len({t.fingerprint for t in found}) == len(found)
    assert task().fingerprint == found[0].fingerprint
    assert task(Named(noise=7)).fingerprint == task(Named()).fingerprint


def test_keys_follow_the_code_of_losses_and_functions():
    def scaled(by):
        return lambda output, targets: by * F.mse_loss(output[:, 0], targets.float())

    losses = [scaled(1), scaled(2), "mse", nn.MSELoss(), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=255),
              nn.CrossEntropyLoss(torch.ones(3)), lambda o, t: o.mean(), lambda o, t: o.sum()]  # fmt: skip
    keys = [json.dumps(task(loss=loss).depends_on()) for loss in losses]
    assert len(set(keys)) == len(losses)
    assert json.dumps(task(loss=scaled(1)).depends_on()) == keys[0]
    assert task().depends_on() != task(forward=lambda m, b: m(*b.inputs)).depends_on()
    assert task().depends_on() != task(Failing()).depends_on()


def test_models_hear_what_the_data_say():
    assert numbers().model_defaults() == {"num_classes": 1, "input_shape": [4]}
    images = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    found = task(images, images, validation=images, classes=["a", "b"])
    assert found.model_defaults() == {
        "num_classes": 2, "inputs": ["pixel_values"], "in_channels": 3, "input_shape": [3, 8, 8],
    }  # fmt: skip
    named = [{"ids": torch.zeros(2, 5).long(), "mask": torch.ones(2, 5).long(), "labels": torch.tensor([0, 1])}]
    found = task(named, named, validation=named, inputs=["ids", "mask"], classes=2)
    assert found.model_defaults() == {"num_classes": 2, "inputs": ["ids", "mask"], "max_length": 5}


def test_metrics_hear_how_many_labels_and_classes_there_are():
    x = torch.zeros(4, 2)
    labels = [(x, torch.ones(4, 7))]
    found = task(labels, labels, validation=labels, loss="binary_cross_entropy_with_logits", metrics="multilabel_f1")
    assert found.metrics[0].labels == 7
    maps = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8).long())]
    found = task(maps, maps, validation=maps, metrics="mean_iou", classes=3)
    assert found.metrics[0].classes == 3
    with pytest.raises(UserError, match="set task.classes"):
        _ = task(maps, maps, validation=maps, metrics="mean_iou").metrics


def test_the_test_split_is_sealed_for_stages():
    sealed = SealedTask(task())
    assert sealed.size("train") == 27
    for ask in (lambda: sealed.size("test"), lambda: sealed.batches("test", 4)):
        with pytest.raises(SealedSplitError):
            ask()


def linear(task, outputs=1):
    torch.manual_seed(0)
    model = nn.Linear(task.example(2)[0].shape[1], outputs)
    return as_float(model(*task.example(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": lambda o, t: (o[:, 0] - t).abs().mean()},
            r"task.metrics: the metric '<lambda>' gives .* for a batch of 2",
        ),
        ({"metrics": lambda o, t: o.x}, "task.metrics: the metric '<lambda>' fails: AttributeError"),
        (
            {"metrics": "accuracy"},
            r"task.metrics: the metric 'accuracy' is for class numbers .N,., and the targets are \[2\] of torch.float32",
        ),
        ({"metrics": "macro_f1"}, r"task.metrics: the metric 'macro_f1' is for class numbers"),
        (
            {"loss": lambda o, t: (o[:, 0] - t) ** 2},
            r"task.loss: the loss '<lambda>' gives \[2\], not one number.*mean",
        ),
        ({"loss": lambda o, t: o.detach().sum()}, "task.loss: the loss '<lambda>' has no gradient"),
        (
            {"metrics": lambda o, t: (o[:, 0] - t).abs()[:, None]},
            r"the metric '<lambda>' gives \[2, 1\] for a batch of 2",
        ),
        ({"metrics": lambda o, t: (o[:, 0] - t) * 1j}, r"the metric '<lambda>' gives \[2\] of complex numbers"),
        ({"loss": lambda o, t: 1.0}, "task.loss: the loss '<lambda>' gives a float, not one number"),
        ({"loss": lambda o, t: o.mean() * float("nan")}, "task.loss: the loss of the first batch is nan"),
        (
            {"loss": nn.CrossEntropyLoss()},
            "task.loss: the loss 'CrossEntropyLoss' fails: RuntimeError",
        ),
        ({"forward": lambda m, b: m(*b.inputs).out}, "task.forward: the function '<lambda>' fails: AttributeError"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_training(options, message):
    found = numbers(**options)
    with pytest.raises(UserError, match=message) as caught:
        found.mismatch(linear(found), 2)
    assert "\n" not in str(caught.value)


def test_an_output_that_does_not_fit_the_classes_is_said():
    found = task(classes=3)
    assert found.mismatch(linear(found, 3), 2) is None
    assert found.mismatch(linear(found, 4), 2) == (
        "it gives [2, 4] for 2 examples of 3 classes: logits, one for each class"
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", [Subset, TensorDataset])
def test_a_class_number_that_the_output_has_not_is_found_in_any_split_before_any_training(split, kind):
    data = {}
    for name in ("train", "validation", "test"):
        labels = torch.arange(40) % 3
        labels[1] = -1 if name == "train" else 0  # which the loss leaves out
        labels[30] = 7 if name == split else 0
        data[name] = TensorDataset(torch.zeros(40, 2), labels)
        data[name] = data[name] if kind is TensorDataset else Subset(data[name], range(40))
    found = task(**data)
    with pytest.raises(UserError, match=f"task.{split}: {split} has the class number 7, and the output 3 classes"):
        found.mismatch(linear(found, 3), 2)
    assert found.mismatch(linear(found, 8), 2) is None


def test_a_class_by_dotted_path_is_made():
    assert task(train=f"{__name__}.Noisy", validation=Noisy(5)).size("train") == 30


def late(output, targets):
    if len(targets) > 2:
        raise RuntimeError("late\nand long")
    return output.sum()


@pytest.mark.parametrize("part", ["loss", "metrics"])
def test_what_fails_after_the_first_batch_is_named_too(part):
    found = numbers(**{part: late if part == "loss" else lambda o, t: late(o, t).expand(len(t))})
    assert found.mismatch(linear(found), 2) is None
    batch = next(found.batches("train", 8))
    with pytest.raises(UserError, match=rf"task.{part}: the {part[:4]}\S* '\S+' fails: RuntimeError: late"):
        found.loss(batch.inputs[0], batch) if part == "loss" else observed(found.metrics[0], batch.inputs[0], batch)


def sampled(data):
    return DataLoader(data, 4, sampler=WeightedRandomSampler([1.0] * len(data), len(data)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(loss="cross_entrpy"), "loss: no loss 'cross_entrpy' .did you mean 'cross_entropy'"),
        (lambda: task(loss=3), "loss: a int is no loss"),
        (lambda: task(metrics="acuracy"), "no metric 'acuracy'"),
        (lambda: task(output_kind="class"), "output_kind: no output_kind 'class' .did you mean 'classes'"),
        (lambda: task(validation_share=2), "validation_share: 2 is not a share"),
        (lambda: task(classes=0), "classes: 0 is not a whole number of at least 1"),
        (lambda: task(classes="cat"), "classes: 'cat' are no class names"),
        (lambda: task(classes=2.5), "classes: 2.5 are no class names"),
        (lambda: task(classes=["a", "a"]), "classes: it has 'a' twice"),
        (lambda: task(train=lambda: 1 / 0).fingerprint, "task.train: '<lambda>' fails: ZeroDivisionError: division by zero"),
        (lambda: task(train=f"{__name__}.NoLength").fingerprint, "task.train: a NoLength has no length"),
        (lambda: task(train=Broken()).fingerprint, "task.train: batch 1 cannot be read: OSError: no more"),
        (lambda: task(inputs=lambda batch: batch.x).fingerprint, "task.inputs: the function fails on a batch of train"),
        (lambda: task(workers=-1), "workers: -1 is not a whole number"),
        (lambda: task(train=7).fingerprint, "task.train: a int is no data"),
        (lambda: task(train=iter([])).fingerprint, "task.train: a list_iterator can be read only once"),
        (lambda: task(train=[]).fingerprint, "task.train: there are no batches"),
        (lambda: task(train=Noisy(0)).fingerprint, "task.train: there are no examples"),
        (lambda: task(train=Noisy(2)).fingerprint, "task.validation_share: train has 2 examples"),
        (lambda: task(train="no.such.data").fingerprint, "task.train: no module 'no'"),
        (lambda: task(train=sampled(Noisy())).fingerprint, "task.train: the loader's WeightedRandomSampler would not be used"),
        (lambda: task(train=Failing()).fingerprint, "task.train: train example 17 cannot be read: OSError: images/17.png"),
        (lambda: task(train=Failing(), workers=2).fingerprint, "task.train: train example 17 cannot be read: OSError"),
        (lambda: task(train=[{"a": torch.ones(2)}]).fingerprint, "task.inputs: a batch of train is a dict with a"),
        (lambda: task(train=[{"a": torch.ones(2)}], inputs="b").fingerprint, "task.inputs: a batch of train has no 'b'"),
        (lambda: task(train=[torch.ones(2)]).fingerprint, "task.train: a batch of train is a Tensor, not .inputs, targets"),
        (lambda: task(train=[(torch.ones(2, 1), torch.ones(3))]).fingerprint, "inputs of 2 examples, and targets of 3"),
        (lambda: task(train=[("ab", torch.ones(3))]).fingerprint, "task.inputs: an input of train is a str"),
        (lambda: task(train=[(torch.ones(2, n), torch.ones(2)) for n in (1, 2)]).fingerprint, "task.train: the batches differ in shape"),
        (lambda: task(collate=lambda rows: (torch.ones(1, 3), torch.ones(1))).fingerprint, "task.collate: 1 examples come of"),
        (lambda: task(train=[(torch.ones(2, 9), torch.ones(2))], memory_share=1e-12).fingerprint, "are kept in memory"),
        (lambda: task(train=[(torch.ones(20, 9), [object()] * 20)]).fingerprint, "task.fingerprint: a object among the targets"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
