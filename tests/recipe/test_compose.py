import shlex
import shutil

import pytest
import yaml

from optkit.core.errors import UserError
from optkit.launch import launch
from optkit.recipe.compose import to_recipe

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


def test_a_store_may_be_a_url_whose_password_is_in_no_file(folder):
    recipes = []
    launch("test.yaml", ["store=s3://me:secret@bucket/optkit"], lambda cfg: recipes.append(to_recipe(cfg)))
    (recipe,) = recipes
    assert recipe.store == "s3://me:secret@bucket/optkit"
    assert yaml.safe_load(recipe.text)["store"] == "s3://bucket/optkit"
    with pytest.raises(UserError, match="store: 5 is no folder and no URL"):
        launch("test.yaml", ["store=5"], to_recipe)


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
    assert len(list((folder / "home" / "runs" / "sweeps").glob("test-*/sweep.json"))) == 1


def test_what_is_no_engine_is_refused(folder):
    override = "+engines.mine={_target_: optkit.models.MLP, input_shape: [1, 8, 8], num_classes: 2, widths: [4]}"
    with pytest.raises(UserError) as caught:
        launch("test.yaml", [override], lambda cfg: to_recipe(cfg))
    assert str(caught.value) == ("engines.mine: MLP is no engine: it is no class that inherits optkit.engines.Engine")


def composed(recipe, *overrides):
    found = []
    launch(recipe, list(overrides), lambda cfg: found.append(to_recipe(cfg)))
    return found


def test_paths_of_a_recipe_file_are_relative_to_it_and_typed_ones_to_the_current_folder(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "second.pt").touch()
    shutil.copytree(folder / "images", elsewhere / "typed")
    (recipe,) = composed(str(folder / "test.yaml"))
    node = yaml.safe_load(recipe.text)
    assert node["task"]["path"] == str(folder / "images")
    assert node["model"]["checkpoint"] == str(folder / "first.pt")
    assert node["stages"]["teacher"]["teacher"] == str(folder / "variant")
    (recipe,) = composed(str(folder / "test.yaml"), "task.path=typed", "model.checkpoint=second.pt")
    node = yaml.safe_load(recipe.text)
    assert node["task"]["path"] == str(elsewhere / "typed")
    assert node["model"]["checkpoint"] == str(elsewhere / "second.pt")
    again = elsewhere / "recipe.yaml"
    again.write_text(recipe.text)
    monkeypatch.chdir("/")
    (repeated,) = composed(str(again))
    assert yaml.safe_load(repeated.text) == node


def test_a_model_of_another_class_has_no_fields_of_the_default_one(folder):
    (recipe,) = composed("quickstart", "model._target_=optkit.models.SmallCNN", "model.widths=[8,8,8]")
    assert recipe.model == {"_target_": "optkit.models.SmallCNN", "widths": [8, 8, 8]}
    with pytest.raises(UserError, match=r"model\.depht: unknown key; SmallCNN takes no 'depht'"):
        composed("quickstart", "model._target_=optkit.models.SmallCNN", "model.depht=8")


def test_another_optimizer_starts_from_its_own_options(folder):
    train = "stages.train.trainer"
    (recipe,) = composed("quickstart", f"{train}.optimizer=adamw", f"{train}.optimizer_options.eps=1e-7")
    assert recipe.stages["train"].trainer.optimizer_options == {"eps": 1e-7}
    assert recipe.stages["recover"].trainer.optimizer_options == {"momentum": 0.9, "nesterov": True}
    with pytest.raises(UserError, match="adamw takes no 'momentum'"):
        composed("quickstart", f"{train}.optimizer=adamw", f"{train}.optimizer_options.momentum=0.9")


def test_each_job_of_a_sweep_has_the_options_of_its_own_optimizer(folder):
    swept = composed("quickstart", "-m", "stages.train.trainer.optimizer=sgd,adamw")
    options = [recipe.stages["train"].trainer.optimizer_options for recipe in swept]
    assert options == [{"momentum": 0.9, "nesterov": True}, {}]


def test_a_list_of_losses_takes_the_place_of_the_default_ones(folder):
    (recipe,) = composed("quickstart", "stages.recover.losses=[dist,dkd]")
    assert [term.name for term in recipe.stages["recover"]._terms] == ["dist", "dkd"]
