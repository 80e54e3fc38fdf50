import copy
import json

import pytest
import torch

from optkit.core.errors import UserError
from optkit.distill import Distillation
from optkit.prune import GradualMasks, GradualPruning, MagnitudePruning, cubic_sparsity, magnitude_masks
from optkit.training import Callback, Train, Trainer

TRAINER = Trainer(epochs=3, batch_size=32, optimizer="adamw", lr=0.01, precision="fp32")


def _zeros(module):
    weights = [p for p in module.parameters() if p.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_the_schedule_is_the_papers():
    begin, every, times, final, initial = 10, 5, 8, 0.9, 0.2
    for n in range(times + 1):
        expected = final + (initial - final) * (1 - n * every / (times * every)) ** 3
        found = cubic_sparsity(begin + n * every, begin, begin + times * every, final, initial)
        assert found == pytest.approx(expected)
    assert cubic_sparsity(0, 10, 50, 0.9, 0.2) == pytest.approx(0.2)
    assert cubic_sparsity(99, 10, 50, 0.9) == cubic_sparsity(50, 50, 50, 0.9) == 0.9


def test_masks_grow_on_schedule_and_only_grow(mlp):
    masks = GradualMasks(magnitude_masks, 0.9, begin=0.1, end=0.5, every=10)
    random = torch.Generator().manual_seed(0)
    before = torch.zeros(0)
    for step in range(1, 101):
        with torch.no_grad():
            for p in mlp.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=random))
        masks.on_step_end(mlp, step, 100)
        last = min(50, step - step % 10)
        assert _zeros(mlp) == pytest.approx(cubic_sparsity(last, 10, 50, 0.9), abs=1e-3)
        now = torch.cat([p.flatten() == 0 for p in mlp.parameters() if p.dim() > 1])
        assert step == 1 or now[before].all()
        before = now


@pytest.mark.parametrize("total", [1, 2, 4, 7])
def test_the_amount_is_reached_however_short_the_training(mlp, total):
    masks = GradualMasks(magnitude_masks, 0.7)
    for step in range(1, total + 1):
        masks.on_step_end(mlp, step, total)
    assert _zeros(mlp) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("training", [Train(TRAINER), Distillation(trainer=TRAINER)])
@pytest.mark.parametrize("options", [{"amount": 0.8}, {"pattern": "2:4"}, {"amount": 0.8, "scope": "local"}])
def test_any_training_reaches_the_amount(mlp, context, training, options):
    before = copy.deepcopy(mlp.state_dict())
    outcome = GradualPruning(**options, every=3, training=training).apply(mlp, context(max_steps=None))
    assert outcome.facts["weights_removed"] / outcome.facts["weights"] == pytest.approx(
        options.get("amount", 0.5), abs=1e-3
    )
    assert _zeros(outcome.module) == pytest.approx(options.get("amount", 0.5), abs=1e-3)
    assert not torch.equal(outcome.module.state_dict()["layers.1.bias"], before["layers.1.bias"])
    assert outcome.facts["training"]["steps"] == 3 * 8
    assert ("teacher" in outcome.facts) == isinstance(training, Distillation)
    json.dumps(outcome.facts)


def test_a_moving_average_is_masked_too(mlp, context):
    trainer = Trainer(epochs=2, batch_size=32, select="ema", lr=0.01)
    outcome = GradualPruning(0.8, every=2, training=Train(trainer)).apply(mlp, context(max_steps=None))
    assert _zeros(outcome.module) == pytest.approx(0.8, abs=1e-3)


def test_later_training_keeps_the_zeros(mlp, context):
    sparse = GradualPruning(0.8, training=Train(TRAINER)).apply(mlp, context())
    zeros = sparse.module.layers[1].weight == 0
    (context().workdir / "training.pt").unlink()
    tuned = Train(TRAINER).apply(sparse.module, context(("float", *GradualPruning.adds))).module
    assert torch.equal(tuned.layers[1].weight == 0, zeros)


class _Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, module, step, total):
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("killed_at", [5, 9, 15, 22])
def test_a_killed_training_ends_with_the_masks_it_would_have_had(mlp, digits, tmp_path, killed_at):
    def fit(module, folder, kill):
        from optkit.training import TaskLoss

        folder.mkdir(exist_ok=True)
        callbacks = [GradualMasks(magnitude_masks, 0.8, end=0.7, every=5), _Kill(kill)]
        cpu = torch.device("cpu")
        TRAINER.fit(module, digits, TaskLoss(digits), seed=1, workdir=folder, device=cpu, callbacks=callbacks)
        return module.state_dict()

    whole = fit(copy.deepcopy(mlp), tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(mlp), tmp_path / "killed", killed_at)
    resumed = fit(copy.deepcopy(mlp), tmp_path / "killed", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: 0 is not a whole number"),
        ({"begin": 0.9}, "end: 0.75 is not a share from 0.9 to 1"),
        ({"begin": "late"}, "begin: 'late' is not a share from 0 to 1"),
        ({"initial": 0.9}, "initial: 0.9 is not a share from 0 to 0.5"),
        ({"training": "train"}, r"training: 'train' is not a training stage \(stage@stages.NAME.training=train"),
        ({"training": MagnitudePruning()}, "training: MagnitudePruning is not a training stage"),
        ({"training": Train(Trainer(select="best"))}, r"training\.trainer\.select: .*last or ema"),
        ({"training": Train(Trainer(patience=2))}, r"training\.trainer\.patience: .*null"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GradualPruning(**options)
