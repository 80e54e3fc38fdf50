import importlib
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from optkit.core import source_digest
from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.errors import PlanError, UserError
from optkit.core.imports import Sources
from optkit.core.instantiate import build, locate
from optkit.core.source_digest import code_of
from optkit.core.stage import KeyContext
from optkit.core.variant import Variant
from optkit.distill import Distillation
from optkit.engines import Eager, Inductor
from optkit.models import ModelSpec
from optkit.models.spec import start_traits
from optkit.prune import DepthPruning, GradualPruning, MagnitudePruning, StructuredPruning
from optkit.quantize import (
    DynamicQuantization,
    QuantizationAwareTraining,
    StaticQuantization,
    WeightOnlyQuantization,
)
from optkit.quantize.options import products_saturate
from optkit.recipe.keys import params_of
from optkit.recipe.plan import check_chain, make_plan
from optkit.recipe.recipe import Recipe
from optkit.tasks import Digits
from optkit.training import Train, Trainer

MODEL = {"_target_": "optkit.models.MLP", "widths": [8], "num_classes": None, "input_shape": None}


@pytest.fixture
def recipe(digits):
    stages = {
        "train": Train(),
        "tune": Train(),
        "mask": MagnitudePruning(),
        "recover": Distillation(),
        "quantize": StaticQuantization(),
    }
    engines = {"eager": Eager(), "inductor": Inductor()}
    return Recipe("r", dict(MODEL), digits, ["train", "mask", "recover", "quantize"], stages, engines, Eager())


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["train", "quantize", "recover"], "'recover' needs a model that is float, which 'quantize' took away.*before"),
        (["train", "quantize", "mask"], "'mask' needs a model that is float"),
        (["train", "quantise"], "did you mean 'quantize'"),
        (["train", "mask", "mask"], "'mask' stands twice"),
    ],
)
def test_a_chain_that_cannot_work_is_refused(recipe, chain, message):
    with pytest.raises(PlanError, match=message):
        check_chain(replace(recipe, chain=chain))


def test_a_variant_that_no_engine_runs_is_refused(recipe):
    with pytest.raises(PlanError, match="no engine runs the last variant.*eager"):
        check_chain(replace(recipe, engines={"eager": Eager()}))


def test_an_engine_that_is_not_there_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(Inductor, "unavailable", lambda self: "no C++ compiler found (install g++)")
    with pytest.raises(UserError, match=r"engines\.inductor: does not work here.*install g\+\+"):
        check_chain(recipe)


@pytest.mark.parametrize(
    ("chain", "baseline", "expected"),
    [
        (["train", "mask", "recover"], "auto", ["train", "mask", "recover"]),
        (["train", "tune", "mask"], "auto", ["tune", "mask"]),
        (["mask", "train"], "auto", ["model", "mask", "train"]),
        (["train", "mask", "recover"], "mask", ["mask", "recover"]),
        (["train", "mask"], "model", ["model", "train", "mask"]),
        ([], "auto", ["model"]),
    ],
)
def test_the_baseline_is_what_opens_the_chain_or_what_the_recipe_names(recipe, chain, baseline, expected):
    plan = make_plan(replace(recipe, chain=chain, baseline=baseline))
    assert [s.name for s in plan.measured] == expected
    assert [s.number for s in plan.measured] == list(range(len(expected)))


def test_an_unknown_baseline_is_refused(recipe):
    with pytest.raises(PlanError, match="baseline.*did you mean 'train'"):
        check_chain(replace(recipe, baseline="trian"))


def _ids(recipe):
    return [step.id for step in make_plan(recipe).steps]


def _same(before, after):
    return [a == b for a, b in zip(before, after, strict=True)]


def test_ids_are_the_same_for_the_same_recipe_and_prefix(recipe):
    assert _ids(recipe) == _ids(replace(recipe))
    assert _ids(replace(recipe, chain=["train", "mask"])) == _ids(recipe)[:3]


@dataclass
class Foreign:
    """A stage of somebody else's package."""

    technique: ClassVar[str] = "foreign"
    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module, ctx):
        raise AssertionError("never run here")


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ({"seed": 1}, 0),
        ({"model": MODEL | {"widths": [9]}}, 0),
        ({"stages": {"train": Train(Trainer(epochs=11))}}, 1),
        ({"max_steps": 3}, 1),
        ({"stages": {"mask": MagnitudePruning(0.6)}}, 2),
        ({"stages": {"mask": Foreign()}}, 2),
        ({"stages": {"recover": Distillation(temperature=2.0)}}, 3),
        ({"threads": 999}, 1),
        ({"out": "elsewhere"}, 5),
    ],
)
def test_ids_change_with_what_decides_the_weights_and_from_there_on(recipe, change, first_changed):
    stages = recipe.stages | change.get("stages", {})
    before, after = _ids(recipe), _ids(replace(recipe, **(change | {"stages": stages})))
    assert _same(before, after) == [n < first_changed for n in range(5)]


def test_the_kind_of_a_training_within_a_stage_decides_the_id_and_is_in_its_params(recipe):
    @dataclass
    class Other(Train):
        """As `Train` by its fields."""

    ours, theirs = (
        replace(recipe, stages=recipe.stages | {"mask": GradualPruning(training=t())}) for t in (Train, Other)
    )
    assert _ids(ours)[2] != _ids(theirs)[2]
    params = params_of(ours.stages["mask"])
    assert params["training"]["_target_"] == "optkit.training.stages.Train"
    assert build({"_target_": "optkit.prune.GradualPruning", **params}, "mask") == ours.stages["mask"]


def test_other_data_is_another_variant(recipe):
    assert _ids(recipe)[0] != _ids(replace(recipe, task=Digits(image_size=8, crop=1, limit=255)))[0]


@pytest.fixture
def sources(monkeypatch):
    """Changes what modules are seen to import: the digest of a file, or the version of a package."""
    real = source_digest.imported_sources

    def change(file=None, package=None):
        def changed(*modules, **options):
            found = real(*modules, **options)
            files = {name: digest + "x" * (name == file) for name, digest in found.files.items()}
            return Sources(files, {n: "other" if n == package else v for n, v in found.packages.items()})

        monkeypatch.setattr(source_digest, "imported_sources", changed)

    return change


@pytest.mark.parametrize(
    ("file", "first_changed"),
    [
        ("optkit.models.small", 0),
        ("optkit.tasks.images", 0),
        ("optkit.training.schedules", 1),
        ("optkit.prune.masks", 2),
        ("optkit.distill.losses", 3),
        ("optkit.quantize.graph.observers", 4),
        ("optkit.quantize.graph.targets.inductor", 4),
        ("optkit.quantize.graph.targets.openvino", 5),
        ("optkit.engines.inductor", 5),
        ("optkit.pipeline", 5),
    ],
)
def test_changed_code_is_another_variant_of_the_stages_that_run_it(recipe, sources, file, first_changed):
    before = _ids(recipe)
    sources(file=file)
    assert _same(before, _ids(recipe)) == [n < first_changed for n in range(5)]


@pytest.mark.parametrize(
    ("package", "first_changed"), [("torchao", 4), ("accelerate", 5), ("torch", 0), ("openvino", 5), ("rich", 5)]
)
def test_another_version_of_a_package_that_decides_weights_is_another_variant(recipe, sources, package, first_changed):
    before = _ids(recipe)
    sources(package=package)
    assert _same(before, _ids(recipe)) == [n < first_changed for n in range(5)]


def test_another_version_of_the_package_that_a_model_comes_from_is_another_variant(recipe, monkeypatch):
    theirs = ModelSpec("torchvision.ops.MLP", {"in_channels": 4, "hidden_channels": [4]})
    ours = ModelSpec.from_config(MODEL, recipe.task.model_defaults())
    before = [s.identity(s.build(0)) for s in (theirs, ours)]
    of_torchvision = lambda cls: cls.__module__.startswith("torchvision")  # noqa: E731
    monkeypatch.setattr(source_digest, "code_of", lambda cls: "other" if of_torchvision(cls) else code_of(cls))
    assert _same(before, [s.identity(s.build(0)) for s in (theirs, ours)]) == [False, True]


def test_a_stage_of_another_package_has_the_code_that_it_derives_from(recipe, sources):
    @dataclass(frozen=True)
    class Derived(MagnitudePruning):
        """As its parent."""

    derived = replace(recipe, stages=recipe.stages | {"mask": Derived()})
    before = _ids(derived)
    sources(file="optkit.prune.masks")
    assert _same(before, _ids(derived)) == [True, True, False, False, False]


def test_changed_code_of_a_task_of_another_package_is_another_variant(recipe, monkeypatch):
    class Theirs(Digits):
        """As its parent."""

    theirs = replace(recipe, task=Theirs(image_size=8, crop=1, limit=64))
    before = _ids(theirs)
    assert _ids(theirs) == before
    monkeypatch.setattr(source_digest, "code_of", lambda cls: ("other", *code_of(cls)[1:]))
    assert _same(before, _ids(theirs)) == [False] * 5


def test_a_class_without_a_file_is_like_itself_alone():
    one, two = (type("Typed", (), {"__module__": "typed_into_a_notebook"}) for _ in range(2))
    assert code_of(one) == code_of(one) != code_of(two)


OWN = {
    "stage": """
from dataclasses import dataclass
from optkit.prune import MagnitudePruning
from . import losses

@dataclass(frozen=True)
class Mine(MagnitudePruning): ...
""",
    "net": """
from optkit.models import MLP
from . import losses

class Net(MLP): ...

def build(num_classes=10, input_shape=(1, 8, 8)):
    return MLP(list(input_shape), num_classes, widths=[8])
""",
    "data": """
from optkit.tasks import Digits
from . import losses

class Data(Digits): ...
""",
    "serving": """
from optkit.engines import Eager
from . import losses

class Server(Eager): ...
""",
    "parts": """
from . import losses
def criterion(model, batches, loss_fn): return {name: p.detach() ** 2 for name, p in model.named_parameters()}
def loss(student, teacher): return (student - teacher).square().mean()
def schedule(progress, warmup): return 1 - progress
def optimizer(params, lr): import torch; return torch.optim.SGD(params, lr=lr)
def augment(images): return images.flip(-1)
""",
    "losses": "from . import temperature",
    "temperature": "VALUE = 1",
    "unrelated": "",
    "__init__": "",
}


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """Writes a package with a stage, a model, a task and an engine, and imports one of them as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] == "own_package"]:
            del sys.modules[name]

    def write(path, **changes):
        (tmp_path / "own_package").mkdir(exist_ok=True)
        for name, text in (OWN | changes).items():
            (tmp_path / "own_package" / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        forget()
        return locate(f"own_package.{path}", "x")

    yield write
    forget()


def _with_own(recipe, path, kind):
    """The recipe with the class or function of the package in the place that it is for."""
    if path == "stage.Mine":
        return replace(recipe, stages=recipe.stages | {"mask": kind()})
    if path.startswith("net"):
        return replace(recipe, model={"_target_": f"own_package.{path}", "num_classes": None, "input_shape": None})
    if path == "data.Data":
        return replace(recipe, task=kind(image_size=8, crop=1, limit=64))
    return replace(recipe, engines=recipe.engines | {"served": kind()})


@pytest.mark.parametrize(
    ("path", "first_changed"),
    [("stage.Mine", 2), ("net.Net", 0), ("net.build", 0), ("data.Data", 0), ("serving.Server", 5)],
)
def test_an_edit_of_what_ones_own_package_imports_is_another_variant(recipe, own_package, path, first_changed):
    def planned(**changes):
        plan = make_plan(_with_own(recipe, path, own_package(path, **changes)))
        return [step.id for step in plan.steps], plan.run

    (before, run), (same, same_run) = planned(), planned(unrelated="VALUE = 2")
    assert (same, same_run) == (before, run)
    after, other_run = planned(temperature="VALUE = 2")
    assert _same(before, after) == [n < first_changed for n in range(5)]
    assert other_run != run


def _part(stage, **fields):
    return lambda recipe: replace(recipe, stages=recipe.stages | {"mask": stage(**fields)})


OWN_PARTS = {
    "criterion": (_part(StructuredPruning, criterion="own_package.parts.criterion"), 2),
    "a loss in a list": (_part(Distillation, losses=["kd", "own_package.parts.loss"]), 2),
    "a loss with a weight": (_part(Distillation, losses={"own_package.parts.loss": {"weight": 2}}), 2),
    "a schedule": (lambda r: _part(Train, trainer=Trainer(schedule="own_package.parts.schedule"))(r), 2),
    "an optimizer": (lambda r: _part(Train, trainer=Trainer(optimizer="own_package.parts.optimizer"))(r), 2),
    "a transform": (
        lambda r: replace(r, task=Digits(image_size=8, crop=1, limit=64, transform="own_package.parts.augment")),
        0,
    ),
}


@pytest.mark.parametrize(("change", "first_changed"), OWN_PARTS.values(), ids=OWN_PARTS)
def test_an_edit_of_what_a_dotted_path_names_is_another_variant_and_a_comment_is_not(
    recipe, own_package, change, first_changed
):
    net = {"_target_": "optkit.models.SmallCNN", "widths": [8, 8, 8], "num_classes": None, "in_channels": None}

    def planned(**changes):
        own_package("parts.criterion", **changes)
        plan = make_plan(change(replace(recipe, model=net, chain=["train", "mask", "recover"])))
        return [step.id for step in plan.steps]

    before = planned()
    assert planned(parts="# a comment\n" + OWN["parts"]) == before
    assert planned(parts=OWN["parts"] + "\nVALUE = 2\n") != before
    after = planned(temperature="VALUE = 2")
    assert _same(before, after) == [n < first_changed for n in range(4)]


@pytest.fixture
def saved(recipe, tmp_path):
    """A cut and a masked variant of the recipe's model, in a folder like a run's."""
    from optkit.prune import prune_structured

    spec = ModelSpec.from_config(recipe.model, recipe.task.model_defaults())
    model = spec.build(0).eval()
    pruned = prune_structured(model, recipe.task.example(2), amount=0.3)
    surgery = {"by": "prune.structured/1", "data": pruned.plan.to_dict()}
    made = Variant("cut", None, frozenset({"float", "cut"}), spec.skeleton(model), (surgery,))
    folder = tmp_path / "run" / "variants" / "1-cut"
    folder.mkdir(parents=True)
    save_artifact(folder, made, pruned.module, recipe.task.example(2))
    return folder


def started(recipe, folder, **node):
    model = {"variant": str(folder)} | node
    return replace(recipe, model=model, traits=start_traits(model), chain=["mask", "recover"])


def test_a_run_starts_from_a_variant_as_it_was_saved(recipe, saved):
    plan = make_plan(started(recipe, saved))
    module = plan.spec.build(1)
    own = open_artifact(saved).module()
    assert [p.shape for p in module.parameters()] == [p.shape for p in own.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), own.parameters(), strict=True))
    assert [step.name for step in plan.steps] == ["model", "mask", "recover"]


def test_other_weights_in_the_same_folder_are_another_start(recipe, saved):
    before = make_plan(started(recipe, saved)).steps
    artifact = open_artifact(saved)
    module = artifact.module()
    next(module.parameters()).data.add_(1)
    save_artifact(saved, artifact.variant, module, recipe.task.example(2))
    after = make_plan(started(recipe, saved)).steps
    assert not {step.id for step in before} & {step.id for step in after}


def test_what_is_no_variant_names_those_of_a_run(recipe, saved):
    for folder in (saved.parent, saved.parent.parent):
        with pytest.raises(UserError, match=rf"model\.variant: no variant at .*its variants: {saved}"):
            start_traits({"variant": str(folder)})
    with pytest.raises(UserError, match=r"model\.variant: no variant at .*nowhere"):
        start_traits({"variant": "nowhere"})


def test_an_int8_variant_cannot_be_pruned(recipe):
    traits = frozenset({"int8", "int8:inductor"})
    with pytest.raises(
        PlanError, match=r"model\.variant: 'mask' needs a model that is float, and this variant is int8"
    ):
        check_chain(replace(recipe, chain=["mask"], traits=traits))
    with pytest.raises(PlanError, match=r"model\.variant: the baseline must run on eager"):
        check_chain(replace(recipe, chain=[], traits=traits))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"depth": 3}, r"model\.depth: unknown key; a model that starts from a variant takes no 'depth'"),
        ({"trust": "mypkg"}, r"model\.trust: 'mypkg' is not a list of names"),
    ],
)
def test_mistakes_beside_a_variant_are_named(recipe, saved, node, message):
    with pytest.raises(UserError, match=message):
        make_plan(started(recipe, saved, **node))


def test_a_variant_of_code_that_is_not_trusted_is_refused(recipe, saved):
    text = (saved / "variant.json").read_text().replace("optkit.models.MLP", "tests.recipe.test_plan.Nothing")
    (saved / "variant.json").write_text(text)
    with pytest.raises(UserError, match=r"would run code of the package 'tests'.*to model\.trust"):
        make_plan(started(recipe, saved))


def test_a_dense_control_needs_a_dense_start(recipe, saved):
    recipe = replace(started(recipe, saved), controls=["smaller_dense"], baseline="mask")
    with pytest.raises(PlanError, match="'smaller_dense'"):
        make_plan(recipe)


def test_a_teacher_can_be_a_variant_with_what_it_trusts(recipe, saved):
    by_folder, by_mapping = Distillation(teacher=str(saved)), Distillation(teacher={"variant": str(saved)})
    context = KeyContext("b", lambda node: node, torch.device("cpu"), 1)
    assert by_folder.depends_on(context) == by_mapping.depends_on(context)
    with pytest.raises(UserError, match=r"teacher\.depth: unknown key"):
        Distillation(teacher={"variant": str(saved), "depth": 1})


TAUGHT = {
    "alone": Distillation(),
    "within pruning": GradualPruning(training=Distillation()),
    "within quantization": QuantizationAwareTraining(training=Distillation()),
    "among others": Distillation(teacher=["baseline", MODEL]),
}


@pytest.mark.parametrize("stage", TAUGHT.values(), ids=TAUGHT)
def test_another_baseline_is_another_teacher(recipe, stage):
    chain = ["train", "tune", "mask", "recover"]
    taught = replace(recipe, chain=chain, stages=recipe.stages | {"recover": stage})
    of_tune, of_train = (_ids(replace(taught, baseline=name)) for name in ("auto", "train"))
    assert _same(of_tune, of_train) == [True, True, True, True, False]


def test_the_baseline_of_other_chains_and_controls_is_the_recipes_own(recipe):
    stages = recipe.stages | {"mask": StructuredPruning()}
    chained = replace(recipe, chain=["train", "tune", "mask", "recover"], stages=stages, controls=["random_prune"])
    plans = [
        make_plan(replace(chained, baseline=name), chains=[["train", "tune", "recover"]]) for name in ("auto", "train")
    ]
    assert [step.of for step in plans[0].steps[5:]] == ["random_prune", "random_prune", "other"]
    assert _same(*([step.id for step in plan.steps[5:]] for plan in plans)) == [True, False, False]


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "list"])
def test_another_teacher_in_the_same_place_is_another_variant(recipe, tmp_path, kind):
    spec = ModelSpec.from_config(MODEL, recipe.task.model_defaults())
    file = tmp_path / "weights.safetensors"

    def put(seed):
        model = spec.build(seed).eval()
        variant = Variant("abc", None, frozenset({"float"}), spec.skeleton(model))
        save_artifact(tmp_path, variant, model, recipe.task.example(2))

    put(1)
    one = {"folder": str(tmp_path), "checkpoint": MODEL | {"checkpoint": str(file)}}
    teacher = one.get(kind) or [*one.values()]
    taught = replace(recipe, stages=recipe.stages | {"recover": Distillation(teacher=teacher)})
    before = _ids(taught)
    assert _ids(taught) == before
    put(2)
    assert _same(before, _ids(taught)) == [True, True, True, False, False]


def test_what_auto_means_on_this_processor_is_in_the_id(recipe, monkeypatch):
    recipe = replace(recipe, stages=recipe.stages | {"train": Train(Trainer(precision="fp32"))})
    before, saturate = _ids(recipe), products_saturate()
    monkeypatch.setattr("optkit.quantize.options.products_saturate", lambda: not saturate)
    assert _same(before, _ids(recipe)) == [True, True, True, True, False]
    monkeypatch.setattr("optkit.training.trainer.cpu", lambda: {"isa": ["amx_bf16"]})
    at_bf16 = _ids(recipe)
    monkeypatch.setattr("optkit.training.trainer.cpu", lambda: {"isa": []})
    assert _same(at_bf16, _ids(recipe)) == [True, True, True, False, False]


LATENCY = StructuredPruning(budget="latency")


def test_a_cut_to_a_latency_is_of_its_machine_and_of_the_code_of_its_engine(recipe, sources, monkeypatch):
    cut = replace(recipe, chain=["cut"], stages=recipe.stages | {"cut": LATENCY}, threads=1)
    before = _ids(cut)
    with monkeypatch.context() as patch:
        patch.setattr("optkit.measure.alone.cpu", lambda: {"name": "another"})
        assert _same(before, _ids(cut)) == [True, False]
    sources(file="optkit.engines.openvino")
    assert _ids(cut) == before
    sources(file="optkit.engines.eager")
    assert _same(before, _ids(cut)) == [True, False]


SUMS = {
    "training": (Train(), True),
    "training within a stage": (GradualPruning(), True),
    "distillation": (Distillation(teacher=MODEL), True),
    "calibration": (StaticQuantization(), True),
    "a cut to a latency": (LATENCY, True),
    "a cut by data": (StructuredPruning(criterion="taylor"), True),
    "a cut by what validation loses": (StructuredPruning(scope="sensitivity"), True),
    "blocks by what validation loses": (DepthPruning(), True),
    "rounding by data": (WeightOnlyQuantization(rounding="gptq"), True),
    "a cut by weights": (StructuredPruning(), False),
    "a cut at random": (StructuredPruning(criterion="random"), False),
    "blocks by position": (DepthPruning(by="position"), False),
    "masks": (MagnitudePruning(), False),
    "int8 without data": (DynamicQuantization(), False),
    "rounding to the nearest": (WeightOnlyQuantization(), False),
}


@pytest.mark.parametrize(("stage", "decide"), SUMS.values(), ids=SUMS)
def test_threads_and_device_are_in_the_id_where_numbers_are_summed_over_data(recipe, monkeypatch, stage, decide):
    one_stage = replace(recipe, chain=["one"], stages={"one": stage})
    monkeypatch.setattr(type(stage), "check", lambda *args: None, raising=False)
    one, two = (_ids(replace(one_stage, threads=n)) for n in (1, 2))
    assert _same(one, two) == [True, not decide]


def test_on_a_gpu_a_training_is_of_the_device_and_not_of_the_threads():
    def key(device, threads):
        return Trainer(precision="fp32").depends_on(KeyContext(None, str, torch.device(device), threads))

    assert key("cuda", 1) == key("cuda", 2) == {"precision": "fp32", "device": "cuda"}
    assert key("cpu", 1) != key("cpu", 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_target_": "optkit.models.MLP", "input_shape": [5]}, r"MLP does not take this task's inputs \[2, 1, 8, 8\]"),
        (
            {"_target_": "optkit.models.MLP", "num_classes": 3, "input_shape": None},
            r"\[2, 3\] for 2 examples of 10 classes",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(recipe, model, message):
    with pytest.raises(UserError, match=message):
        make_plan(replace(recipe, model=model))


@dataclass
class Own(Eager):
    name: ClassVar[str] = "own"


def test_a_run_trusts_its_engines_that_no_package_declares(recipe):
    engines = recipe.engines | {"mine": Own()}
    assert set(make_plan(replace(recipe, engines=engines)).trusted) == {
        *make_plan(recipe).trusted,
        f"{__name__}.Own",
    }
