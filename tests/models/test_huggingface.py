import json

import pytest
import torch
import transformers
import yaml

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import locate
from optkit.core.variant import Variant
from optkit.models import ModelSpec, huggingface
from optkit.models.spec import weights_digest
from optkit.recipe.compose import shipped

TEXTS = {
    "num_classes": 3, "inputs": ["input_ids", "attention_mask"], "vocab_size": 50, "pad_token_id": 0, "max_length": 16,
}  # fmt: skip
IMAGES = {"num_classes": 3, "inputs": ["pixel_values"], "in_channels": 1, "input_shape": [1, 16, 16]}
TEXT_MODELS, IMAGE_MODELS = ["bert_tiny", "distilbert_tiny"], ["vit_tiny", "deit_tiny", "swin_tiny", "convnext_tiny"]
SMALL = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def _spec(name):
    node = yaml.safe_load((shipped("conf") / "model" / f"{name}.yaml").read_text())
    return ModelSpec.from_config(node, TEXTS if name in TEXT_MODELS else IMAGES)


def _text_inputs(length=16):
    ids = torch.randint(1, 50, (2, length))
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return ids, mask


@pytest.mark.parametrize("name", [*TEXT_MODELS, *IMAGE_MODELS])
def test_bundled_models_give_logits_and_reload_from_their_config(name, tmp_path):
    spec = _spec(name)
    model = spec.build(0).eval()
    inputs = _text_inputs() if name in TEXT_MODELS else (torch.randn(2, 1, 16, 16),)
    with torch.no_grad():
        expected = model(*inputs)
        assert expected.shape == (2, 3)
        torch.testing.assert_close(expected, model.model(**dict(zip(_names(name), inputs, strict=True))).logits)
        variant = Variant("v", None, frozenset(), json.loads(json.dumps(spec.skeleton(model))))
        reloaded = save_artifact(tmp_path, variant, model, inputs).module()
        assert type(reloaded.model) is type(model.model)
        assert torch.equal(reloaded(*inputs), expected)


def _names(name):
    return ("input_ids", "attention_mask") if name in TEXT_MODELS else ("pixel_values",)


def test_padding_does_not_change_the_answers():
    model = huggingface(config=SMALL, **TEXTS)
    ids, mask = _text_inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :5], mask[1:, :5]))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{k: v for k, v in SMALL.items() if k != "model_type"}, vocab_size=50, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_local_folder_is_loaded_with_its_weights_in_fp32(folder):
    reference = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    model = huggingface(str(folder), **TEXTS)
    ids, mask = _text_inputs()
    with torch.no_grad():
        assert torch.equal(model(ids, mask), reference(input_ids=ids, attention_mask=mask).logits)


def test_a_head_of_another_width_is_new_and_follows_from_the_seed(folder):
    spec = ModelSpec("optkit.models.huggingface", {"pretrained": str(folder), **TEXTS, "num_classes": 5})
    one, same, other = spec.build(1), spec.build(1), spec.build(2)
    assert one.model.classifier.out_features == 5
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    assert torch.equal(one.model.bert.pooler.dense.weight, other.model.bert.pooler.dense.weight)


def test_what_rebuilds_a_pretrained_model_needs_no_folder(folder):
    model = huggingface(str(folder), **TEXTS)
    skeleton = ModelSpec("optkit.models.huggingface", {"pretrained": str(folder)}).skeleton(model)
    assert str(folder) not in json.dumps(skeleton)
    again = locate(skeleton["target"], "model")(**skeleton["params"])
    again.load_state_dict(model.state_dict())


def test_models_without_token_types_take_pairs_too():
    model = huggingface(
        config={"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}, **TEXTS
    )
    ids, mask = _text_inputs()
    with torch.no_grad():
        assert torch.equal(model(ids, mask, torch.zeros_like(ids)), model(ids, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither is given"),
        ({"pretrained": "some/id", "config": SMALL}, "both are given"),
        ({"pretrained": "some/id"}, "model.pretrained: cannot load 'some/id'.*model.pretrained=DIR"),
        ({"config": "some/id"}, "model.config: cannot load 'some/id'"),
        ({"config": {"model_type": "brt"}}, "no model_type 'brt'.*did you mean 'bert'"),
        ({"config": {"hidden_size": 8}}, "no model_type None"),
        ({"config": SMALL | {"hiden_size": 8}}, "model.config.hiden_size: .*did you mean 'hidden_size'"),
        ({"config": SMALL | {"vocab_size": 20}}, "the tokenizer has 50 tokens, the model knows 20"),
        ({"config": {"model_type": "vit"}}, "vit does not classify texts"),
        ({"config": SMALL, "inputs": ["pixel_values"]}, "bert does not classify images"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message) as caught:
        huggingface(**(TEXTS | options))
    assert "\n" not in str(caught.value)


def test_texts_longer_than_the_model_takes_are_refused(folder):
    with pytest.raises(UserError, match="takes 512 tokens at most.*task.max_length=512"):
        huggingface(str(folder), **TEXTS | {"max_length": 600})
    assert huggingface(config=SMALL, **TEXTS | {"max_length": 600}).model.config.max_position_embeddings == 600


def test_a_model_that_counts_places_from_its_padding_on_has_fewer(tmp_path):
    sizes = {"model_type": "roberta", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = huggingface(config=sizes | {"max_position_embeddings": 20}, **TEXTS | {"max_length": 20})
    ids = torch.randint(1, 50, (2, 20))
    with torch.no_grad():
        assert model(ids, torch.ones_like(ids)).shape == (2, 3)
    assert model.model.config.max_position_embeddings == 21
    model.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes 20 tokens at most.*task.max_length=20"):
        huggingface(str(tmp_path), **TEXTS | {"max_length": 21})
