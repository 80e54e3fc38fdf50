"""Every family of transformers, small: half of the parameters go, exactly, and the plan replays."""

import pytest
import torch

from optkit.prune.structured import prune_structured
from scripts.prune_coverage import transformer_cases
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
    assert type(pruned.model) is type(model)
    zoo.assert_exact(model, pruned, inputs)
    zoo.assert_replays(make, pruned, inputs)
    outputs = pruned.model(**inputs)
    (outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state).sum().backward()
    assert all(p.grad is not None for n, p in pruned.model.named_parameters() if "pooler" not in n)
