import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.distill import Taps, tapping
from optkit.distill.objective import _scores
from optkit.distill.taps import matching
from tests.distill.texts import bert

TEXTS = {
    "num_classes": 2, "inputs": ["input_ids", "attention_mask"], "vocab_size": 50, "pad_token_id": 0, "max_length": 16,
}  # fmt: skip


def _inputs():
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return ids, mask


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_taps_see_what_the_model_says_are_its_hidden_states_and_attention_maps():
    model = bert(layers=3, **TEXTS)
    paths = matching(model, "model.bert.encoder.layer.?", "pairs")
    ids, mask = _inputs()
    model.model.set_attn_implementation("eager")
    reference = model.model(ids, mask, output_hidden_states=True, output_attentions=True)
    for implementation in ("eager", "sdpa"):
        model.model.set_attn_implementation(implementation)
        with torch.no_grad(), tapping(model, paths, attention=True) as taps:
            model(ids, mask)
            found = taps.pop()
        assert list(found) == paths
        for layer, path in enumerate(paths):
            torch.testing.assert_close(found[path].output[0], reference.hidden_states[layer + 1][0])
            (attention,) = found[path].attention
            assert (attention.query is None) == (implementation == "eager")
            scores, open_ = _scores(attention)
            chances = scores.masked_fill(~open_, -torch.inf).softmax(-1)
            torch.testing.assert_close(chances, reference.attentions[layer])
        assert taps.pop() == {}


@pytest.mark.parametrize("gradients", [True, False])
def test_multi_head_attention_of_torch_is_seen(gradients):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.set_grad_enabled(gradients), tapping(layer, ["self_attn"], attention=True) as taps:
        layer(x)
        (attention,) = taps.pop()["self_attn"].attention
    expected = layer.self_attn(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(_scores(attention)[0].softmax(-1), expected)
    assert torch.backends.mha.get_fastpath_enabled()


def test_nothing_stays_behind_even_when_training_fails():
    model = bert(**TEXTS)
    taps = Taps(model, ["model.bert.encoder.layer.0"], attention=True)

    def train():
        with taps, taps.watching():
            model(*_inputs())
            assert _hooks(model) == 2
            model(None, None)

    with pytest.raises(ValueError, match="input_ids"):
        train()
    assert _hooks(model) == 0
    assert taps.pop() == {}
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(UserError, match="pairs: no module of Sequential matches 'layer.*'"):
        matching(nn.Sequential(nn.Linear(2, 2)), "layer.*", "pairs")


def test_operators_outside_the_tapped_modules_do_not_count():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            F.softmax(x.view(1, 1, -1, 4), dim=-1)
            return self.inner(x)

    net = Net()
    with tapping(net, ["inner"], attention=True) as taps:
        net(torch.randn(3, 4))
        assert taps.pop()["inner"].attention == []
