"""What models return, taken apart and put together again."""

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from optkit.core.errors import StageError, UserError
from optkit.core.structure import build, flatten, from_json, names, plain, tensors, to_json
from optkit.core.trust import output_class


@dataclass(frozen=True, slots=True)
class Boxes:
    """Of a kind whose constructor cannot be called with its fields."""

    corners: Tensor
    kind: str = field(default="xyxy", init=False)
    masks: Tensor | None = None


class Halving:
    """Its constructor changes what it is given."""

    def __init__(self, scores):
        self.scores = scores / 2


Pair = namedtuple("Pair", "first second")
A, B = torch.arange(3.0), torch.arange(4)
OUTPUTS = {
    "tensor": (A, ["logits"]),
    "tuple": ((A, B), ["0", "1"]),
    "list of dicts": ([{"boxes": A, "scores": B}, {}], ["0.boxes", "0.scores"]),
    "named tuple": (Pair(A, (B, 3)), ["first", "second.0"]),
    "ordered dict": (OrderedDict(out=A, aux=None), ["out"]),
    "dataclass": (Boxes(A), ["corners"]),
    "dataclass in a tuple": ((B, Boxes(A, B)), ["0", "1.corners", "1.masks"]),
    "class": (Halving(A), ["scores"]),
    "ModelOutput": (
        SequenceClassifierOutput(logits=A, hidden_states=(A, B)),
        ["logits", "hidden_states.0", "hidden_states.1"],
    ),
    "operator": (torch.return_types.max((A, B)), ["values", "indices"]),
    "constants": ({"boxes": A, "kind": "xyxy", "count": 3, "none": None, 7: [B]}, ["boxes", "7.0"]),
    "the same tensor twice": ((A, A), ["0", "1"]),
    "a key that reads like a path": ({"a": {"b": A}, "a.b": B}, ["a.b", "a.b_2"]),
    "shape": ({"x": A, "shape": A.shape}, ["x"]),
}


def contents(x):
    """Of any of these, as something that can be compared with ``==``."""
    if isinstance(x, Tensor):
        return x.dtype, x.tolist()
    if isinstance(x, dict):
        return type(x), [(k, contents(v)) for k, v in x.items()]
    if isinstance(x, (tuple, list)):
        return type(x), [contents(v) for v in x]
    if isinstance(x, Boxes):
        return type(x), contents((x.corners, x.kind, x.masks))
    return (type(x), contents(vars(x))) if hasattr(x, "__dict__") else x


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_was_taken_apart_is_put_together_again(name):
    output, expected = OUTPUTS[name]
    parts, structure = flatten(output)
    assert names(structure) == expected
    assert len(parts) == len(expected)
    again = build(structure, [x + 1 for x in parts])
    assert contents(build(structure, parts)) == contents(output)
    assert [x.tolist() for x in tensors(again)] == [(x + 1).tolist() for x in parts]


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_structure_goes_through_json(name):
    output, _ = OUTPUTS[name]
    parts, structure = flatten(output)
    text = json.dumps(to_json(structure))
    own = (f"{__name__}.Boxes", f"{__name__}.Halving", f"{__name__}.Pair", "torch.Size")
    again = build(from_json(json.loads(text), lambda n: output_class(n, own)), parts)
    assert contents(again) == contents(output)


def test_without_the_class_the_names_stay():
    parts, structure = flatten((Boxes(A, B), Pair(A, B)))
    boxes, pair = build(from_json(to_json(structure), lambda _: None), parts)
    assert boxes == SimpleNamespace(corners=A, kind="xyxy", masks=B)
    assert type(pair).__name__ == "Pair"
    assert pair._fields == ("first", "second")
    assert pair.second is B


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "optkit.models.SmallCNN", "torch.nn.Linear"])
def test_a_file_reaches_no_class_that_is_not_trusted(name):
    with pytest.raises(UserError):
        output_class(name)


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "tests.core.test_structure.flatten", "tests.core.test_structure.Absent"]
)
def test_what_holds_no_members_is_no_class_of_outputs(name):
    with pytest.raises(UserError, match="no class of outputs|has no 'Absent'"):
        output_class(name, (name,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dtype": "load"}, "no dtype 'load'"),
        ({"constant": [1]}, "no constant"),
        ({"kind": "set", "of": None, "names": [], "members": []}, "no kind 'set'"),
        ({"kind": "dict", "of": None, "names": ["a"], "members": []}, "1 names for 0 members"),
        ({"kind": "namedtuple", "of": "x.Y", "names": ["a b"], "members": [{"constant": 1}]}, "valid identifiers"),
    ],
)
def test_a_damaged_structure_is_an_error(data, message):
    with pytest.raises(ValueError, match=message):
        from_json(data, lambda _: None)


def test_what_cannot_be_taken_apart_is_named():
    with pytest.raises(UserError, match="cache.0: the model returns a set"):
        flatten({"cache": [{A}]})
    endless = {"x": A}
    endless["self"] = endless
    with pytest.raises(UserError, match="self: the model returns a dict"):
        flatten(endless)


def test_what_json_does_not_hold_is_named():
    with pytest.raises(StageError, match="torch.float32, a dtype, which a saved session cannot hold"):
        to_json(flatten({"x": A, "dtype": torch.float32})[1])


def test_plain_containers_hold_the_same():
    found = plain((Boxes(A), [Pair(A, B), SequenceClassifierOutput(logits=A)]))
    assert found == ({"corners": A, "kind": "xyxy", "masks": None}, [(A, B), {"logits": A}])
