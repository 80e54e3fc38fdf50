"""What an edit of optkit does to the keys of its own stages: seen in a copy of the package, by new processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optkit
from optkit.core.imports import imported_sources
from optkit.core.source_digest import DECIDE_NOTHING, FIND_BY_NAME
from optkit.core.task import Batch
from optkit.metrics.functions import MeanScore
from optkit.metrics.libraries import TorchMetric
from optkit.metrics.transformed import Transformed
from optkit.recipe.keys import identity_of, sources

CUT, TRAIN, STATIC = "optkit.prune.stages.structured", "optkit.training.stages", "optkit.quantize.stages.static"
DIGITS, TEACH = "optkit.tasks.digits", "optkit.distill.stages"
SEE = """
import json, sys
from optkit.core.source_digest import code_of_module
print(json.dumps({name: code_of_module(name) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Gives the codes of the stages in a copy of the package, after edits (file, old text, new text) that are then taken back."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(optkit.__file__).parent, root / "optkit", ignore=shutil.ignore_patterns("__pycache__"))

    def codes(edits=()):
        before = {}
        for name, old, new in edits:
            file = root / "optkit" / name
            text = before[file] = file.read_text() if file.exists() else ""
            assert old in text
            file.write_text(text.replace(old, new, 1) if old else text + new)
        try:
            command = [sys.executable, "-c", SEE, CUT, TRAIN, STATIC, DIGITS, TEACH]
            environment = os.environ | {"PYTHONPATH": str(root)}
            return json.loads(subprocess.check_output(command, env=environment, cwd=root))
        finally:
            for file, text in before.items():
                file.write_text(text)

    return codes


@pytest.fixture(scope="module")
def as_it_is(copy):
    return copy()


CONSTANT = "\nLIMIT = 1\n"
EDITS = {
    "a comment and a docstring in what all trainings import": (
        [("core/progress.py", '"""', '# new\n"""New: ')],
        set(),
    ),
    "a comment in the file of a stage": ([("prune/stages/structured.py", "@dataclass", "# new\n\n@dataclass")], set()),
    "another engine, listed and passed on": (
        [
            ("engines/another.py", "", "class Another: ...\n"),
            ("engines/registry.py", "ENGINES", "from optkit.engines.another import Another\n\nENGINES"),
            (
                "engines/__init__.py",
                "__all__ = [",
                "from optkit.engines.another import Another\n\n__all__ = ['Another', ",
            ),
        ],
        set(),
    ),
    "what an engine does": ([("engines/openvino.py", "", CONSTANT)], set()),
    "the version of optkit": ([("core/version.py", 'BEFORE_TAGS = "', 'BEFORE_TAGS = "9.')], set()),
    "a constant in what trainings import": ([("training/schedules.py", "", CONSTANT)], {TRAIN, TEACH}),
    "a constant in the file of a stage": ([("prune/stages/structured.py", "NOTHING = 1e-9", "NOTHING = 1e-8")], {CUT}),
    "a constant in what ranks channels": ([("prune/cut/criteria.py", "", CONSTANT)], {CUT}),
    "how examples are augmented": ([("tasks/images.py", "< 0.5", "< 0.4")], {DIGITS}),
    "how a graph is quantized": ([("quantize/graph/observers.py", "", CONSTANT)], {STATIC}),
    "how teachers are compared": ([("distill/losses.py", "", CONSTANT)], {TEACH}),
    "where seeds come from": ([("core/seeds.py", "", CONSTANT)], {CUT, TRAIN, STATIC, DIGITS, TEACH}),
}


@pytest.mark.parametrize(("edits", "changed"), EDITS.values(), ids=EDITS)
def test_an_edit_changes_the_stages_that_import_what_it_changes(copy, as_it_is, edits, changed):
    after = copy(edits)
    assert {name for name in after if after[name] != as_it_is[name]} == changed


def test_no_stage_but_those_that_name_an_engine_imports_one():
    engines = {
        f"optkit.engines.{name}" for name in ("cuda", "eager", "inductor", "onnxruntime", "openvino", "registry")
    }
    for module in (
        CUT,
        TRAIN,
        STATIC,
        DIGITS,
        TEACH,
        "optkit.prune.stages.depth",
        "optkit.quantize.stages.weight_only",
    ):
        assert not engines & set(imported_sources(module, without=FIND_BY_NAME).files), module


def test_what_is_left_out_of_keys_is_there_to_be_left_out():
    everything = imported_sources("optkit.cli")
    assert set(everything.files) >= FIND_BY_NAME
    assert DECIDE_NOTHING.isdisjoint({"torch", "numpy", "torchao", "accelerate", "transformers", "torchvision"})


def test_a_class_counts_with_those_that_it_derives_from_and_those_within_it():
    from optkit.prune import GradualPruning
    from optkit.quantize import StaticQuantization

    assert set(sources(StaticQuantization())) == {
        STATIC,
        "optkit.quantize.stages.calibrated",
        "optkit.quantize.options",
    }
    of_gradual = {"optkit.prune.stages.gradual", "optkit.prune.stages.magnitude", TRAIN, "optkit.training.config"}
    assert set(sources(GradualPruning())) == of_gradual


def scored(threshold):
    def score(outputs, targets):
        return (outputs[:, 0] > threshold) == (targets > 0)

    return score


def test_what_stands_for_a_metric_is_the_same_in_every_process_and_changes_with_what_its_functions_hold():
    metrics = [Transformed(MeanScore(scored(x)), lambda *pair: pair) for x in (0.0, 0.0, 0.5)]
    first, same, other = (json.dumps(identity_of(metric)) for metric in metrics)
    assert " at 0x" not in first
    assert first == same
    assert first != other


def test_what_a_metric_keeps_while_it_works_does_not_stand_for_it():
    library = pytest.importorskip("torchmetrics")
    metric = TorchMetric(library.MeanSquaredError(), "mse", classes=False)
    before = identity_of(metric)
    output = torch.zeros(4, 2)
    metric.value(metric.observe(output, Batch((output,), output, torch.arange(4))))
    assert identity_of(metric) == before
