"""Low-rank adapters are trained alone, and merged afterwards."""

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.models import language_model
from optkit.training.lora import LoRA, adapters, read_lora

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 20, "tie_word_embeddings": True,
}  # fmt: skip


def test_adapters_alone_are_trained_and_merged():
    torch.manual_seed(0)
    model = language_model(config=LLAMA)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    tokens = torch.randint(0, 20, (2, 6))
    with adapters(model, LoRA(rank=2), seed=1):
        torch.testing.assert_close(model(tokens), language_model_of(before)(tokens))
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * 7
        assert all("lora_" in name for name in trained)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
        adapted = model(tokens).detach()
    assert [type(m) for m in model.modules()] == classes
    torch.testing.assert_close(model(tokens), adapted)
    assert all(p.requires_grad for p in model.parameters())
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}


def language_model_of(state):
    model = language_model(config=LLAMA)
    model.load_state_dict(state)
    return model


def test_only_the_named_layers_are_adapted():
    assert LoRA(layers=["*q_proj"]).check(language_model(config=LLAMA)) == ["model.model.layers.0.self_attn.q_proj"]


def test_a_layer_whose_path_ends_like_a_named_one_stays_as_it_is():
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "block": nn.ModuleDict({"fc": nn.Linear(4, 4)})})
    names = list(model.state_dict())
    with adapters(model, LoRA(rank=2, layers=["fc"]), seed=1):
        assert type(model["fc"]) is not nn.Linear
        assert type(model["block"]["fc"]) is nn.Linear
    assert [type(m) for m in (model["fc"], model["block"]["fc"])] == [nn.Linear] * 2
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": 4}, "rank"),
        ({"rank": 0}, "lora.rank"),
        ({"dropout": 1.0}, "lora.dropout"),
        ("16", "no fields of adapters"),
    ],
)
def test_bad_fields_are_named(given, message):
    with pytest.raises(UserError, match=message):
        read_lora(given)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UserError, match="Conv2d has no linear layer to adapt"):
        LoRA().check(nn.Conv2d(1, 1, 1))
