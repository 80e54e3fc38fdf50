"""Saved variants name surgeries, not module paths."""

import inspect
import json

import pytest
import yaml

from optkit.core.artifact import open_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import locate
from optkit.core.surgeries import FORMAT_1, REPLAYED_BY, surgery_name
from optkit.core.trust import stage_class
from optkit.prune import StructuredPruning
from optkit.quantize import StaticQuantization
from optkit.recipe.compose import shipped

TARGETS = [yaml.safe_load(path.read_text()).get("_target_") for path in (shipped("conf") / "stage").rglob("*.yaml")]


@pytest.mark.parametrize("name", REPLAYED_BY)
def test_every_name_gives_the_class_that_saves_under_it(name):
    found = stage_class(name)
    assert surgery_name(found) == name
    assert isinstance(inspect.getattr_static(found, "replay"), staticmethod)


@pytest.mark.parametrize("target", sorted(set(filter(None, TARGETS))))
def test_every_bundled_stage_with_a_structure_of_its_own_has_a_name(target):
    stage = locate(target, "stage")
    adds = stage.adds if isinstance(stage.adds, frozenset) else {"int8"}  # of int8 stages, a property
    assert surgery_name(stage) in REPLAYED_BY or not adds & {"cut", "int8", "weight_only"}


def test_names_of_format_1_are_all_known():
    assert set(FORMAT_1.values()) <= set(REPLAYED_BY)


class Renamed(StructuredPruning):
    """Inherits how a cut is replayed."""


class Other(StaticQuantization):
    """Replays in a way of its own."""

    @staticmethod
    def replay(module, surgery, example):
        return module


def test_a_stage_that_inherits_its_replay_saves_under_its_base():
    assert surgery_name(Renamed) == "prune.structured/1"
    assert surgery_name(Other) == f"{__name__}.Other"


def test_a_name_of_a_later_version_says_what_to_do():
    with pytest.raises(UserError, match="knows no surgery 'prune.structured/2'.*the version of optkit that wrote it"):
        stage_class("prune.structured/2")


def test_a_format_of_a_later_version_says_what_to_do(tmp_path):
    (tmp_path / "variant.json").write_text(json.dumps({"format": 3}))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="format 3, this optkit reads 1 to 2.*the version of optkit that wrote it"):
        open_artifact(tmp_path)
