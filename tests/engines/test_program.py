"""Packages of torch.export: opened where there is no optkit, for any batch size, and never half a file."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.core.errors import StageError, UserError
from optkit.deploy import export
from optkit.quantize import quantize_static
from tests.engines.test_deployed import Attention, Patches, images

TOKENS = (torch.randint(0, 50, (4, 12)), torch.ones(4, 12, dtype=torch.int64))
CASES = {"images": (Patches, images(4)), "one image": (Patches, images(1)), "tokens": (Attention, TOKENS)}
# opens packages, one a folder; gives the error of each, if there is one
OPEN = """
import json, sys, torch
import torchao.quantization.pt2e
failed = {}
for folder in sys.argv[1:]:
    x, expected = torch.load(f"{folder}/io.pt")
    model = torch.export.load(f"{folder}/model.pt2").module()
    try:
        with torch.no_grad():
            torch.testing.assert_close(model(*x), expected)
            twice = model(*(torch.cat([v, v]) for v in x))
        torch.testing.assert_close(twice, torch.cat([expected, expected]), atol=1e-4, rtol=1e-3)
    except Exception as error:
        failed[folder] = str(error)
assert not any(name.startswith("optkit") for name in sys.modules)
print(json.dumps(failed))
"""


@pytest.mark.slow
def test_a_package_gives_the_same_answers_where_there_is_no_optkit(tmp_path):
    for name, (kind, x) in CASES.items():
        for int8 in (False, True):
            torch.manual_seed(0)
            model, folder = kind().eval(), tmp_path / f"{name}, {'int8' if int8 else 'float'}"
            if int8:
                batch = tuple(torch.cat([v, v]) for v in x)
                model = quantize_static(model, batch, [batch], target="inductor").module
            folder.mkdir()
            engines.save_program(model, x, str(folder / "model.pt2"))
            assert [path.name for path in folder.iterdir()] == ["model.pt2"]
            with torch.no_grad():
                torch.save((x, model(*x)), folder / "io.pt")
    command = [sys.executable, "-c", OPEN, *(path.name for path in tmp_path.iterdir())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


class Asks(nn.Module):
    """Its control flow depends on data."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    with pytest.raises(StageError, match="torch cannot export this model"):
        engines.save_program(Asks(), images(2), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_package(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"earlier")

    def full(program, part, extra_files):
        part.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="no space"):
        engines.save_program(nn.Linear(2, 2), (torch.ones(2, 2),), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_bytes() == b"earlier"


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"path: 'model.pt' does not end in .pt2 \(model.pt2\)"):
        engines.save_program(nn.Linear(2, 2), (torch.ones(2, 2),), tmp_path / "model.pt")


def in_train_mode():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))


@pytest.mark.parametrize("how", ["compile", "save_program", "export"])
def test_a_model_in_train_mode_is_refused(how, tmp_path):
    model, x = in_train_mode(), torch.randn(4, 3)
    does = {
        "compile": lambda: engines.compile(model, (x,), engine="eager"),
        "save_program": lambda: engines.save_program(model, (x,), tmp_path / "model.pt2"),
        "export": lambda: export(model, tmp_path / "out", engine="torch", example_inputs=(x,)),
    }
    with pytest.raises(UserError, match="the model is in train mode"):
        does[how]()
    assert not list(tmp_path.iterdir())
    model.eval()
    does[how]()


def test_one_tensor_is_the_only_input(tmp_path):
    model = nn.Conv2d(3, 4, 3).eval()
    engines.save_program(model, torch.randn(1, 3, 8, 8), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.randn(5, 3, 8, 8)).shape == (5, 4, 6, 6)


class Warm(nn.Module):
    """Takes a number beside its images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, temperature):
        return self.layer(x) / temperature


@pytest.mark.parametrize("rows", [1, 4])
def test_a_number_beside_a_batch_is_an_input_of_its_own(rows):
    model, x = Warm().eval(), torch.randn(rows, 3)
    program, _ = engines.export_program(model, (x, torch.tensor(2.0)))
    found = program.module()(torch.ones(7, 3), torch.tensor(4.0))
    torch.testing.assert_close(found, model(torch.ones(7, 3), torch.tensor(4.0)))
    int8 = quantize_static(model, (x, torch.tensor(2.0)), [(x, torch.tensor(2.0))])
    with torch.no_grad():
        torch.testing.assert_close(int8.module(x, torch.tensor(2.0)), model(x, torch.tensor(2.0)), rtol=0.1, atol=0.05)


def test_a_model_for_one_example_may_say_so_in_python():
    class One(nn.Module):
        def forward(self, x):
            (row,) = x
            return row * 2

    program, _ = engines.export_program(One().eval(), (torch.ones(1, 3),))
    assert program.module()(torch.ones(1, 3)).tolist() == [2, 2, 2]
