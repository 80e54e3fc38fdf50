"""What sessions return: what the module returns, on every engine, before and after int8, here and in a fresh process."""

import json
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import SequenceClassifierOutput

import optkit
from optkit import engines
from optkit.core.compat.openvino import core
from optkit.core.errors import StageError, UserError
from optkit.core.structure import names, tensors
from optkit.core.variant import Variant
from optkit.engines import Inductor
from optkit.engines.int8_share import int8_share
from optkit.engines.onnx_file import to_onnx
from optkit.quantize import quantize_dynamic, quantize_static


@dataclass
class Detections:
    boxes: Tensor
    scores: Tensor
    kind: str = "xyxy"
    masks: Tensor | None = None


Pair = namedtuple("Pair", "boxes scores")

RETURNS = {
    "tuple": lambda boxes, scores: (boxes, scores),
    "dict": lambda boxes, scores: {
        "scores": scores,
        "labels": scores.argmax(-1),
        "boxes": boxes,
        "kind": "xyxy",
        "n": 3,
    },
    "dataclass": Detections,
    "nested": lambda boxes, scores: (
        Detections(boxes, scores),
        [{"boxes": boxes, "none": None}, Pair(boxes, scores > 0)],
        SequenceClassifierOutput(logits=scores, hidden_states=(boxes, scores)),
    ),
}
NAMES = {
    "dict": ["scores", "labels", "boxes"],
    "nested": [
        "0.boxes",
        "0.scores",
        "1.0.boxes",
        "1.1.boxes",
        "1.1.scores",
        "2.logits",
        "2.hidden_states.0",
        "2.hidden_states.1",
    ],
}
# what the float model is compared with eager for, and int8 with its graph
CLOSE, ROUNDED = 1e-4, 0.05
CPU_ENGINES = {
    "inductor": partial(Inductor, cpp_wrapper=False),
    "onnxruntime": engines.ONNXRuntime,
    "openvino": engines.OpenVINO,
}


class Detector(nn.Module):
    """Boxes ``(N, 64, 4)`` and scores ``(N, 64, 5)`` of images ``(N, 3, 8, 8)``."""

    def __init__(self, returns="tuple"):
        super().__init__()
        self.returns = returns
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.backbone(x)
        boxes, scores = (y.flatten(2).transpose(1, 2) for y in (self.boxes(x), self.scores(x)))
        return RETURNS[self.returns](boxes, scores)


def detector(returns):
    torch.manual_seed(0)
    return Detector(returns).eval()


def images(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def assert_same(found, expected, most, path=""):
    """Same classes, names, dtypes and shapes; values differ by ``most`` at most, labels in that share of places."""
    assert type(found) is type(expected), path
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), path
        difference = (
            (found - expected).abs().max() if expected.is_floating_point() else (found != expected).float().mean()
        )
        assert difference <= most, path
    elif isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            assert_same(found[key], expected[key], most, f"{path}.{key}")
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected), path
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, most, f"{path}.{place}")
    elif hasattr(expected, "__dict__"):
        assert_same(vars(found), vars(expected), most, path)
    else:
        assert found == expected, path


@pytest.fixture(scope="module", params=[(r, e) for r in NAMES for e in ("onnxruntime", "openvino")], ids="-".join)
def filed(request):
    """A detector, its int8 graph, and sessions of both on an engine that reads a file."""
    returns, engine = request.param
    model, x = detector(returns), images(4)
    int8 = quantize_static(model, (x,), [(images(8),)], target=engine)
    return returns, model, int8, engines.compile(model, (x,), engine=engine), engines.compile(int8, (x,), engine=engine)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 1, 3, 9])
@torch.no_grad()
def test_a_session_of_a_file_returns_what_the_module_returns(filed, size):
    _, model, int8, session, session8 = filed
    x = images(size)
    assert_same(session(x), model(x), CLOSE)
    assert_same(int8.module(x), model(x), 0.2)
    assert_same(session8(x), int8.module(x), ROUNDED)
    assert session8.facts()["int8_share"] > 0.9


@pytest.mark.parametrize("returns", ["dict", "nested"])
@torch.no_grad()
def test_inductor_and_eager_return_what_the_module_returns(returns):
    model, x = detector(returns), images(4)
    int8 = quantize_static(model, (x,), [(images(8),)], target="inductor")
    sessions = [
        engines.compile(model, (x,), engine="eager"),
        engines.compile(model, (x,), engine=Inductor(cpp_wrapper=False)),
    ]
    session8 = engines.compile(int8, (x,), engine=Inductor(cpp_wrapper=False))
    for size in (4, 1, 3, 9):
        y = images(size)
        for session in sessions:
            assert_same(session(y), model(y), CLOSE)
        assert_same(session8(y), int8.module(y), ROUNDED)
    assert session8.facts()["int8_share"] > 0.9


def test_the_file_names_its_outputs_by_their_paths(filed, tmp_path):
    returns, _, _, _, session8 = filed
    session8.save(tmp_path)
    if session8.engine.name == "onnxruntime":
        import onnxruntime as ort

        session = ort.InferenceSession(tmp_path / "model.onnx")
        outputs = [(put.name, put.type) for put in session.get_outputs()]
        assert dict(outputs).get("labels", "tensor(int64)") == "tensor(int64)"
        found = [name for name, _ in outputs]
    else:
        found = [put.get_any_name() for put in core().read_model(tmp_path / "model.xml").outputs]
        if returns == "dict":
            assert [put.get_names() for put in core().read_model(tmp_path / "model.xml").outputs] == [
                {n} for n in NAMES[returns]
            ]
    assert len(found) == len(NAMES[returns])
    if session8.engine.name == "onnxruntime":
        assert found == NAMES[returns]


def test_a_classifier_gives_logits():
    import onnx

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    file, structure = to_onnx(model, (images(2),))
    assert names(structure) == ["logits"]
    assert [put.name for put in onnx.load_from_string(file).graph.output] == ["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_model_of_transformers_returns_its_output(engine):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    model = BertForSequenceClassification(BertConfig(**sizes, output_hidden_states=True)).eval()
    tokens = torch.randint(0, 50, (2, 7))
    mask = torch.ones_like(tokens)
    session = engines.compile(model, (tokens, mask), engine=engine)
    with torch.no_grad():
        for x in (tokens, tokens[:1, :5]):
            found, expected = session(x, torch.ones_like(x)), model(x, torch.ones_like(x))
            assert_same(found, expected, CLOSE)
            assert found.loss is None
            assert len(found.hidden_states) == 3


class Inputs(nn.Module):
    """Returns an input, under its own name, and a number of its shape."""

    def forward(self, x, logits):
        return {"x": x, "logits": x + logits, "sum": logits, "size": x.shape[0]}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_is_returned_as_it_came_has_a_name_of_its_own(engine):
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    session = engines.compile(Inputs(), (x, y), engine=engine)
    assert_same(session(x, y), Inputs()(x, y), 0)
    assert_same(session(x[:3], y[:3]), Inputs()(x[:3], y[:3]), 0)


def test_dtypes_are_the_modules():
    class Dtypes(nn.Module):
        def forward(self, x):
            return {
                "f64": x.double(),
                "f16": x.half(),
                "bf16": x.bfloat16(),
                "i64": x.long(),
                "u8": x.to(torch.uint8),
                "bool": x > 1,
            }

    x = torch.arange(12.0).reshape(3, 4)
    for engine in ("onnxruntime", "openvino"):
        assert_same(engines.compile(Dtypes(), (x,), engine=engine)(x), Dtypes()(x), 0)


RELOAD = """
import sys, torch
from optkit import load
x, parts = torch.load("io.pt")
found = load("session", trust=sys.argv[1:])(x)
print(type(found).__name__, *(vars(found) if hasattr(found, "__dict__") else ()))
from optkit.core.structure import tensors
for a, b in zip(tensors(found), parts, strict=True):
    torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trust", "printed"),
    [
        ((), "SimpleNamespace boxes scores kind masks"),
        (("tests.engines.test_outputs",), "Detections boxes scores kind masks"),
    ],
)
def test_a_saved_session_returns_the_same_in_a_fresh_process(trust, printed, tmp_path):
    model, x = detector("dataclass"), images(4)
    session = engines.compile(model, (x,), engine="onnxruntime")
    session.save(tmp_path / "session")
    torch.save((x, tensors(session(x))), tmp_path / "io.pt")
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *trust], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == printed.split()


def test_a_saved_session_opens_with_all_that_it_returns(filed, tmp_path):
    _, _, _, session, _ = filed
    session.save(tmp_path)
    x = images(4)
    again = optkit.load(tmp_path, trust=[__name__])
    assert_same(again(x), session(x), 0)
    again.save(tmp_path / "copy")
    assert_same(optkit.load(tmp_path / "copy", trust=[__name__])(x), session(x), 0)


def test_a_session_of_an_earlier_version_gives_its_one_tensor(tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), images(4)
    session = engines.compile(model, (x,), engine="onnxruntime")
    session.save(tmp_path)
    saved = json.loads((tmp_path / "engine.json").read_text())
    assert saved.pop("returns") == {"dtype": "float32"}
    (tmp_path / "engine.json").write_text(json.dumps(saved))
    assert torch.equal(optkit.load(tmp_path)(x), session(x))


@pytest.mark.slow
@pytest.mark.parametrize("engine", CPU_ENGINES)
@torch.no_grad()
def test_one_example_is_enough_for_any_batch(engine):
    model, x = detector("tuple"), images(1)
    int8 = quantize_static(model, (x,), [(images(8),)], target=engine)
    session = engines.compile(int8.module, (x,), engine=CPU_ENGINES[engine]())
    for size in (1, 5):
        assert_same(session(images(size)), int8.module(images(size)), ROUNDED)


def test_dynamic_int8_takes_one_example_and_returns_all():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 8), nn.Linear(16, 4)

        def forward(self, x):
            return {"first": self.first(x), "second": self.second(x)}

    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(1, 16)
    found = quantize_dynamic(model, (x,), target="onnxruntime")
    session = engines.compile(found, (x,), engine="onnxruntime")
    y = torch.randn(6, 16)
    # both linears read one quantized tensor
    assert session.facts()["int8_share"] == 1
    assert_same(session(y), found.module(y), 0.02)


@pytest.mark.parametrize("engine", ["eager", *CPU_ENGINES])
@torch.no_grad()
def test_the_last_smaller_batch_of_a_loader_works(engine):
    model = detector("tuple")
    loader = DataLoader(TensorDataset(images(10)), batch_size=4)
    session = engines.compile(model, (images(4),), engine=CPU_ENGINES.get(engine, engines.Eager)())
    found = [session(*batch) for batch in loader]
    assert [len(boxes) for boxes, _ in found] == [4, 4, 2]
    whole = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
    assert_same(whole, model(images(10)), CLOSE)


class OneSize(nn.Module):
    """Takes batches of 4 alone."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return x + self.places


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_batch_size_that_the_model_fixes_is_refused_in_one_line(engine):
    session = engines.compile(OneSize(), (torch.zeros(4, 3),), engine=CPU_ENGINES[engine]())
    with pytest.raises(StageError, match=r"compiled for inputs \[\[4, 3\]\], called with \[\[3, 3\]\]") as caught:
        session(torch.zeros(3, 3))
    assert "\n" not in str(caught.value)


def test_sessions_and_int8_modules_take_eval_and_the_cpu(filed):
    _, model, int8, session, _ = filed
    x = images(4)
    assert session.eval().train(False).to("cpu") is session
    with pytest.raises(UserError, match="compiled for inference"):
        session.train()
    for device in ("cuda", torch.float16):
        with pytest.raises(UserError, match="on the CPU"):
            session.to(device)
    module = int8.module.eval().train(False).to("cpu")
    assert module is int8.module
    assert not module.training
    assert_same(module(x), model(x), 0.2)


def test_results_of_techniques_are_compiled_and_saved_themselves(tmp_path):
    from optkit.prune import prune_structured

    x = images(4)
    pruned = prune_structured(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), (x,), amount=0.5)
    session = engines.compile(pruned, (x,), engine="onnxruntime")
    with torch.no_grad():
        assert_same(session(x), pruned.module(x), CLOSE)
    engines.save_program(pruned, (x,), tmp_path / "model.pt2")
    with pytest.raises(UserError, match="a str is no model"):
        engines.compile("model", (x,), engine="eager")


@dataclass
class Scored:
    boxes: Tensor
    pairs: list
    count: int = 3
    masks: Tensor | None = None


@pytest.mark.parametrize("int8", [False, True])
def test_a_package_of_torch_returns_dicts(int8, tmp_path, monkeypatch):
    monkeypatch.setitem(RETURNS, "scored", lambda boxes, scores: Scored(boxes, [Pair(boxes, scores)]))
    model, x = detector("scored"), images(4)
    saved = quantize_static(model, (x,), [(x,)], target="inductor") if int8 else model
    engines.save_program(saved, (x,), tmp_path / "model.pt2")
    opened = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        found, expected = opened(images(3)), (saved.module if int8 else model)(images(3))
    assert list(found) == ["boxes", "pairs", "count", "masks"]
    assert_same(found["pairs"], [tuple(expected.pairs[0])], CLOSE)
    assert (found["count"], found["masks"]) == (3, None)


def test_a_package_of_torch_says_that_it_holds_no_texts(tmp_path):
    with pytest.raises(StageError, match="cannot hold 'xyxy', which the model returns"):
        engines.save_program(detector("dataclass"), (images(4),), tmp_path / "model.pt2")


def test_what_cannot_be_returned_is_refused_where_it_enters():
    class Odd(nn.Module):
        def forward(self, x):
            return x, {"names": {"a", "b"}}

    for call in (partial(engines.compile, engine="onnxruntime"), partial(quantize_static, batches=[])):
        with pytest.raises(UserError, match=r"1.names: the model returns a set"):
            call(Odd(), (images(2),))


INT8 = Variant("v", None, frozenset({"int8", "int8:openvino"}), {})


@pytest.mark.parametrize(
    ("variant", "in_int8", "message"),
    [
        (INT8, 0, "openvino runs nothing of this int8 variant in int8 kernels; looked at: Convolution in f32"),
        (
            INT8,
            103,
            r"openvino: its int8 kernels do 1.03 times the MACs of the module \(103 of 100\).*Convolution in f32",
        ),
    ],
)
def test_int8_that_is_not_int8_is_refused(variant, in_int8, message):
    with pytest.raises(StageError, match=message):
        int8_share("openvino", variant, in_int8, 100, "Convolution in f32")


def test_shares_up_to_one_are_given():
    assert int8_share("openvino", INT8, 50, 100, "") == 0.5
    assert int8_share("openvino", INT8, 101, 100, "") == 1
    assert int8_share("openvino", Variant("v", None, frozenset({"float"}), {}), 0, 100, "") == 0


@pytest.mark.slow
def test_an_int8_graph_that_onnxruntime_runs_in_float_is_refused(monkeypatch):
    x = images(4)
    int8 = quantize_static(detector("tuple"), (x,), [(x,)], target="onnxruntime")
    monkeypatch.setattr("optkit.engines.onnxruntime.KERNELS", {"Absent"})
    with pytest.raises(StageError, match=r"onnxruntime runs nothing.*profile of a call \(.*QLinearConv"):
        engines.compile(int8, (x,), engine="onnxruntime")
