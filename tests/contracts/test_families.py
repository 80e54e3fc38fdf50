"""Every stage on every family of transformers, small: by the conf files and overrides alone, and reloaded from disk."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import build
from optkit.core.stage import ChecksModel, Context
from optkit.core.surgeries import surgery_name
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.models import ModelSpec
from optkit.recipe.compose import shipped
from optkit.tasks import Digits, TextFiles

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = SIZES | {"patch_size": 4}
TEXTS = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": SIZES | {"embedding_size": 32},
    "mpnet": SIZES,
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}
IMAGES = {
    "vit": PATCHES,
    "deit": PATCHES,
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
    "convnextv2": {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "patch_size": 2},
}
SMALL = ["trainer.epochs=1", "trainer.batch_size=8"]
STAGES = {
    "train": SMALL,
    "prune/structured": ["amount=0.3", "batches=1"],
    "prune/magnitude": [],
    "prune/depth": ["amount=0.5", "by=position"],
    "distill/logits": SMALL,
    "distill/hidden": SMALL,
    "quantize/static": ["batches=1", "batch_size=4"],
    "quantize/dynamic": [],
    "quantize/weight_only": [],
}
# what looks at no layer is alike for all families: one of texts and one of images show it
OF_ANY_LAYERS = ("train", "prune/magnitude", "distill/logits")
CASES = [
    (family, name)
    for family in (*TEXTS, *IMAGES)
    for name in STAGES
    if name not in OF_ANY_LAYERS or family in ("bert", "vit")
]
REFUSED = {("convnextv2", "distill/hidden"): (r"losses\.attention: .* attention operations", ["~it.losses.attention"])}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": f"{'good' if n % 2 else 'bad'} text of {n} words", "label": n % 2} for n in range(40)]
    for split in ("train", "test"):
        Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    return {
        "texts": TextFiles(path=str(folder), vocab_size=512, max_length=16),
        "images": Digits(image_size=8, limit=64),
    }


@pytest.fixture(scope="module")
def family(request, tasks):
    """A family's task and the spec of its model."""
    kind = request.param
    task = tasks["texts" if kind in TEXTS else "images"]
    node = {
        "_target_": "optkit.models.huggingface",
        "config": {"model_type": kind} | (TEXTS | IMAGES)[kind],
        "num_classes": None,
        "checkpoint": None,
    }
    spec = ModelSpec.from_config(node, task.model_defaults())
    return kind, task, spec, spec.build(0).eval()


def _stage(name, overrides, without=()):
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        chosen = [f"+stage@it={name}", *(f"it.{o}" for o in overrides), *without]
        return build(OmegaConf.to_container(compose(overrides=chosen)["it"]), name)


@pytest.mark.parametrize(("family", "name"), CASES, indirect=["family"])
def test_a_stage_works_on_a_family_and_what_it_makes_reloads(family, name, tmp_path):
    kind, task, spec, built = family
    stage, model = _stage(name, STAGES[name]), copy.deepcopy(built)
    if (kind, name) in REFUSED:
        reason, without = REFUSED[kind, name]
        with pytest.raises(UserError, match=reason):
            stage.check(model, SealedTask(task))
        stage = _stage(name, STAGES[name], without)
    if isinstance(stage, ChecksModel):
        stage.check(model, SealedTask(task))
    context = Context(
        task=SealedTask(task),
        variant=Variant("id", None, frozenset({"float"}), {}),
        baseline=lambda: copy.deepcopy(built),
        build_model=lambda node: copy.deepcopy(built),
        seed=0,
        device=torch.device("cpu"),
        workdir=tmp_path,
        max_steps=1,
    )
    outcome = stage.apply(model, context)
    assert outcome.facts
    data = json.loads(json.dumps(outcome.surgery))
    surgeries = ({"by": surgery_name(type(stage)), "data": data},) if data else ()
    folder = tmp_path / "artifact"
    folder.mkdir()
    variant = Variant("v", None, frozenset(), json.loads(json.dumps(spec.skeleton(built))), surgeries)
    artifact = save_artifact(folder, variant, outcome.module, task.example(2))
    x = task.example(5)
    with torch.no_grad():
        answers = outcome.module(*x)
        assert torch.equal(artifact.module()(*x), answers)
        assert not torch.equal(answers, built(*x))
    assert answers.shape == (5, len(task.classes))
