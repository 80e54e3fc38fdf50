import shlex
import shutil

import pytest
import yaml

from optkit.core.errors import UserError
from optkit.recipe.compose import launch, to_recipe

RECIPE = """
defaults:
  - optkit
  - stage@stages.cut: prune/structured
  - stage@stages.cut.training: distill/logits
  - stage@stages.recover: distill/logits
  - stage@stages.teacher: distill/logits
  - _self_
  - override model: small_cnn
  - override task: imagefolder
name: test
chain: [cut, recover, teacher]
model: {checkpoint: first.pt}
task: {path: images, unlabelled: ~/more, image_size: 8}
out: ~/runs
store: ~/store
stages:
  teacher: {teacher: variant}
  cut:
    training: {teacher: variant}
  recover:
    teacher:
      - {_target_: optkit.models.SmallCNN, checkpoint: first.pt}
      - baseline
"""


@pytest.fixture
def folder(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copytree(image_folder / "train" / "cat", tmp_path / "home" / "more")
    (tmp_path / "first.pt").touch()
    (tmp_path / "variant").mkdir()
    monkeypatch.setattr("optkit.distill.stages.check_teacher", lambda spec: None)
    (tmp_path / "test.yaml").write_text(RECIPE)
    return tmp_path


def test_paths_do_not_depend_on_the_folder_a_run_is_started_in(folder):
    recipes = []
    launch("test.yaml", [], lambda cfg: recipes.append(to_recipe(cfg)))
    (recipe,) = recipes
    home = folder / "home"
    assert (recipe.out, recipe.store) == (f"{home}/runs", f"{home}/store")
    node = yaml.safe_load(recipe.text)
    assert node["task"]["path"] == str(folder / "images")
    assert node["task"]["unlabelled"] == str(home / "more")
    assert node["model"]["checkpoint"] == str(folder / "first.pt")
    assert node["stages"]["cut"]["training"]["teacher"] == str(folder / "variant")
    assert node["stages"]["teacher"]["teacher"] == str(folder / "variant")
    spec, baseline = node["stages"]["recover"]["teacher"]
    assert (spec["checkpoint"], baseline) == (str(folder / "first.pt"), "baseline")


@pytest.mark.parametrize(
    "path", ["/data/lr=0.1 run", "/it's/a=b", "/a$b=c d", "/a(b", "/x{", 'say "hi"=x', "a`b`=c", "/data/a=b\\c"]
)
def test_the_fix_for_an_override_works_when_typed(folder, path):
    with pytest.raises(UserError, match="not an override") as caught:
        launch("test.yaml", [f"name={path}"], lambda cfg: None)
    typed = str(caught.value).partition("for the shell: ")[2].removesuffix(")")
    found = []
    launch("test.yaml", shlex.split(typed), lambda cfg: found.append(cfg.name))
    assert found == [path]


def test_a_recipes_own_folder_of_hydras_is_refused(folder):
    (folder / "test.yaml").write_text(RECIPE + "hydra: {run: {dir: elsewhere}}\n")
    with pytest.raises(UserError, match=r"hydra\.run\.dir: optkit does not run"):
        launch("test.yaml", [], lambda cfg: None)


def test_a_multirun_is_in_the_same_folder(folder):
    launch("test.yaml", ["-m", "seed=1,2"], lambda cfg: None)
    assert not (folder / "~").exists()
    assert len(list((folder / "home" / "runs" / "multirun").glob("*/multirun.yaml"))) == 1


def test_what_is_no_engine_is_refused(folder):
    override = "+engines.mine={_target_: optkit.models.MLP, input_shape: [1, 8, 8], num_classes: 2, widths: [4]}"
    with pytest.raises(UserError) as caught:
        launch("test.yaml", [override], lambda cfg: to_recipe(cfg))
    assert str(caught.value) == ("engines.mine: MLP is no engine: it is no class that inherits optkit.engines.Engine")
