"""The pruning stages on a language task."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.task import SealedTask, rows_at_once
from optkit.models import language_model
from optkit.prune import DepthPruning, MagnitudePruning, StructuredPruning
from optkit.prune.stages.steps import examples_of
from optkit.tasks.language.protocol import blocks
from optkit.tasks.language.task import LanguageTask
from optkit.tasks.language.windows import TokenizedText, Windows

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 20, "max_position_embeddings": 32,
}  # fmt: skip


def numbers(length=8):
    """A language task of tokens without a text."""
    texts = {}
    for name, count in (("train", 12), ("validation", 6), ("test", 6)):
        tokens = np.random.default_rng(0).integers(0, 20, count * length).astype(np.int32)
        texts[name] = TokenizedText(tokens, np.ones_like(tokens), np.array([len(tokens)]))
    return Numbers(protocol=f"blocks-{length}", texts=texts)


@dataclass(kw_only=True)
class Numbers(LanguageTask):
    texts: dict = field(default_factory=dict)

    def read(self):
        raise AssertionError("there is no text")

    def load(self):
        return {name: Windows.of(text, blocks(self.length), 0, name) for name, text in self.texts.items()}

    def stream(self):
        return self.texts["train"].tokens


@pytest.fixture
def ctx(context):
    return replace(context(), task=SealedTask(numbers()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return language_model(config=LLAMA)


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "random", "magnitude"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_masks(model, ctx, criterion, pattern):
    stage = MagnitudePruning(None if pattern else 0.5, pattern=pattern, criterion=criterion, scope="local", examples=5)
    outcome = stage.apply(model, ctx)
    assert outcome.facts["criterion"] == criterion
    assert outcome.facts["weights_removed"] == outcome.facts["weights"] / 2
    weight = outcome.module.model.model.layers[1].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() / 2


@pytest.mark.parametrize("by", ["loss", "influence", "position", "deepest", "random"])
def test_blocks(model, ctx, by):
    outcome = DepthPruning(amount=None, keep=2, by=by, examples=3).apply(model, ctx)
    assert outcome.facts["depth"]["by"] == by
    assert outcome.module.model.config.num_hidden_layers == 2
    again = DepthPruning.replay(model, outcome.surgery, ctx.task.example(2))
    again.load_state_dict(outcome.module.state_dict())
    tokens = ctx.task.example(2)[0]
    torch.testing.assert_close(again(tokens), outcome.module(tokens))


@pytest.mark.parametrize("criterion", ["l2", "taylor", "fisher", "activation"])
def test_widths(model, ctx, criterion):
    stage = StructuredPruning(0.25, criterion=criterion, parts=["feed_forward"], uniform=True, batches=2)
    outcome = stage.apply(model, ctx)
    assert outcome.facts["cut"]["macs_after"] / outcome.facts["cut"]["macs_before"] == pytest.approx(0.75, abs=0.03)
    assert len({layer.mlp.up_proj.weight.shape for layer in outcome.module.model.model.layers}) == 1


def test_batches_hold_so_many_tokens_that_their_logits_fit_into_memory():
    assert rows_at_once(numbers(512), 64) == 4
    assert rows_at_once(numbers(4096), 64) == 1
    assert [len(batch) for batch in examples_of(numbers(1024), 5, 0)] == [2, 2, 1]


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="wanda gives each layer the same share"):
        MagnitudePruning(0.5, criterion="wanda", scope="global")
    with pytest.raises(UserError, match="criterion"):
        MagnitudePruning(0.5, criterion="wander")
    with pytest.raises(UserError, match="by"):
        DepthPruning(by="chance")
