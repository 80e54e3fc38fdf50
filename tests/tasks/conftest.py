"""Generated scenes, which the tests of tasks on files share with the documents."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

SCENES = Path(__file__).parents[2] / "docs/examples/scenes.py"
SIZES = {"train": 24, "validation": 8, "test": 10}


@pytest.fixture(scope="session")
def scenes_module():
    spec = importlib.util.spec_from_file_location("scenes", SCENES)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scenes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _scenes(scenes_module, tmp_path_factory):
    return scenes_module.make_scenes(tmp_path_factory.mktemp("scenes"), SIZES, side=48)


@pytest.fixture
def scenes(_scenes, tmp_path):
    """A folder of scenes that a test may change."""
    return Path(shutil.copytree(_scenes, tmp_path / "scenes"))


@pytest.fixture
def shapes(scenes_module, tmp_path):
    """Class folders of one shape a picture, that a test may change."""
    return scenes_module.make_shapes(tmp_path / "shapes", SIZES, side=32)
