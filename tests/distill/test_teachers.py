"""Where a teacher comes from, and what is recorded of it."""

import importlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from optkit.core.artifact import save_artifact
from optkit.core.cache import cache_dir
from optkit.core.errors import UserError
from optkit.core.seeds import derive_seed
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.distill import Distillation
from optkit.distill.recorded import RecordedOutputs, _parts, _whole
from optkit.distill.teachers import load_teacher
from optkit.models import ModelSpec
from optkit.tasks import Digits
from optkit.training import Trainer

SPEC = ModelSpec("optkit.models.SmallCNN", {"num_classes": 10, "in_channels": 1, "widths": [8]})
NODE = {"_target_": SPEC.target, **SPEC.params}
TRAINER = Trainer(epochs=4, batch_size=64, lr=0.01, precision="fp32")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, digits):
    path = tmp_path / "variants" / "1-teacher"
    path.mkdir(parents=True)
    model = SPEC.build(5).eval()
    save_artifact(path, Variant("abc", None, frozenset({"float"}), SPEC.skeleton(model)), model, digits.example(2))
    return path


@pytest.fixture
def augmented():
    return Digits(image_size=8, crop=1, limit=200)


def _apply(stage, context, tmp_path, name, task=None, seed=0, max_steps=None):
    ctx = context(max_steps=max_steps)
    (tmp_path / name).mkdir()
    object.__setattr__(ctx, "workdir", tmp_path / name)
    object.__setattr__(ctx, "seed", seed)
    object.__setattr__(ctx, "baseline", lambda: SPEC.build(3).eval())
    object.__setattr__(ctx, "build_model", lambda node: SPEC.build(4).eval())
    if task is not None:
        object.__setattr__(ctx, "task", SealedTask(task))
    return stage.apply(SPEC.build(1).eval(), ctx)


def test_teachers_of_all_kinds_give_the_logits_that_they_should(folder, digits):
    x = digits.example(4)
    baseline, built = (lambda: SPEC.build(3).eval()), (lambda node: SPEC.build(4).eval())
    with torch.no_grad():
        expected = [SPEC.build(seed).eval()(*x) for seed in (3, 5, 4)]
        specs = [None, str(folder), NODE]
        for spec, logits in zip(specs, expected, strict=True):
            assert torch.equal(load_teacher(spec, baseline, built)(*x), logits)
        several = load_teacher(["baseline", str(folder), NODE], baseline, built)
        torch.testing.assert_close(several(*x), sum(expected) / 3)
    assert not any(p.requires_grad for p in several.parameters())


@pytest.mark.parametrize("kind", ["folder", "several"])
def test_the_stage_takes_them(folder, context, tmp_path, kind):
    stage = Distillation(teacher=str(folder) if kind == "folder" else [str(folder), None], trainer=TRAINER)
    facts = _apply(stage, context, tmp_path, "one", max_steps=2).facts
    assert facts["teacher"] == ("abc" if kind == "folder" else ["abc", "baseline"])


def test_a_teacher_of_the_users_own_is_named_by_the_recipe(folder, digits, context, tmp_path, monkeypatch):
    (tmp_path / "my_teachers.py").write_text("from optkit.models import SmallCNN\nclass Own(SmallCNN): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = folder / "variant.json"
    path.write_text(path.read_text().replace(SPEC.target, "my_teachers.Own"))
    refused = "teacher: .*1-teacher: would run code of the package 'my_teachers' .*add 'my_teachers.Own' to trust"
    for teacher in (str(folder), [str(folder), "baseline"]):
        with pytest.raises(UserError, match=refused):
            Distillation(teacher=teacher).check(SPEC.build(0), SealedTask(digits))
        Distillation(teacher=teacher, trust=["my_teachers"]).check(SPEC.build(0), SealedTask(digits))
    stage = Distillation(teacher=str(folder), trust=["my_teachers.Own"], trainer=TRAINER)
    assert _apply(stage, context, tmp_path, "one", max_steps=2).facts["teacher"] == "abc"
    del sys.modules["my_teachers"]


def test_a_teachers_folder_runs_no_other_code(folder, digits, tmp_path):
    path = folder / "variant.json"
    data = json.loads(path.read_text())
    node = {"_target_": "os.system", "command": f"touch {tmp_path}/pwned"}
    data["variant"]["model"] = {"target": "optkit.core.instantiate.build", "params": {"node": node, "key": "x"}}
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="teacher: .*would run code"):
        Distillation(teacher=str(folder)).check(SPEC.build(0), SealedTask(digits))
    assert not (tmp_path / "pwned").exists()


def _files():
    return sorted(cache_dir().glob("teacher_outputs/*/outputs.safetensors"))


def test_recorded_logits_are_the_teachers_on_the_very_batches(context, tmp_path, augmented):
    outcome = _apply(Distillation(cached_views=2, trainer=TRAINER), context, tmp_path, "one", augmented)
    assert outcome.facts["cached"] == {"views": 2, "computed": 2}
    assert len(_files()) == 2
    for path in _files():
        view = int(path.parent.name.rpartition("-")[2])
        kept = load_file(path)["output"]
        for batch in augmented.batches("train", 64, training=True, seed=derive_seed(0, "recorded", view)):
            with torch.no_grad():
                torch.testing.assert_close(kept[batch.index], SPEC.build(3).eval()(*batch.inputs), atol=1e-5, rtol=1e-4)


def test_a_recorded_teacher_trains_as_one_that_is_run(context, tmp_path, augmented, monkeypatch):
    recorded = _apply(Distillation(cached_views=2, trainer=TRAINER), context, tmp_path, "one", augmented, seed=1)
    from optkit.distill import DistillationObjective

    monkeypatch.setattr(
        DistillationObjective, "batches_seed", lambda self, epoch: derive_seed(0, "recorded", (1 + epoch) % 2)
    )
    run = _apply(Distillation(trainer=TRAINER), context, tmp_path, "two", augmented, seed=1)
    for name, tensor in run.module.state_dict().items():
        torch.testing.assert_close(tensor, recorded.module.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_a_compiled_teacher_trains_as_one_that_is_not(context, tmp_path, augmented):
    plain, run = (
        _apply(Distillation(compile_teacher=each, trainer=TRAINER), context, tmp_path, str(each), augmented).module
        for each in (False, True)
    )
    for name, tensor in run.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_what_is_recorded_is_used_again_and_only_for_the_same_teacher_and_data(context, tmp_path, augmented):
    stage = Distillation(cached_views=1, trainer=TRAINER)
    computed = []
    for name, options in (
        ("first", {}),
        ("again", {}),
        ("another seed", {"seed": 7}),
        ("other data", {"task": Digits(image_size=8, crop=1, limit=150)}),
    ):
        facts = _apply(stage, context, tmp_path, name, **({"task": augmented} | options)).facts
        computed.append(facts["cached"]["computed"])
    assert computed == [1, 0, 0, 1]
    other = Distillation(cached_views=1, teacher=NODE, trainer=TRAINER)
    assert _apply(other, context, tmp_path, "other teacher", augmented).facts["cached"]["computed"] == 1


def test_the_largest_logits_are_kept_and_the_others_share_what_is_left(context, tmp_path, augmented):
    stage = Distillation(cached_views=1, cached_top=3, trainer=TRAINER)
    outcome = _apply(stage, context, tmp_path, "one", augmented)
    (path,) = _files()
    assert {name: list(t.shape) for name, t in load_file(path).items()} == {
        "logits": [200, 3], "classes": [200, 3], "others": [200, 1], "count": [1],
    }  # fmt: skip
    assert outcome.facts["cached"] == {"views": 1, "computed": 1}
    teacher = SPEC.build(3).eval()

    def run(batch):
        with torch.no_grad():
            return teacher(*batch.inputs)

    recorded = RecordedOutputs(
        augmented, teacher, 1, 64, 0, run, f"fp32 on cpu, {torch.get_num_threads()} threads", (3, stage.temperature)
    )
    seed = recorded.begin(0)
    assert recorded.computed == 0
    for batch in augmented.batches("train", 64, training=True, seed=seed):
        expected, found = ((x / stage.temperature).softmax(-1) for x in (run(batch), recorded(batch)))
        largest, classes = expected.topk(3)
        torch.testing.assert_close(found.gather(-1, classes), largest, atol=1e-5, rtol=1e-4)
        left = found.scatter(-1, classes, 0)
        torch.testing.assert_close(left.sum(-1), 1 - largest.sum(-1), atol=1e-5, rtol=1e-4)
        assert all(row[row > 0].unique().numel() == 1 for row in left)


def test_the_largest_logits_of_every_token_are_kept():
    logits = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    found = _whole(_parts(logits, (4, 2.0)))
    largest, classes = logits.topk(4)
    torch.testing.assert_close(found.gather(-1, classes), largest)
    torch.testing.assert_close((found / 2).logsumexp(-1), (logits / 2).logsumexp(-1))


def test_a_file_that_is_not_logits_is_named(context, tmp_path, augmented):
    stage = Distillation(cached_views=1, trainer=TRAINER)
    _apply(stage, context, tmp_path, "one", augmented)
    (path,) = _files()
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a teacher's outputs.*delete the folder"):
        _apply(stage, context, tmp_path, "two", augmented)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "no/such/folder"}, "teacher: no variant at no/such/folder"),
        ({"teacher": {"depth": 8}}, "teacher: a model spec without _target_"),
        ({"teacher": ["baseline"]}, "teacher: 1 in the list"),
        ({"teacher": 3}, "teacher: 3 is no teacher"),
        ({"teacher": [None, None], "losses": {"hint": 1}}, "teacher: only outputs are averaged, and hint compares"),
        ({"compile_teacher": True, "losses": {"hint": 1}}, "compile_teacher: only outputs are compiled, and hint"),
        ({"compile_teacher": "no"}, "compile_teacher"),
        ({"trust": "mypackage"}, "trust: 'mypackage' is not a list of names"),
        ({"cached_top": 3}, "cached_top: nothing is recorded"),
        ({"cached_views": 1, "cached_top": 0}, "cached_top: 0 is not a whole number"),
        ({"cached_views": 0}, "cached_views: 0 is not a whole number"),
        ({"cached_views": 2, "losses": {"kd": 1, "rkd": 1}}, "cached_views: only outputs are recorded, and rkd"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Distillation(**options)


def test_a_teacher_that_does_not_fit_is_refused_before_any_work(digits):
    student = SPEC.build(0).eval()
    for node, message in (
        (NODE | {"num_classes": 7}, "the teacher has 7 classes, the student 10"),
        (NODE | {"in_channels": 3}, r"teacher: SmallCNN does not take this task's inputs \[2, 1, 8, 8\]"),
        ({"_target_": "optkit.models.ResNetCIFAR", "dept": 8}, "teacher.dept"),
    ):
        with pytest.raises(UserError, match=message):
            Distillation(teacher=node).check(student, SealedTask(digits))


def test_more_logits_than_there_are_classes_are_refused_before_any_work(digits):
    for top, message in ((10, r"cached_top: of 10 classes \(fewer than 10"), (6, "40 bytes an example, and all 10")):
        with pytest.raises(UserError, match=message):
            Distillation(cached_views=1, cached_top=top).check(SPEC.build(0).eval(), SealedTask(digits))


def test_a_teacher_is_not_compiled_without_a_compiler(digits, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="compile_teacher: no C\\+\\+ compiler"):
        Distillation(compile_teacher=True).check(SPEC.build(0).eval(), SealedTask(digits))


def test_what_is_recorded_is_not_used_by_other_code_of_tasks_and_models(context, tmp_path, augmented, monkeypatch):
    stage = Distillation(cached_views=1, trainer=TRAINER)
    _apply(stage, context, tmp_path, "first", augmented)
    monkeypatch.setattr("optkit.core.source_digest.code_of", lambda kind: "other")
    assert _apply(stage, context, tmp_path, "upgraded", augmented).facts["cached"]["computed"] == 1


def test_what_is_recorded_is_not_used_by_a_changed_task_of_ones_own(context, tmp_path, monkeypatch):
    code = "from optkit.tasks import Digits\n\nclass Own(Digits):\n    pass\n"
    monkeypatch.syspath_prepend(tmp_path)
    computed = []
    for name, changed in (("first", ""), ("again", ""), ("told", "# why\n"), ("changed", "SHARE = 0.4\n")):
        (tmp_path / "own_task.py").write_text(code + changed)
        sys.modules.pop("own_task", None)
        task = importlib.import_module("own_task").Own(image_size=8, crop=1, limit=200)
        outcome = _apply(Distillation(cached_views=1, trainer=TRAINER), context, tmp_path, name, task)
        computed.append(outcome.facts["cached"]["computed"])
    assert computed == [1, 0, 0, 1]


def test_a_teacher_in_the_home_folder_is_found_and_named(folder, context, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    stage = Distillation(teacher=f"~/{folder.relative_to(tmp_path)}", trainer=TRAINER)
    assert _apply(stage, context, tmp_path, "one", max_steps=1).facts["teacher"] == "abc"
