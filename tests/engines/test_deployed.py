"""OpenVINO and ONNX Runtime: float and int8, saved and opened again without torch's module."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optkit
from optkit import engines
from optkit.core.errors import StageError, UserError
from optkit.engines import ENGINES, Inductor, OpenVINO, load
from optkit.models import ResNetCIFAR, SmallCNN
from optkit.quantize import quantize_static

DEPLOYED = ("onnxruntime", "openvino")


class Attention(nn.Module):
    """Tokens to logits through one self-attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 3)
        self.norm = nn.LayerNorm(32)

    def forward(self, tokens, mask):
        x = self.embed(tokens)
        q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        return self.head(self.norm(x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class Patches(nn.Module):
    """A convolution and linears of one width: their weights' zero points become one constant of the ONNX file."""

    def __init__(self):
        super().__init__()
        self.cut, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.cut(x).flatten(2).transpose(1, 2)
        x = x + self.narrow(nn.functional.gelu(self.wide(self.norm(x))))
        return self.head(x[:, 0])


class Fire(nn.Module):
    """Two convolutions side by side, put together for a third."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.small, self.large = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, padding=1)
        self.next, self.head = nn.Conv2d(32, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        x = self.squeeze(x).relu()
        x = torch.cat([self.small(x).relu(), self.large(x).relu()], 1)
        return self.head(self.next(x).relu().mean((2, 3)))


def images(count):
    return (torch.randn(count, 3, 16, 16),)


def texts(count):
    mask = torch.ones(count, 12, dtype=torch.long)
    mask[0, 7:] = 0
    return (torch.randint(0, 50, (count, 12)), mask)


MODELS = {
    "residual": (lambda: ResNetCIFAR(8, 10, 3), images),
    "pooled": (lambda: SmallCNN(10, 3, [16, 32]), images),
    "attention": (Attention, texts),
    "patches": (Patches, images),
    "fire": (Fire, images),
}


@pytest.fixture(scope="module", params=[(m, e) for m in MODELS for e in DEPLOYED], ids="-".join)
def case(request):
    """A model, inputs, its int8 graph for an engine, and that engine's session of it."""
    torch.manual_seed(0)
    name, engine = request.param
    build, inputs = MODELS[name]
    model = build().eval()
    found = quantize_static(model, inputs(2), [inputs(16) for _ in range(3)], target=engine)
    x = inputs(4)
    return engine, model, x, found, engines.compile(found.module, x, engine=engine)


def noise(actual, expected):
    return float((actual - expected).pow(2).sum() / expected.pow(2).sum())


@pytest.mark.slow
def test_float_answers_are_the_modules(case):
    engine, model, x, _, _ = case
    session = engines.compile(model, x, engine=engine)
    with torch.no_grad():
        torch.testing.assert_close(session(*x), model(*x), atol=1e-4, rtol=1e-3)
    assert session.facts()["int8_share"] == 0


def test_convolutions_and_linears_run_in_int8_kernels(case):
    engine, model, x, found, session = case
    least = 0.999
    if isinstance(model, Attention):
        # the product of scores and values stays in float; OpenVINO may fuse that of queries and keys with the softmax, too
        linears, product = 12 * 32 * 96 + 12 * 32 * 32 + 32 * 3, 4 * 12 * 12 * 8
        least = linears / (linears + 2 * product) - 1e-6 if engine == "openvino" else 0.9
    assert session.facts()["int8_share"] > least
    with torch.no_grad():
        assert noise(session(*x), model(*x)) < 0.02
        assert noise(session(*x), found.module(*x)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("engine", DEPLOYED)
@pytest.mark.parametrize("bias", [None, 0.0])
def test_int8_linears_without_a_bias_are_summed_up_right(engine, bias):
    torch.manual_seed(0)
    first, last = nn.Linear(64, 64, bias is not None), nn.Linear(64, 2, bias is not None)
    if bias is not None:
        nn.init.constant_(first.bias, bias), nn.init.constant_(last.bias, bias)
    # OpenVINO 2026.4 fuses such linears into one kernel if something stands before them
    model, x = nn.Sequential(nn.LayerNorm(64), first, nn.ReLU(), last).eval(), torch.randn(8, 64)
    int8 = quantize_static(model, (x,), [(torch.randn(8, 64),)], target=engine).module
    session = engines.compile(int8, (x,), engine=engine)
    torch.testing.assert_close(session(x), int8(x), atol=0.02, rtol=0)


@pytest.mark.slow
def test_a_saved_session_gives_the_same_answers_where_there_is_no_optkit(case, tmp_path):
    engine, _, x, _, session = case
    session.save(str(tmp_path))
    expected = session(*x)
    again = load(tmp_path)
    assert type(again) is type(session)
    assert torch.equal(again(*x), expected)
    again.save(tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy")(*x), expected)
    assert load(tmp_path, batch_size=7)(*(torch.cat([v, v])[:7] for v in x)).shape[0] == 7
    np.savez(tmp_path / "inputs.npz", *(v.numpy() for v in x))
    np.save(tmp_path / "expected.npy", expected.numpy())
    run = {
        "openvino": "import openvino as ov; y = ov.Core().compile_model('model.xml', 'CPU')(x)[0]",
        "onnxruntime": "import onnxruntime as ort; s = ort.InferenceSession('model.onnx')\n"
        "y = s.run(None, {i.name: v for i, v in zip(s.get_inputs(), x)})[0]",
    }[engine]
    code = (
        "import sys, numpy as np; x, expected = list(np.load('inputs.npz').values()), np.load('expected.npy')\n"
        f"{run}\n"
        "assert not any(n.startswith(('optkit', 'torch')) for n in sys.modules)\n"
        "assert abs(y - expected).max() <= 0.02 * abs(expected).max()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_batch_sizes_are_answered_as_the_graph_answers_them(case):
    _, model, x, found, session = case
    for size in (1, 3, 9):
        y = tuple(torch.cat([v, v, v])[:size] for v in x)
        with torch.no_grad():
            assert noise(session(*y), found.module(*y)) < 0.02
    if not isinstance(model, Attention):
        with pytest.raises(
            StageError, match=r"compiled for inputs \[\[4, 3, 16, 16\]\], called with \[\[4, 2, 16, 16\]\]"
        ):
            session(torch.zeros(4, 2, 16, 16))


def test_an_int8_graph_is_refused_by_the_engines_it_is_not_made_for(case):
    engine, _, x, found, _ = case
    for other in set(ENGINES) - {engine}:
        with pytest.raises(UserError, match=f"annotated for {engine}|in fp32|in floats|CUDA"):
            engines.compile(found.module, x, engine=other)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.01), ("fp16", 0.002)])
@pytest.mark.parametrize("kind", [OpenVINO, partial(Inductor, cpp_wrapper=False)])
def test_half_precision_is_close_to_the_module_and_is_not_fp32(kind, precision, most):
    engine = kind(precision=precision)
    if reason := engine.unavailable():
        pytest.skip(reason)
    torch.manual_seed(0)
    model, x = SmallCNN(10, 3, [16, 32]).eval(), images(4)
    session = engines.compile(model, x, engine=engine)
    assert session.facts()["precision"] == precision
    with torch.no_grad():
        assert 0 < noise(session(*x), model(*x)) < most


@pytest.mark.parametrize("kind", [OpenVINO, Inductor])
def test_an_unknown_precision_is_refused(kind):
    with pytest.raises(UserError, match="no precision 'fp8'.*known: bf16, fp16, fp32"):
        kind(precision="fp8")


def test_openvino_takes_the_precisions_that_its_plugin_has_kernels_for(monkeypatch):
    monkeypatch.setattr("optkit.engines.openvino._capabilities", lambda: ["FP32", "FP16"])
    found = {name: OpenVINO(precision=name).unavailable() for name in ("fp32", "bf16", "fp16")}
    assert found == {"fp32": None, "bf16": "this processor has no bf16 products", "fp16": None}


def test_what_cannot_be_written_as_onnx_names_the_operator():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.i1e(x).flatten(1)

    with pytest.raises(StageError, match="i1e"):
        engines.compile(Odd(), images(2), engine="onnxruntime")


def test_a_session_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    model, x = torch.nn.Linear(4, 2).eval(), torch.zeros(2, 4)
    with pytest.raises(UserError, match=r"a session of eager cannot be loaded again.*save_program"):
        engines.compile(model, (x,), engine="eager").save(tmp_path / "served")
    assert not (tmp_path / "served").exists()


SIGNALLED = """
import signal
import torch
from optkit.engines import OpenVINO
from optkit.engines.onnx_file import to_onnx
from optkit.core.compat.openvino import core

x = (torch.zeros(2, 4),)
model = core().read_model(to_onnx(torch.nn.Linear(4, 2).eval(), x)[0])
first, second = (OpenVINO().compile_model(model, x) for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *signalled: print("answered"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_process_that_freed_its_sessions_of_openvino_still_answers_signals():
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


def test_one_module_makes_the_core_of_openvino():
    package = Path(optkit.__file__).parent
    made = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if ".Core()" in path.read_text()}
    assert made == {"core/compat/openvino.py", "deploy/script.py"}  # the script is a process of its own


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, mask):
        return self.layer(x)


def test_an_input_that_the_model_does_not_read_is_named():
    model, inputs = Unread().eval(), (torch.randn(3, 4), torch.ones(3, 4))
    with pytest.raises(StageError, match="the model reads 1 of its 2 inputs"):
        engines.compile(model, inputs, engine="openvino")
    torch.testing.assert_close(engines.compile(model, inputs, engine="onnxruntime")(*inputs), model(*inputs))


def test_bf16_inputs_are_named():
    class Widened(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    model, x = Widened(4, 2).eval(), torch.randn(3, 4).bfloat16()
    with pytest.raises(StageError, match="input 0 is bfloat16"):
        engines.compile(model, (x,), engine="openvino")(x)


def test_an_offset_of_zeros_added_to_numbers_of_tokens_stays_whole():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(20, 16), nn.Linear(16, 4)
            self.register_buffer("offset", torch.zeros(5, dtype=torch.int64))

        def forward(self, tokens):
            return self.layer(self.words(tokens + self.offset).relu())

    model, tokens = Offset().eval(), torch.randint(0, 20, (8, 5))
    int8 = quantize_static(model, tokens, [tokens], target="openvino")
    with torch.no_grad():
        found, wanted = engines.compile(int8, tokens, engine="openvino")(tokens), model(tokens)
    assert (found - wanted).norm() < 0.05 * wanted.norm()
