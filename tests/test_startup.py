"""What starting optkit imports: a misspelt word is answered without torch, and a technique brings little besides."""

import contextlib
import inspect
import json
import os
import subprocess
import sys
from importlib import import_module, metadata

import pytest
import torch
from packaging.requirements import Requirement

from optkit.distill.terms import KINDS
from optkit.training import optimizers

HEAVY = {
    "PIL", "accelerate", "altair", "datasets", "evaluate", "onnx", "onnxruntime", "openvino", "pandas", "scipy", "sklearn",
    "torch", "torchao", "torchvision", "transformers",
}  # fmt: skip
RUN = ["run", "quickstart"]
MISSPELT = {
    "a recipe": (["run", "quickstrat"], "did you mean 'quickstart'"),
    "a key": ([*RUN, "sed=1"], "did you mean 'seed'"),
    "a key of a stage": ([*RUN, "stages.prune.amonut=0.5"], "did you mean 'amount'"),
    "a key of a stage, added": ([*RUN, "+stages.prune.amonut=0.5"], "did you mean 'amount'"),
    "a value of a stage": ([*RUN, "stages.prune.amount=1.5"], "stages.prune.amount: 1.5 is not a share"),
    "a name in a stage": ([*RUN, "stages.prune.criterion=l7"], "stages.prune.criterion: no criterion 'l7'"),
    "a value of a quantization": ([*RUN, "stages.quantize.observer=minmx"], "did you mean 'minmax'"),
    "a loss": ([*RUN, "+stages.recover.losses.kdd=1"], "did you mean 'kd'"),
    "losses without weights": ([*RUN, "stages.recover.losses=kd"], "'kd' is not a mapping of losses"),
    "an option of a loss": ([*RUN, "stages.recover.losses={kd: {temprature: 2}}"], "did you mean 'temperature'"),
    "an optimizer": ([*RUN, "stages.train.trainer.optimizer=sdg"], "did you mean 'sgd'"),
    "an option of an optimizer": ([*RUN, "+stages.train.trainer.optimizer_options.momentun=1"], "did you mean 'momentum'"),
    "a task": ([*RUN, "task=digitz"], "did you mean 'digits'"),
    "a value of a task": ([*RUN, "task.image_size=4"], "task.image_size: 4 is out of range"),
    "an engine": ([*RUN, "+engine@engines.x=opnvino"], "did you mean 'openvino'"),
    "a trainer": ([*RUN, "trainer@stages.train.trainer=adamww"], "did you mean 'adamw'"),
    "a model": ([*RUN, "model=resnet99"], "no config 'model/resnet99'"),
    "a value of measure": ([*RUN, "measure.batch_sizes=[0]"], "measure.batch_sizes: [0] are not batch sizes"),
    "a stage in the chain": ([*RUN, "chain=[train,prunee]"], "did you mean 'prune'"),
    "a control": ([*RUN, "controls=[x]"], "controls: no control 'x'"),
    "a baseline": ([*RUN, "baseline=tran"], "did you mean 'train'"),
    "a limit of a search": (["search", "quickstart", "--max-drop=-1"], "--max-drop: -1.0 is out of range"),
    "a key of a search": (["search", "quickstart", "sed=1"], "did you mean 'seed'"),
    "a command": (["rnu"], "No such command 'rnu'"),
    "a run to report": (["report", "NOTHERE"], "no ledger at NOTHERE"),
}  # fmt: skip
GIVEN = {"student", "teacher", "targets", "mask", "open_", "heads"}  # to a loss by the training, not by a recipe
ANSWERED = {"--help": "Usage", "recipes": "quickstart", "stages": "prune/structured"}
IF_INSTALLED = {"charset-normalizer", "colorama"}  # which numpy and tqdm import where they find them
# what importing every public name of a package brings besides torch, what torch itself needs, and numpy
BROUGHT = {
    "prune": {"scipy"},
    "quantize": {"torchao"},
    "distill": {"safetensors"},
    "engines": set(),
    "measure": set(),
}

COMMANDS = """
import contextlib, io, json, sys
from optkit.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, said = ["optkit", *arguments], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as error:
            answers.append([error.code, said.getvalue(), sorted(sys.modules)])
print(json.dumps(answers))
"""
IMPORTED = """
import json, os, sys
from importlib import import_module
import torch
before, found = set(sys.modules), {}
for name in sys.argv[1:]:
    reading, writing = os.pipe()
    if not os.fork():  # each package in a process that has imported torch alone
        package = import_module(name)
        alone = set(sys.modules)
        for member in package.__all__:
            getattr(package, member)
        with open(writing, "w") as file:
            json.dump([sorted(alone - before), sorted(set(sys.modules) - before)], file)
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        found[name] = json.load(file)
print(json.dumps(found))
"""


def run_python(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tops(modules):
    return {name.partition(".")[0] for name in modules}


def distributions(modules):
    by_package = metadata.packages_distributions()
    return {name.lower() for top in tops(modules) for name in by_package.get(top, ())} - {"optkit"}


def needed_by(distribution):
    """A distribution and all that it asks for, by name; extras left out."""
    found, todo = set(), [distribution]
    while todo:
        if (name := todo.pop().lower()) in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            asked = map(Requirement, metadata.requires(name) or [])
            todo += [one.name for one in asked if "extra" not in str(one.marker)]
    return found


@pytest.fixture(scope="module")
def answers():
    """Exit code, output and modules of each command, run one after the other in one process."""
    commands = [arguments for arguments, _ in MISSPELT.values()] + [[command] for command in ANSWERED]
    return dict(zip([*MISSPELT, *ANSWERED], run_python(COMMANDS, json.dumps(commands)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", MISSPELT)
def test_a_misspelt_word_is_answered_without_torch(answers, case):
    code, said, modules = answers[case]
    assert MISSPELT[case][1] in said
    assert code == 2
    assert not HEAVY & tops(modules)


@pytest.mark.parametrize("command", ANSWERED)
def test_what_lists_things_needs_no_torch(answers, command):
    code, said, modules = answers[command]
    assert ANSWERED[command] in said
    assert code == 0
    assert not HEAVY & tops(modules)


def test_importing_optkit_imports_nothing_else():
    code = "import json, sys; old = set(sys.modules); import optkit; print(json.dumps(list(set(sys.modules) - old)))"
    modules = run_python(code)
    assert not distributions(modules)


@pytest.fixture(scope="module")
def imported():
    """The modules that importing a package, and then its public names, brings besides torch, by package."""
    return run_python(IMPORTED, *(f"optkit.{package}" for package in BROUGHT))


@pytest.mark.slow
@pytest.mark.parametrize("package", BROUGHT)
def test_a_package_brings_torch_and_little_else(imported, package):
    alone, modules = imported[f"optkit.{package}"]
    assert distributions(modules) - needed_by("torch") <= {"numpy"} | IF_INSTALLED | BROUGHT[package]
    # a stage is not imported before it is asked for
    assert not [name for name in alone if ".stages." in name]


@pytest.mark.parametrize("package", [*BROUGHT, "deploy", "models", "tasks", "training"])
def test_every_public_name_is_there_and_listed(package):
    module = import_module(f"optkit.{package}")
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert not inspect.ismodule(getattr(module, name))
    with pytest.raises(AttributeError, match=f"module 'optkit.{package}' has no attribute 'misspelt'"):
        _ = module.misspelt


@pytest.mark.slow
def test_what_optkit_offers_is_there_whatever_was_imported_before():
    code = """
import importlib, inspect, json, pkgutil, sys
import optkit
for found in pkgutil.iter_modules(optkit.__path__):
    if found.name != "__main__":
        importlib.import_module(f"optkit.{found.name}")
print(json.dumps([name for name in optkit.__all__ if inspect.ismodule(getattr(optkit, name))]))
"""
    assert run_python(code) == []


def test_optimizers_are_read_from_source_as_they_are():
    real = {
        name: list(inspect.signature(kind).parameters)
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    assert {name: list(optimizers._arguments(name)) for name in optimizers._optimizers()} == real
    assert all(optimizers.optimizer_class(name.lower()) is getattr(torch.optim, name) for name in real)


@pytest.mark.parametrize("name", KINDS)
def test_the_table_of_losses_says_what_the_functions_take(name):
    kind = KINDS[name]
    taken = list(inspect.signature(kind.function).parameters)
    assert [argument for argument in taken if argument not in GIVEN] == list(kind.options)
    assert kind.needs_targets == ("targets" in taken)
