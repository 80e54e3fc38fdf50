"""Variants that earlier versions of optkit wrote still open, with the answers that they had then.

Each folder of tests/golden holds a variant and an example: inputs, and what the version that wrote it answered.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import optkit
from optkit.core.artifact import open_artifact

GOLDEN = Path(__file__).parent.parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/*/variant.json"))


def test_there_is_a_variant_of_every_kind():
    kinds = {folder.name for folder in FOLDERS}
    assert kinds >= {"dense", "cut", "depth", "masks", "iterative", "gradual", "pattern", "smaller_dense"}
    assert kinds >= {
        f"{how}_{engine}" for how in ("static", "qat") for engine in ("inductor", "onnxruntime", "openvino")
    }
    assert kinds >= {
        "dynamic_inductor",
        "dynamic_onnxruntime",
        "weight_only_8",
        "weight_only_4",
        "bert_static_inductor",
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_variant_of_an_earlier_version_answers_as_it_did(folder):
    example = load_file(folder / "example.safetensors")
    inputs = [example[f"input.{n}"] for n in range(len(example) - 1)]
    with torch.no_grad():
        found = optkit.load(folder)(*inputs)
    # instruction sets sum floats in other orders: an activation may be rounded to the next of 256 int8 values
    scale = example["output"].abs().max()
    tolerance = 1e-5 if {"int8", "weight_only"}.isdisjoint(_traits(folder)) else 0.02
    assert (found - example["output"]).abs().max() <= tolerance * scale


def _traits(folder):
    return open_artifact(folder).variant.traits
