"""Whatever holds a model's outputs, they stay whole."""

import enum
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from optkit.core.errors import UserError
from optkit.core.nested import outputs_of, tensors_of
from optkit.prune.structured import prune_structured
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
Pair = namedtuple("Pair", "logits features")


@dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor
    note: str = "a text"


class Plain:
    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class Features(nn.Module):
    """Returns its hidden features beside the logits, in one way or another; a second layer is free."""

    def __init__(self, wrap):
        super().__init__()
        self.a, self.b, self.c, self.wrap = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4), wrap

    def forward(self, x):
        features = self.a(x).relu()
        return self.wrap(self.c(self.b(features).relu()), features)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits, features: (logits, Output(logits, features)),
        lambda logits, features: {"loss": None, "out": [Output(logits, features)], "name": "x", "number": 1.5},
        Output,
        Pair,
        Plain,
        lambda logits, features: (logits, (Plain(logits, {"deep": [features]}),)),
        lambda logits, features: BaseModelOutput(last_hidden_state=logits, hidden_states=(features,)),
        lambda logits, features: OrderedDict(
            a=logits, b=torch.distributions.Normal(features, 1.0, validate_args=False)
        ),
    ],
)
def test_outputs_stay_whole(wrap):
    model = Features(wrap).eval()
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert pruned.module.a.out_features == 32
    assert pruned.module.b.out_features < 32
    assert "model output" in pruned.plan.frozen["a.weight[0]"]
    dense, small = outputs_of(zoo.zeroed(model, pruned.plan)(*VECTOR)), outputs_of(pruned.module(*VECTOR))
    assert len(dense) == len(small) >= 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(dense, small, strict=True))


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda logits, features: (logits, {features}), "set"),
        (lambda logits, features: (logits, lambda: features), "function"),
        (lambda logits, features: (logits, iter([features])), "list_iterator"),
    ],
)
def test_what_cannot_be_searched_is_refused(wrap, kind):
    with pytest.raises(UserError, match=f"the model returns a {kind}, which may hold tensors out of sight"):
        prune_structured(Features(wrap).eval(), VECTOR, amount=0.3)


def test_a_dataclass_between_modules_is_no_output():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = Features(Output), nn.Linear(32, 5)

        def forward(self, x):
            return self.head(self.inner(x).features)

    model = zoo.randomize(Outer())
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert pruned.module.head.in_features < 32
    zoo.assert_exact(model, pruned, VECTOR)


def test_plain_values_and_circles():
    class Color(enum.Enum):
        RED = 1

    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    circle = Plain(a, None)
    circle.features = [circle, b]
    assert outputs_of({"x": circle, "s": {"a", 1}, "t": (None, Color.RED, torch.float32, a.shape, c)}) == [a, b, c]
    assert tensors_of([Plain(a, b), Output(b, c)]) == [b, c]
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    assert outputs_of((a, cache)) == [a]
