import copy
import math
import re
import signal
import subprocess
import sys

import pytest
import torch

from optkit.core import interruption
from optkit.core.errors import DeadEndError, StageError, UserError
from optkit.core.processes import ALONE
from optkit.core.seeds import derive_seed
from optkit.measure.validation import Validation
from optkit.recipe.keys import keyed_params_of
from optkit.training import Callback, KeepZeros, TaskLoss, Train, Trainer
from optkit.training.checkpoint import load_state
from optkit.training.replicas import Replica
from optkit.training.schedules import build_optimizer, build_schedule
from optkit.training.trainer import Fit
from tests.contracts.kinds import OUTPUTS, KindTask, TinyNet, boxes_and_scores

CPU = torch.device("cpu")
PLAIN = {"epochs": 2, "batch_size": 64, "precision": "fp32", "channels_last": False, "lr": 0.05,
         "optimizer_options": {"momentum": 0.9}, "weight_decay": 0.01}  # fmt: skip


def _fit(trainer, module, digits, folder, **options):
    objective = options.pop("objective", TaskLoss(digits, trainer.label_smoothing))
    return trainer.fit(module, digits, objective, seed=3, workdir=folder, device=CPU, **options)


def test_training_is_the_hand_written_loop(digits, mlp, tmp_path):
    ours, theirs = copy.deepcopy(mlp), copy.deepcopy(mlp)
    report = _fit(Trainer(**PLAIN), ours, digits, tmp_path)

    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in theirs.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
    )
    total, step = 2 * math.ceil(digits.size("train") / 64), 0
    for epoch in range(2):
        for batch in digits.batches("train", 64, training=True, seed=derive_seed(3, "order", epoch)):
            step += 1
            share = step / (total + 1)
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (share / 0.2 if share < 0.2 else (1 - share) / 0.8)
            torch.nn.functional.cross_entropy(theirs(*batch.inputs), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert report.steps == total
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_training_learns(digits, mlp, tmp_path):
    trainer = Trainer(epochs=12, batch_size=32, select="best", optimizer="adamw", lr=0.02)
    report = _fit(trainer, mlp, digits, tmp_path)
    assert report.losses[-1] < report.losses[0] / 3
    assert max(report.validation) > 0.7


class _Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, module, step, total):
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("select", ["last", "best", "ema"])
@pytest.mark.parametrize("killed_at", [2, 5, 11])
def test_an_interrupted_run_ends_with_the_weights_it_would_have_had(digits, mlp, tmp_path, select, killed_at):
    trainer = Trainer(epochs=3, batch_size=64, select=select, optimizer="adamw", lr=0.01)
    whole, broken, resumed = (copy.deepcopy(mlp) for _ in range(3))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = _fit(trainer, whole, digits, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        _fit(trainer, broken, digits, tmp_path / "b", callbacks=[_Kill(killed_at)])
    found = _fit(trainer, resumed, digits, tmp_path / "b", callbacks=[_Kill(math.inf)])
    assert (found.losses, found.validation, found.steps) == (expected.losses, expected.validation, expected.steps)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("killed_at", [1, 5, 7])
def test_a_run_goes_on_in_the_middle_of_an_epoch_with_the_noise_it_would_have_had(digits, mlp, tmp_path, killed_at):
    trainer = Trainer(epochs=2, batch_size=64, checkpoint_steps=1, select="best", micro_batch_size=40)
    mlp.layers.insert(1, torch.nn.Dropout(0.5))
    whole, broken, resumed = (copy.deepcopy(mlp) for _ in range(3))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = _fit(trainer, whole, digits, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        _fit(trainer, broken, digits, tmp_path / "b", callbacks=[_Kill(killed_at + 1)])
    assert load_state(tmp_path / "b")["counts"] == [killed_at // 4, killed_at]
    found = _fit(trainer, resumed, digits, tmp_path / "b", callbacks=[_Kill(math.inf)])
    assert (found.losses, found.validation, found.steps) == (expected.losses, expected.validation, expected.steps)
    assert (found.examples_at_once, found.accumulation_steps) == (32, 2)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class _Asks(Callback):
    """Sends the process a signal, as a scheduler does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, module, step, total):
        if step == self.step:
            signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def own_saving(monkeypatch):
    """What signals change, for one test."""
    monkeypatch.setattr(interruption, "_saving", interruption._Saving())


@pytest.mark.usefixtures("own_saving")
def test_a_signal_saves_the_state_after_the_step_and_ends_the_training(digits, mlp, tmp_path):
    before = signal.signal(signal.SIGUSR1, interruption._raise)
    try:
        with pytest.raises(interruption.Interruption) as caught:
            _fit(Trainer(epochs=2, batch_size=64), mlp, digits, tmp_path, callbacks=[_Asks(6)])
        assert caught.value.number == signal.SIGUSR1
        with pytest.raises(interruption.Interruption), interruption.saves_when_asked():  # noqa: PT012
            signal.raise_signal(signal.SIGUSR1)
            assert interruption.asked() == signal.SIGUSR1
            with interruption.ends_at_once():
                pytest.fail("the signal came before")
        with pytest.raises(interruption.Interruption), interruption.saves_when_asked():  # noqa: PT012
            signal.raise_signal(signal.SIGUSR1)
            raise StageError("the loss became nan")
        signal.raise_signal(signal.SIGUSR1)  # it ends already: nothing more is raised
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert load_state(tmp_path)["counts"] == [1, 6]


def test_passes_of_a_step_add_up_to_its_gradient(digits, mlp, tmp_path):
    whole, parts = copy.deepcopy(mlp), copy.deepcopy(mlp)
    for name, module, at_once in (("a", whole, None), ("b", parts, 7)):
        (tmp_path / name).mkdir()
        _fit(Trainer(**PLAIN | {"micro_batch_size": at_once}), module, digits, tmp_path / name)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_step_trains_alike(digits, mlp, tmp_path):
    whole, compiled = copy.deepcopy(mlp), copy.deepcopy(mlp)
    for name, module, how in (("a", whole, False), ("b", compiled, True)):
        (tmp_path / name).mkdir()
        _fit(Trainer(**PLAIN | {"compile": how}), module, digits, tmp_path / name, max_steps=3)
    for p, q in zip(whole.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size: 0 is not a whole number of at least 1"),
        ({"checkpoint_steps": 1.5}, "checkpoint_steps: 1.5 is not a whole number"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes: 0 are no minutes"),
        ({"sharding": "fsdp2"}, "sharding: no sharding 'fsdp2' (did you mean 'fsdp'?)"),
        ({"compile": "yes"}, "compile: no compile 'yes'"),
    ],
)
def test_how_a_training_runs_is_checked(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Trainer(**options)


def test_how_a_training_runs_is_no_part_of_its_key():
    def keyed(**options):
        return keyed_params_of(Train(Trainer(**options)))

    same = {"micro_batch_size": 8, "sharding": "none", "checkpoint_steps": 5, "checkpoint_minutes": None}
    assert keyed(**same) == keyed()
    assert keyed(compile=True) != keyed()
    assert keyed(batch_size=64) != keyed()


class _Counts(Callback):
    """Remembers every step, in this process and in the one before."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, module, step, total):
        self.seen.append(step)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_a_callback_gets_its_state_back_after_a_kill(digits, mlp, tmp_path):
    trainer = Trainer(epochs=3, batch_size=64)
    with pytest.raises(KeyboardInterrupt):
        _fit(trainer, copy.deepcopy(mlp), digits, tmp_path, callbacks=[_Counts(), _Kill(7)])
    counts = _Counts()
    report = _fit(trainer, mlp, digits, tmp_path, callbacks=[counts, _Kill(math.inf)])
    assert counts.seen == list(range(1, report.steps + 1))


def test_a_torn_training_state_is_started_over_and_the_log_says_why(tmp_path, caplog):
    assert load_state(tmp_path) is None
    assert not caplog.records
    (tmp_path / "training.pt").write_bytes(b"PK\x03\x04 torn")
    assert load_state(tmp_path) is None
    assert "training.pt cannot be read, so the work starts anew: " in caplog.text


def test_a_loss_that_is_not_finite_stops_training_and_says_what_to_do(digits, mlp, tmp_path):
    with pytest.raises(DeadEndError, match=r"loss became nan.*trainer\.lr"):
        _fit(
            Trainer(**PLAIN),
            mlp,
            digits,
            tmp_path,
            objective=lambda module, batch: module(*batch.inputs).sum() * math.nan,
        )


def test_early_stop_after_patience(digits, mlp, tmp_path):
    report = _fit(Trainer(epochs=50, lr=0.0, patience=2, batch_size=64), mlp, digits, tmp_path)
    assert report.epochs == 3


def test_the_best_epoch_is_kept(digits, mlp, tmp_path):
    trainer = Trainer(epochs=6, batch_size=64, lr=0.5, select="best", schedule="constant", warmup=0.0)
    report = _fit(trainer, mlp, digits, tmp_path)
    batches = list(digits.batches("validation", 256))
    with torch.no_grad():
        correct = torch.cat([mlp(*b.inputs).argmax(-1) == b.targets for b in batches])
    assert correct.float().mean().item() == pytest.approx(max(report.validation))


def test_a_validation_that_is_not_a_number_is_never_the_best(digits, mlp, tmp_path):
    fit = Fit(Trainer(select="best"), mlp, digits, TaskLoss(digits), 3, tmp_path, CPU, [], None, "training")
    for validation, best in (([0.5, math.nan, 0.9, 0.7], 2), ([math.nan, 0.1], 1), ([math.nan, math.nan], 0)):
        fit.validation = validation
        assert fit._best_epoch() == best
    fit.metric = type("Error", (), {"higher_is_better": False})
    fit.validation = [0.5, math.nan, 0.2, 0.7]
    assert fit._best_epoch() == 2


def test_the_average_of_a_mask_is_the_mask(digits, mlp, tmp_path):
    mlp.register_buffer("mask", torch.tensor([0.0, -math.inf, math.inf]))
    mlp.register_buffer("mean", torch.zeros(2))
    report = _fit(Trainer(epochs=1, batch_size=64, select="ema"), mlp, digits, tmp_path)
    assert report.kept == "ema"
    assert mlp.mask.tolist() == [0.0, -math.inf, math.inf]
    assert mlp.mean.tolist() == [0.0, 0.0]


class _Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("options", [{"batch_size": -1}, {"batch_size": 64, "micro_batch_size": 1}])
def test_a_step_of_one_example_through_batch_normalization_is_refused_first(digits, mlp, options):
    if options["batch_size"] == -1:
        options = {"batch_size": digits.size("train") - 1}
    with pytest.raises(UserError, match="a step has a single one, and this model's batch normalization needs more"):
        Trainer(**options).check(_Normed(), digits)
    Trainer(**options).check(mlp, digits)
    Trainer(batch_size=digits.size("train") - 2).check(_Normed(), digits)


def test_gradients_are_clipped(digits, mlp, tmp_path):
    before = copy.deepcopy(mlp)
    options = PLAIN | {"epochs": 1, "batch_size": 10_000, "grad_clip": 1e-3, "lr": 1.0, "weight_decay": 0.0}
    trainer = Trainer(**options | {"schedule": "constant", "warmup": 0.0, "optimizer_options": {}})
    _fit(trainer, mlp, digits, tmp_path)
    moved = torch.stack([(p - q).norm() for p, q in zip(mlp.parameters(), before.parameters(), strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_training_leaves_nothing_on_the_module(digits, mlp, tmp_path):
    keys = set(mlp.state_dict())
    _fit(Trainer(epochs=1), mlp, digits, tmp_path)
    assert "forward" not in vars(mlp)
    assert set(mlp.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mlp.modules())
    assert not mlp.training


@pytest.mark.parametrize("around", [torch.float32, torch.bfloat16])
def test_two_precisions_train_in_one_process_whatever_the_caller_computes_in(digits, mlp, tmp_path, around):
    seen = []
    for place, precision in enumerate(("bf16", "fp32", "bf16")):
        folder, module = tmp_path / str(place), copy.deepcopy(mlp)
        folder.mkdir()
        module.layers[1].register_forward_hook(lambda _layer, _inputs, out: seen.append(out.dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=around is torch.bfloat16):
            _fit(Trainer(epochs=1, batch_size=256, precision=precision), module, digits, folder, max_steps=1)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.mark.slow
def test_training_runs_beside_the_callers_own_accelerator(digits, tmp_path):
    """accelerate keeps one precision and device for a process; in a process of its own, for it cannot be undone."""
    code = f"""
import torch
from pathlib import Path
from accelerate import Accelerator
from optkit.models import MLP
from optkit.tasks import Digits
from optkit.training import TaskLoss, Trainer
digits = Digits(image_size=8, crop=1, limit=64)
theirs = Accelerator(mixed_precision="bf16", cpu=True)
ours = MLP(input_shape=[1, 8, 8], widths=[8])
where = Path({str(tmp_path)!r})
report = Trainer(epochs=1, precision="fp32").fit(
    ours, digits, TaskLoss(digits), seed=0, workdir=where, device=torch.device("cpu")
)
print(report.precision, theirs.mixed_precision, Accelerator().mixed_precision)
# and the model is as new to accelerate: it is prepared for its precision
prepared = Accelerator().prepare(ours)
out = []
prepared.layers[1].register_forward_hook(lambda layer, inputs, output: out.append(output.dtype))
prepared(torch.zeros(1, 1, 8, 8))
print(out[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["fp32", "bf16", "bf16", "torch.bfloat16"], done.stderr


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_the_average_of_a_resumed_run_is_where_the_weights_are(digits, mlp, tmp_path):
    trainer = Trainer(epochs=2, batch_size=64, select="ema")
    with pytest.raises(KeyboardInterrupt):
        _fit(trainer, mlp, digits, tmp_path, callbacks=[_Kill(5)])
    # stands for a GPU
    meta = torch.device("meta")
    fit = Fit(trainer, mlp.to(meta), digits, TaskLoss(digits), 3, tmp_path, meta, [_Kill(None)], None, "training")
    fit.replica = Replica(fit.module, fit.own, ALONE)
    fit.optimizer = build_optimizer(fit.replica.parameters(), "sgd", 0.1, 0.0, trainer.optimizer_options)
    fit.schedule = build_schedule(fit.optimizer, "constant", 0.0, 8)
    fit._resume()
    fit._update_ema()
    assert {tensor.device for tensor in fit.ema.values()} == {meta}


def test_kernels_of_three_dimensions_train_and_only_those_of_two_change_their_layout(digits, tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.two, self.three = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv3d(2, 4, (1, 3, 3))
            self.head, self.layouts = torch.nn.Linear(4, 10), set()

        def forward(self, x):
            weight = self.two.weight
            self.layouts.add((weight.stride(), self.three.weight.is_contiguous()))
            return self.head(self.three(self.two(x).unflatten(1, (2, 2))).mean((2, 3, 4)))

    net = Net()
    _fit(Trainer(epochs=1), net, digits, tmp_path)
    assert net.layouts == {(net.two.weight.to(memory_format=torch.channels_last).stride(), True)}


@pytest.mark.parametrize(("isa", "expected"), [(["avx2"], "fp32"), (["avx512_bf16"], "bf16"), (["amx_bf16"], "bf16")])
def test_auto_trains_in_bf16_only_where_the_processor_has_it(isa, expected, monkeypatch, digits, mlp, tmp_path):
    monkeypatch.setattr("optkit.training.trainer.cpu", lambda: {"isa": isa})
    assert _fit(Trainer(epochs=1), mlp, digits, tmp_path).facts()["training"]["precision"] == expected


@pytest.mark.parametrize("select", ["last", "ema"])
def test_zeros_stay_zero(digits, mlp, tmp_path, select):
    weight = mlp.layers[1].weight
    with torch.no_grad():
        weight[:, ::2] = 0
    before = weight.clone()
    _fit(Trainer(epochs=2, batch_size=64, select=select), mlp, digits, tmp_path, callbacks=[KeepZeros()])
    after = mlp.layers[1].weight
    assert torch.equal(after[:, ::2], torch.zeros_like(after[:, ::2]))
    assert not torch.equal(after[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs: 2.5 is not a whole number"),
        ({"batch_size": 12.5}, "batch_size: 12.5 is not a whole number"),
        ({"patience": 1.5}, "patience: 1.5 is not a whole number"),
        ({"lr": math.inf}, "lr: inf is out of range .a number of at least 0"),
        ({"lr": None}, "lr: None is out of range"),
        ({"weight_decay": math.nan}, "weight_decay: nan is out of range"),
        ({"lr": "fast"}, "lr: 'fast' is out of range"),
        ({"grad_clip": 0}, "grad_clip: 0 would stop all training .null clips nothing"),
        ({"optimizer_options": None}, "optimizer_options: None is not a mapping"),
        ({"optimizer": "sdg"}, "optimizer: no optimizer 'sdg'.*did you mean 'sgd'"),
        ({"optimizer_options": {"momentun": 0.9}}, "momentun.*did you mean 'momentum'"),
        ({"optimizer_options": {"lr": 0.3}}, "optimizer_options.lr: is a field .*set lr beside"),
        ({"optimizer_options": {"weight_decay": 0.3}}, "options.weight_decay: is a field .*set weight_decay beside"),
        ({"optimizer_options": {"params": []}}, "sgd takes no 'params'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "fp16"}, "precision"),
        ({"select": "first"}, "select"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_mistakes_name_the_field(options, message):
    with pytest.raises(UserError, match=message):
        Trainer(**options)


def test_an_option_that_is_none_is_left_out():
    assert Trainer(optimizer="adamw", optimizer_options={"momentum": None, "betas": [0.9, 0.99]}).optimizer_options == {
        "betas": [0.9, 0.99]
    }


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"momentum": 0.9, "nesterov": True}), ("adamw", {}), ("adam", {})]
)
def test_the_fused_optimizer_steps_as_the_plain_one(name, options, mlp):
    start = copy.deepcopy(mlp.state_dict())
    found = []
    for fused in ({}, {"fused": False}):
        mlp.load_state_dict(start)
        optimizer = build_optimizer(mlp.parameters(), name, 0.05, 0.01, options | fused)
        for seed in range(3):
            torch.manual_seed(seed)
            mlp(torch.randn(4, 1, 8, 8)).logsumexp(-1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((optimizer.defaults["fused"], copy.deepcopy(mlp.state_dict())))
    assert [fused for fused, _ in found] == [True, False]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_an_optimizer_without_a_fused_kernel_and_a_way_of_stepping_that_was_asked_for(mlp):
    assert "fused" not in build_optimizer(mlp.parameters(), "rprop", 0.01, 0.0, {}).defaults
    assert build_optimizer(mlp.parameters(), "sgd", 0.01, 0.0, {"foreach": True}).defaults["fused"] is None
    assert Trainer(optimizer="adamw", optimizer_options={"fused": False}).optimizer_options == {"fused": False}


class _Noting(KindTask):
    def loss(self, output, batch, label_smoothing=0.0):
        self.seen = [(x.dtype, (x @ x.T).dtype) for x in boxes_and_scores(output)]
        return super().loss(output, batch, label_smoothing)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_loss_of_any_structure_is_computed_in_fp32(kind, tmp_path):
    task, trainer = _Noting(kind), Trainer(epochs=1, batch_size=32, lr=0.01, precision="bf16")
    _fit(trainer, TinyNet(kind), task, tmp_path, max_steps=1)
    assert task.seen == [(torch.float32, torch.float32)] * 2


@pytest.mark.parametrize("kind", ["values", "dict"])
def test_the_best_epoch_is_the_best_by_the_tasks_first_metric(kind, tmp_path):
    task, trainer = KindTask(kind), Trainer(epochs=4, batch_size=16, select="best", optimizer="adamw", lr=0.02)
    module = TinyNet(kind)
    report = _fit(trainer, module, task, tmp_path)
    best = (min if kind == "values" else max)(report.validation)
    assert report.kept == f"epoch {report.validation.index(best) + 1}"
    assert Validation(task, 32, "metric")(module) == pytest.approx(best)
