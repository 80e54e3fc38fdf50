"""Packages of torch.export: opened where there is no optkit, for any batch size, and never half a file."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.core.errors import StageError, UserError
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
