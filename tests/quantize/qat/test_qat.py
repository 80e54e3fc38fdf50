import copy
import dataclasses
import itertools
import json
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import StageError, UserError
from optkit.core.instantiate import build
from optkit.models import ResNetCIFAR
from optkit.prune import MagnitudePruning
from optkit.quantize import (
    QuantizationAwareTraining,
    StaticQuantization,
    convert_qat,
    prepare_qat,
    quantize_static,
    replay_static,
)
from optkit.quantize.graph.float_layers import float_layers
from optkit.quantize.graph.observers import ActivationObserver
from optkit.quantize.qat.fake_quant import LearnedRange, LearnedScale, LearnedScales, MaxScales, MovingRange
from optkit.quantize.qat.graph import LiveNorm, move_to_device
from optkit.recipe.compose import shipped
from optkit.training import Callback, Train, Trainer
from tests.distill.texts import bert
from tests.quantize.test_static import PreActivation, Twice

TARGETS = ("inductor", "onnxruntime", "openvino")
TRAINER = Trainer(epochs=3, batch_size=32, lr=0.02, precision="fp32")


def images(n):
    return (torch.randn(n, 1, 8, 8),)


def texts(n):
    return torch.randint(0, 50, (n, 7)), (torch.arange(7) < torch.randint(2, 8, (n, 1))).long()


def small_bert():
    inputs = ["input_ids", "attention_mask"]
    return bert(layers=1, num_classes=2, inputs=inputs, vocab_size=50, pad_token_id=0, max_length=16)


MODELS = {
    "resnet": (lambda: ResNetCIFAR(8, 10, 1, width=8), images),
    "pre-activation": (PreActivation, images),
    "bert": (small_bert, texts),
}


def lived_in(model):
    """Batch norms as after a training, but wilder: weights of both signs, and one of zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
                module.weight.data[0] = 0
    return model.eval()


def resnet():
    torch.manual_seed(0)
    return lived_in(ResNetCIFAR(8, 10, 1, width=8))


@pytest.fixture(params=[(m, t) for m in MODELS for t in TARGETS], ids="-".join, scope="module")
def case(request):
    name, target = request.param
    torch.manual_seed(0)
    build_model, inputs = MODELS[name]
    model, batches = lived_in(build_model()), [inputs(16) for _ in range(3)]
    return model, inputs, batches, target, quantize_static(model, inputs(2), batches, target=target)


def train(module, batches, lr=0.01):
    optimizer = torch.optim.SGD(module.parameters(), lr)
    module.train()
    for inputs in batches:
        module(*inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    module.eval()


def energy(x):
    return float(x.square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True])
def test_what_was_trained_is_what_is_converted(case, learned):
    model, inputs, batches, target, static = case
    prepared = prepare_qat(model, inputs(2), batches, target=target, learned_scales=learned)
    with torch.no_grad():
        untrained = prepared.module.eval()(*batches[0])
        expected = model(*batches[0])
        noise = energy(static.module(*batches[0]) - expected)
    assert 0 < energy(untrained - expected) < 3 * noise
    before = copy.deepcopy(prepared.module.state_dict())
    train(prepared.module, batches)
    assert all(p.grad is None for p in prepared.calibrated.graph.parameters())
    with torch.no_grad():
        for module in prepared.module.modules():
            if isinstance(module, LearnedScale):
                module.ratio.mul_(0.8)  # so that the largest weights are cut
    after = copy.deepcopy(prepared.module.state_dict())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {n for n, p in prepared.module.named_parameters() if p.dim() > 1 and "position" not in n}
    found = convert_qat(prepared)
    assert all(torch.equal(v, after[k]) for k, v in prepared.module.state_dict().items())
    with torch.no_grad():
        fake, real = prepared.module(*batches[0]), found.module(*batches[0])
    assert energy(fake - untrained) > noise  # it is the trained weights that agree
    # sums in another order may round one activation to the next step
    assert (fake - real).abs().median() < 1e-5 * fake.abs().max()
    assert energy(fake - real) < 0.02 * noise
    names = [[n.name for n in q.module.graph.nodes] for q in (found, static)]
    assert names[0] == names[1]
    assert found.activations.keys() == static.activations.keys()
    again = replay_static(copy.deepcopy(model), inputs(2), found.activations, found.reduce_range, target)
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*batches[0]), real)


@pytest.mark.parametrize("target", TARGETS)
def test_protected_layers_are_trained_and_stay_in_float(target):
    torch.manual_seed(0)
    model, batches = lived_in(PreActivation()).eval(), [images(32)]
    prepared = prepare_qat(model, images(2), batches, target=target, protect=["conv1", "linear"])
    before = prepared.module.state_dict()["conv1.weight"].clone()
    train(prepared.module, batches)
    assert not torch.equal(prepared.module.state_dict()["conv1.weight"], before)
    found = convert_qat(prepared)
    assert set(float_layers(found.module)) == {"conv1", "linear", "up"}
    with torch.no_grad():
        fake, real = prepared.module(*batches[0]), found.module(*batches[0])
    assert (fake - real).abs().median() < 1e-5 * fake.abs().max()
    again = replay_static(copy.deepcopy(model), images(2), found.activations, found.reduce_range, target, found.protect)
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*batches[0]), real)


def test_batch_norms_and_dropouts_are_alive_in_train_mode_alone():
    torch.manual_seed(0)
    model, x = lived_in(PreActivation()), images(16)
    module = prepare_qat(model, images(2), [x]).module
    live = [m for m in module.modules() if isinstance(m, LiveNorm)]
    assert len(live) == 4
    assert sum(isinstance(m, nn.Dropout) for m in module.modules()) == 1
    mean = live[0].running_mean.clone()
    with torch.no_grad():
        assert torch.equal(module.eval()(*x), module(*x))
        assert torch.equal(live[0].running_mean, mean)
        assert not torch.equal(module.train()(*x), module(*x))
    assert not torch.equal(live[0].running_mean, mean)
    module.eval()(*images(1))  # the last batch of an epoch may be of one


@pytest.mark.parametrize("bias", [True, False])
def test_calls_of_one_module_share_its_norm_and_its_weight(bias):
    torch.manual_seed(0)
    model, batches = lived_in(Twice(bias)), [images(8) for _ in range(3)]
    prepared = prepare_qat(model, images(2), batches)
    assert sum(isinstance(m, LiveNorm) for m in prepared.module.modules()) == 1
    train(prepared.module, batches)
    with torch.no_grad():
        fake, real = prepared.module(*batches[0]), convert_qat(prepared).module(*batches[0])
    assert (fake - real).abs().median() < 1e-5 * fake.abs().max()


def test_what_the_graph_makes_itself_is_made_on_the_device():
    def devices(module):
        return {
            a.type for n in module.graph.nodes for a in [*n.args, *n.kwargs.values()] if isinstance(a, torch.device)
        }

    module = prepare_qat(small_bert(), texts(2), [texts(4)]).module
    assert devices(module) == {"cpu"}
    move_to_device(module, torch.device("meta"))
    assert devices(module) == {"meta"}
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}


def test_a_model_without_anything_to_quantize_is_refused_before_training():
    with pytest.raises(StageError, match="no operator"):
        prepare_qat(nn.Sequential(nn.Flatten(), nn.LayerNorm(64)), images(2), [images(4)])


def lsq(x, scale, zero_point, low, high, count):
    """Learned step size quantization as its paper writes it, by autograd alone."""
    factor = 1 / math.sqrt(count * high)
    scale = (scale * factor) + (scale - scale * factor).detach()
    scaled = (x / scale + zero_point).clamp(low, high)
    return (scaled + (scaled.round() - scaled).detach() - zero_point) * scale


@pytest.mark.parametrize(("symmetric", "highest"), [(False, 255), (True, 255), (False, 127)])
def test_the_gradient_of_a_learned_range_is_the_papers(symmetric, highest):
    torch.manual_seed(0)
    x = torch.randn(8, 6, requires_grad=True)
    observer = ActivationObserver(symmetric=symmetric, quant_max=highest)
    observer(x / 2)  # half of it, so that some values are cut
    fake, weights = LearnedRange(observer), torch.randn(8, 6)
    (fake(x) * weights).sum().backward()
    scale, zero_point = observer.calculate_qparams()
    reference, y = scale.double().requires_grad_(), x.detach().double().requires_grad_()
    (lsq(y, reference, zero_point, 0, highest, x.numel()) * weights).sum().backward()
    assert (y.grad == 0).any()
    assert torch.allclose(x.grad.double(), y.grad)
    # the ratio's step, in units of the scale, is the step of the scale itself
    assert torch.allclose((fake.scale.ratio.grad * scale).double(), reference.grad, rtol=1e-3)


def test_the_gradient_of_learned_scales_is_the_papers():
    torch.manual_seed(0)
    w = torch.randn(4, 3, 2, 2, requires_grad=True)
    fake, weights = LearnedScales(w * torch.tensor([0.5, 0.7, 1, 1]).view(-1, 1, 1, 1), 127), torch.randn(4, 3, 2, 2)
    (fake(w) * weights).sum().backward()
    scales = fake.scales(w).detach()
    reference, v = scales.double().requires_grad_(), w.detach().double().requires_grad_()
    (lsq(v, reference.view(-1, 1, 1, 1), 0, -127, 127, 12) * weights).sum().backward()
    assert (v.grad == 0).any()
    assert torch.allclose(w.grad.double(), v.grad)
    assert torch.allclose((fake.scale.ratio.grad * scales).double(), reference.grad, rtol=1e-3)


def test_scales_are_positive_whatever_happens():
    w = torch.randn(4, 5)
    w[1] = 0
    for fake in (MaxScales(127), LearnedScales(w, 127), LearnedScales(torch.zeros(4, 5), 63)):
        assert (fake.scales(w) > 0).all()
        assert torch.equal(fake(torch.zeros(4, 5)), torch.zeros(4, 5))
    learned = LearnedScales(w, 127)
    assert learned.scales(w)[1].item() == pytest.approx(float(w.abs().amax(1).mean()) / 127)
    learned.scale.ratio.data.fill_(-2.0)
    assert (learned.scales(w) > 0).all()


def test_a_moving_range_follows_and_freezes():
    observer = ActivationObserver()
    observer(torch.tensor([-1.0, 1.0]))
    fake, x = MovingRange(observer).train(), torch.tensor([-3.0, 5.0])
    fake(x)
    assert fake.range() == pytest.approx((-1 + 0.01 * -2, 1 + 0.01 * 4))
    fake.eval()(x)
    fake.train().freeze()
    fake(x)
    assert fake.range() == pytest.approx((-1.02, 1.04))


class Watch(Callback):
    """Keeps what may freeze, after every step."""

    def __init__(self, kill=None):
        self.kill, self.seen = kill, []

    def on_step_end(self, module, step, total):
        norms = [m.running_mean.tolist() for m in module.modules() if isinstance(m, LiveNorm)]
        ranges = [m.range() for m in module.modules() if isinstance(m, MovingRange)]
        self.seen.append([norms, ranges, module.get_parameter("conv1.weight").tolist()])
        if step == self.kill:
            raise KeyboardInterrupt


@dataclasses.dataclass
class Watched(Train):
    watch: Watch = dataclasses.field(default_factory=Watch)

    def apply(self, module, ctx, callbacks=()):
        return super().apply(module, ctx, [*callbacks, self.watch])


@pytest.mark.parametrize(("norms", "ranges"), [(0.5, 0.75), (0, None), (None, 0)])
def test_statistics_and_ranges_move_until_they_are_frozen(context, norms, ranges):
    watch = Watch()
    stage = QuantizationAwareTraining(
        batches=2, freeze_norms=norms, freeze_observers=ranges, training=Watched(TRAINER, watch)
    )
    outcome = stage.apply(resnet(), context(max_steps=None))
    total = 24
    moved = [
        [n for n, (a, b) in enumerate(itertools.pairwise(values), 2) if a != b]
        for values in zip(*watch.seen, strict=True)
    ]
    last = [total if share is None else round(share * total) for share in (norms, ranges)]
    assert moved[0] == list(range(2, last[0] + 1))
    assert moved[1] == list(range(2, last[1] + 1))
    assert moved[2] == list(range(2, total + 1))
    shares = {"norms": norms, "observers": ranges}
    assert outcome.facts["frozen_at_step"] == {k: round(v * total) for k, v in shares.items() if v is not None}
    losses = outcome.facts["training"]["losses"]
    assert losses[-1] < losses[0]
    assert outcome.facts["quantized_weights"] == 8
    json.dumps([outcome.facts, outcome.surgery], allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(("learned", "killed_at"), [(False, 5), (False, 9), (False, 22), (True, 22)])
def test_a_killed_training_ends_with_the_weights_it_would_have_had(context, tmp_path, learned, killed_at):
    def run(folder, kill=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        ctx = dataclasses.replace(context(max_steps=None), workdir=tmp_path / folder)
        training = Watched(TRAINER, Watch(kill))
        stage = QuantizationAwareTraining(batches=2, learned_scales=learned, training=training)
        return stage.apply(resnet(), ctx)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", killed_at)
    resumed = run("killed")
    assert resumed.resumed_s > 0 or killed_at < 8
    assert resumed.surgery == whole.surgery
    assert resumed.facts["frozen_at_step"] == whole.facts["frozen_at_step"]
    state = resumed.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.module.state_dict().items())


@pytest.mark.parametrize("select", ["best", "ema", "last"])
@pytest.mark.parametrize("learned", [False, True])
def test_whatever_weights_are_kept_it_is_they_that_are_converted(context, digits, select, learned):
    class Keep(Train):
        def apply(self, module, ctx, callbacks=()):
            outcome = super().apply(module, ctx, callbacks)
            self.kept = outcome.module
            return outcome

    training = Keep(dataclasses.replace(TRAINER, select=select, epochs=2))
    stage = QuantizationAwareTraining(batches=2, learned_scales=learned, training=training)
    found = stage.apply(resnet(), context(max_steps=None)).module
    inputs = next(digits.batches("validation", 32)).inputs
    with torch.no_grad():
        fake, real = training.kept(*inputs), found(*inputs)
    assert (fake - real).abs().median() < 1e-5 * fake.abs().max()


def test_zeros_of_a_pruned_model_stay(context):
    sparse = MagnitudePruning(0.5).apply(resnet(), context()).module
    zero = sparse.conv1.weight == 0
    assert zero.any()
    stage = QuantizationAwareTraining(batches=2, training=Train(TRAINER))
    int8 = stage.apply(sparse, context(("float", "sparse"))).module.state_dict()
    first = next(v for v in int8.values() if v.dtype == torch.int8)
    assert (first[zero] == 0).all()


class Spoiled(nn.Module):
    """Reads an input that is always zero with a weight that is large: nothing to float, ruin to a scale."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(65, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.last(F.relu(self.first(F.pad(x.flatten(1), (0, 1)))))


@pytest.mark.parametrize("learned", [False, True])
def test_where_calibration_fails_training_finds_weights_that_work(context, digits, tmp_path, learned):
    def loss(module):
        batches = list(digits.batches("validation", 64))
        with torch.no_grad():
            return sum(float(digits.loss(module(*b.inputs), b) * len(b)) for b in batches) / sum(map(len, batches))

    def ctx(name):
        (tmp_path / name).mkdir()
        return dataclasses.replace(context(max_steps=None), workdir=tmp_path / name)

    trainer = Trainer(10, 32, "adamw", lr=1e-2, weight_decay=0, precision="fp32")
    torch.manual_seed(0)
    model = Train(trainer).apply(Spoiled(), ctx("train")).module
    model.first.weight.data[:, -1] = 200 * model.first.weight.data.abs().amax(1)
    # the same training for both: of the floats that are then calibrated, and of what they will be rounded to
    tuned = Train(trainer).apply(copy.deepcopy(model), ctx("float")).module
    static = StaticQuantization(batches=4).apply(tuned, ctx("static")).module
    stage = QuantizationAwareTraining(batches=4, learned_scales=learned, training=Train(trainer))
    aware = stage.apply(copy.deepcopy(model), ctx("aware")).module
    harm, left = (loss(module) - loss(tuned) for module in (static, aware))
    assert harm > 0.2
    assert left < 0.5 * harm


@pytest.mark.slow
def test_every_product_runs_in_int8_kernels_on_inductor(context):
    stage = QuantizationAwareTraining(batches=2, min_int8_share=1, training=Train(TRAINER))
    assert stage.apply(resnet(), context()).facts["int8_share"] == 1


def configured(*overrides):
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        config = compose(overrides=["+stage@it=quantize/qat", *overrides])["it"]
    return build(OmegaConf.to_container(config), "it")


def test_the_training_distills_by_config(context, mlp, digits):
    small = ["it.training.trainer.epochs=1", "it.training.trainer.batch_size=32", "it.batches=2"]
    stage = configured("stage@it.training=distill/logits", *small)
    stage.check(mlp, digits)
    outcome = stage.apply(mlp, context())
    assert outcome.facts["losses"] == {"kd": 1.0}
    assert outcome.facts["teacher"] == "baseline"
    assert outcome.facts["quantized_weights"] == 2


@pytest.mark.parametrize(("training", "loss"), [("distill/features", "hint"), ("distill/hidden", "hidden")])
def test_losses_that_look_at_layers_are_refused_before_any_work(mlp, digits, training, loss):
    stage = configured(f"stage@it.training={training}")
    with pytest.raises(
        UserError, match=rf"training\.losses\.{loss}: .*paths.*\(~stages\.NAME\.training\.losses\.{loss}"
    ):
        stage.check(mlp, digits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt"}, "no int8 target 'tensorrt'"),
        ({"observer": "max"}, "no observer 'max'"),
        ({"batches": 0}, "batches: 0 is not a whole number"),
        ({"learned_scales": "yes"}, "no learned_scales 'yes'"),
        ({"freeze_norms": 2}, r"freeze_norms: 2 is not a share from 0 to 1 \(null for never\)"),
        ({"freeze_observers": "late"}, "freeze_observers: 'late' is not a share from 0 to 1"),
        ({"training": "train"}, "training: 'train' is not a training stage"),
        ({"training": StaticQuantization()}, "training: StaticQuantization is not a training stage"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        QuantizationAwareTraining(**options)


def test_a_norm_without_momentum_takes_the_mean_of_what_it_sees():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None)).eval(), images(16)
    module = prepare_qat(model, images(2), [x]).module.train()
    (norm,) = (m for m in module.modules() if isinstance(m, LiveNorm))
    before = norm.running_mean.clone()
    module(*(part + 3 for part in x))
    assert not torch.allclose(norm.running_mean, before)
