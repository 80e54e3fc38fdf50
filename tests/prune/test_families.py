"""Every family of transformers, small: half of the parameters go, exactly, and the plan replays."""

import pytest
import torch

from optkit.prune.structured import prune_structured
from scripts.prune_cases import transformer_cases
from tests.prune import zoo

NAMES = [
    "bert", "roberta", "distilbert", "electra", "mpnet", "deberta_v2", "albert", "vit", "deit", "swin", "convnextv2",
    "gpt2", "opt", "llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "t5_encoder",
]  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    torch.manual_seed(0)
    return transformer_cases()


@pytest.mark.parametrize("name", NAMES)
def test_family(cases, name):
    make, inputs = cases[name]
    torch.manual_seed(0)
    model = zoo.randomize(make())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # attention far from uniform, so that an error in a scale would show
    pruned = prune_structured(model, inputs, amount=0.5)
    assert 0.45 <= zoo.share(pruned) <= 0.55
    assert type(pruned.module) is type(model)
    zoo.assert_exact(model, pruned, inputs)
    zoo.assert_replays(make, pruned, inputs)
    outputs = pruned.module(**inputs)
    (outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state).sum().backward()
    assert all(p.grad is not None for n, p in pruned.module.named_parameters() if "pooler" not in n)


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_pruned_again_exported_and_compiled(cases, name):
    make, inputs = cases[name]
    inputs = inputs | ({"use_cache": False} if name == "llama" else {})
    once = prune_structured(zoo.randomize(make()), inputs, amount=0.3)
    twice = prune_structured(once.module, inputs, amount=0.3)
    zoo.assert_exact(once.module, twice, inputs)
    expected = zoo.run(twice.module, inputs)
    for made in (
        torch.export.export(twice.module, (), inputs, strict=False).module(),
        torch.compile(twice.module, backend="aot_eager"),
    ):
        for a, b in zip(zoo.run(made, inputs), expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
