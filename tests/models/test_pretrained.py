import copy

import pytest
import torch
import transformers

from optkit.models import huggingface
from optkit.models.pretrained import expressed, save_pretrained
from optkit.prune import prune_depth, prune_structured

SMALL = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "patch_size": 4,
}  # fmt: skip


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return huggingface(config=SMALL, num_classes=3, vocab_size=50, pad_token_id=0, max_length=16).eval()


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return huggingface(
        config=VIT, inputs=["pixel_values"], num_classes=3, in_channels=1, input_shape=[1, 16, 16]
    ).eval()


IDS = (torch.randint(1, 50, (3, 16)), torch.ones(3, 16, dtype=torch.long))
IMAGES = (torch.randn(3, 1, 16, 16),)


def check(module, inputs, folder):
    """Loads it without optkit, and compares."""
    auto = (
        transformers.AutoModelForSequenceClassification
        if len(inputs) == 2
        else transformers.AutoModelForImageClassification
    )
    loaded = auto.from_pretrained(folder).eval()
    assert type(loaded) is type(module.model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs).logits, module(*inputs), atol=1e-5, rtol=1e-4)


def test_an_uncut_model_loads(bert, tmp_path):
    assert save_pretrained(bert, IDS, tmp_path / "hf") is None
    check(bert, IDS, tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "inputs", "protect"),
    [("bert", IDS, ("*embeddings*", "*attention*", "*pooler*")), ("vit", IMAGES, ("*embeddings*", "*attention*"))],
)
def test_a_uniform_cut_of_the_ffn_loads_with_a_smaller_intermediate_size(name, inputs, protect, tmp_path, request):
    model = request.getfixturevalue(name)
    cut = prune_structured(model, inputs, amount=0.3, budget="macs", scope="local", protect=protect).module
    before = copy.deepcopy(cut.state_dict())
    assert save_pretrained(cut, inputs, tmp_path / "hf") is None
    check(cut, inputs, tmp_path / "hf")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").intermediate_size < 64
    assert all(torch.equal(v, before[k]) for k, v in cut.state_dict().items())


@pytest.mark.parametrize(("name", "inputs"), [("bert", IDS), ("vit", IMAGES)])
def test_fewer_layers_load(name, inputs, tmp_path, request):
    cut = prune_depth(request.getfixturevalue(name), inputs, keep=1, by="position").module
    assert save_pretrained(cut, inputs, tmp_path / "hf") is None
    check(cut, inputs, tmp_path / "hf")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").num_hidden_layers == 1


def test_a_cut_that_differs_between_layers_says_which_tensor_no_config_has(bert, tmp_path):
    cut = prune_structured(bert, IDS, amount=0.1, protect=("*layer.0*",)).module
    reason = save_pretrained(cut, IDS, tmp_path / "hf")
    assert reason is not None
    assert "no config of BertForSequenceClassification has" in reason
    assert not (tmp_path / "hf").exists()


def test_the_right_shapes_with_other_answers_are_not_saved(bert, tmp_path):
    bert.model.bert.encoder.layer[0].attention.self.scaling = 3.0
    bert.model.bert.encoder.layer[0].attention.output.LayerNorm.eps = 10.0
    reason = save_pretrained(bert, IDS, tmp_path / "hf")
    assert reason is not None
    assert "answers otherwise" in reason
    assert not (tmp_path / "hf").exists()


def test_a_config_that_does_not_build_its_own_model_is_logged_with_the_reason(bert, caplog):
    bert.model.config.num_attention_heads = 5
    expressed(bert.model)
    assert (
        "BertForSequenceClassification is not built from its config: The hidden size (32) is not a multiple"
        in caplog.text
    )
