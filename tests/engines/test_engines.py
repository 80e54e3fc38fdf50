import json
import shutil

import pytest
import torch

import optkit
from optkit.core.errors import StageError, UserError
from optkit.core.variant import Variant
from optkit.engines import ENGINES, Eager, Inductor
from optkit.engines.batches import OtherBatches
from optkit.models import SmallCNN

SPEC = {"target": "optkit.models.SmallCNN", "params": {"num_classes": 4, "in_channels": 1, "widths": [4, 8]}}
VARIANT = Variant("v", None, frozenset({"float"}), SPEC)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallCNN(4, 1, [4, 8]).eval()


@pytest.fixture(params=ENGINES)
def engine(request):
    found = ENGINES[request.param]()
    if reason := found.unavailable():
        pytest.skip(reason)
    return found


@pytest.mark.slow
def test_a_session_gives_the_modules_answers(engine, model):
    x = torch.randn(3, 1, 8, 8)
    session = engine.compile(model, VARIANT, (torch.zeros(3, 1, 8, 8),))
    with torch.no_grad():
        torch.testing.assert_close(session(x), model(x), atol=1e-5, rtol=1e-4)
    assert session.facts()["int8_share"] == 0


@pytest.mark.slow
def test_a_saved_session_opens_again(engine, model, tmp_path):
    x = torch.randn(3, 1, 8, 8)
    session = engine.compile(model, VARIANT, (x,))
    session.save(tmp_path)
    again = optkit.load(tmp_path)
    assert type(again) is type(session)
    assert torch.equal(again(x), session(x))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_saved_session_is_whole_or_none(name, model, tmp_path):
    engine = ENGINES[name]()
    if reason := engine.unavailable():
        pytest.skip(reason)
    engine.compile(model, VARIANT, (torch.zeros(2, 1, 8, 8),)).save(tmp_path / "a")
    again = optkit.load(tmp_path / "a")
    with pytest.raises(UserError, match="directory: the session was opened from this folder"):
        again.save(tmp_path / "a")
    again.save(tmp_path / "b")
    (own,) = (path for path in (tmp_path / "b").iterdir() if path.suffix in (".onnx", ".bin"))
    own.write_bytes(b"no model")
    with pytest.raises(UserError, match="directory: the session is damaged: .*save it again"):
        optkit.load(tmp_path / "b")
    (tmp_path / "b" / "engine.json").unlink()  # it is written last, so that a save that was killed left none
    assert isinstance(optkit.load(tmp_path / "b"), SmallCNN)


def test_eager_does_not_pretend_to_run_int8():
    assert "fp32" in Eager().unsupported(frozenset({"int8"}))
    assert Inductor().unsupported(frozenset({"int8"})) is None
    assert "freezing" in Inductor(freezing=False).unsupported(frozenset({"int8"}))


class AmongOthers(torch.nn.Module):
    """Each answer depends on the batch."""

    def forward(self, x):
        return x.flatten(1) - x.flatten(1).mean(0)


def test_inductor_answers_other_batch_sizes_without_compiling_again(model):
    session = Inductor(cpp_wrapper=False).compile(model, VARIANT, (torch.zeros(4, 1, 8, 8),))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for size in (1, 3, 9):
            x = torch.randn(size, 1, 8, 8)
            torch.testing.assert_close(session(x), model(x), atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    with pytest.raises(StageError, match=r"compiled for inputs \[\[4, 1, 8, 8\]\], called with \[\[4, 1, 9, 8\]\]"):
        session(torch.zeros(4, 1, 9, 8))


def test_a_batch_is_not_computed_in_parts_where_examples_depend_on_each_other():
    x = torch.randn(4, 3)
    session = Inductor(cpp_wrapper=False).compile(AmongOthers(), VARIANT, (x,))
    torch.testing.assert_close(session(x), AmongOthers()(x))
    for size in (3, 8):
        with pytest.raises(StageError, match="depends on the batch as a whole.*compile the model for this batch size"):
            session(torch.randn(size, 3))


@pytest.mark.slow
def test_instances_of_one_class_do_not_share_compiled_code(model):
    # dynamo would give up after its recompile limit and run the next one in eager mode
    x = torch.randn(2, 1, 8, 8)
    counters = torch._dynamo.utils.counters
    counters.clear()
    sessions = []
    with torch._dynamo.config.patch(recompile_limit=2):
        for seed in range(4):
            torch.manual_seed(seed)
            module = SmallCNN(4, 1, [4, 8]).eval()
            sessions.append((module, Inductor(cpp_wrapper=False).compile(module, VARIANT, (x,))))
    assert counters["stats"]["unique_graphs"] == 4
    with torch.no_grad():
        for module, session in sessions:
            torch.testing.assert_close(session(x), module(x), atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 4


@pytest.mark.slow
def test_every_shape_of_one_graph_is_compiled_for_itself(model):
    of_any_batch = ({0: torch.export.Dim.AUTO},)
    graph = torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=of_any_batch, strict=False).module()
    with torch._dynamo.config.patch(recompile_limit=2):
        sessions = {
            n: Inductor(cpp_wrapper=False).compile(graph, VARIANT, (torch.zeros(n, 1, 8, 8),)) for n in (2, 3, 4)
        }
    for n, session in sessions.items():
        x = torch.randn(n, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(session(x), model(x), atol=1e-5, rtol=1e-4)


def test_inductor_says_when_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install g++" in Inductor().unavailable()


def test_what_inductor_cannot_compile_is_an_error_not_a_fallback():
    class Data(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(StageError, match="inductor cannot compile"):
        Inductor().compile(Data(), VARIANT, (torch.ones(2, 2),))


def test_load_gives_the_plain_module_of_a_variant(model, tmp_path):
    from optkit.core.artifact import save_artifact

    save_artifact(tmp_path, VARIANT, model, (torch.zeros(2, 1, 8, 8),))
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(optkit.load(tmp_path)(x), model(x))
    assert optkit.load(tmp_path, engine="eager", batch_size=5)(x).shape == (5, 4)
    with pytest.raises(UserError, match="did you mean 'inductor'"):
        optkit.load(tmp_path, engine="inducter")


def test_threads_are_as_before_where_nothing_was_compiled():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="broken"):
        optkit.engines.compile(Broken(), (torch.zeros(1, 2),), engine="inductor", threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("", "not a session"),
        ("[]", "not a session"),
        ("{}", "not a session"),
        ({"engine": None}, "not a session: engine is None"),
        ({"engine": "inducter"}, "did you mean 'inductor'"),
        ({"options": [1]}, r"not a session: options is \[1\]"),
        ({"options": {"command": "ls"}}, r"engine.json.command: unknown key; Eager takes no 'command'"),
        ({"engine": "inductor", "options": {"precision": "fp99"}}, r"engine.json.precision: no precision 'fp99'"),
        ({"facts": "x"}, "not a session: facts is 'x'"),
        ({"inputs": 3}, "not a session"),
        ({"inputs": [{"shape": [2, 1, 8, 8], "dtype": "load"}]}, "not a session: no dtype 'load'"),
        ({"inputs": [{"shape": "2", "dtype": "float32"}]}, "not a session"),
    ],
)
def test_a_damaged_session_is_a_clear_error(model, tmp_path, damage, message):
    Eager().compile(model, VARIANT, (torch.zeros(2, 1, 8, 8),)).save(tmp_path)
    path = tmp_path / "engine.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match=message):
        optkit.load(tmp_path)


def test_masked_logits_are_answered_at_other_batch_sizes():
    class Masked(torch.nn.Module):
        def forward(self, x):
            return x.masked_fill(x < 0, -torch.inf)

    sizes = OtherBatches(Masked(), (torch.ones(4, 3),), int8=False)
    x = torch.tensor([[1.0, -1.0, 2.0]]).repeat(6, 1)
    found = torch.tensor([[1.0, -torch.inf, 2.0]]).repeat(6, 1)
    assert sizes._same(found, Masked()(x))
    assert not sizes._same(found.abs(), Masked()(x))
    assert not sizes._same(found + torch.tensor([0.0, 0.0, 1.0]), Masked()(x))


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]
)
def test_a_session_says_the_precision_that_its_model_computes_in(model, dtype, said):
    x = torch.randn(3, 1, 8, 8, dtype=dtype)
    session = optkit.compile(model.to(dtype), x, engine="eager")
    assert (session(x).dtype, session.facts()["precision"]) == (dtype, said)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_without_kernels_for_bfloat16_say_what_to_do(model, name):
    if ENGINES[name]().unavailable():
        pytest.skip("not installed")
    with pytest.raises(StageError, match=r"bfloat16.*model\.float\(\)"):
        optkit.compile(model.to(torch.bfloat16), torch.randn(3, 1, 8, 8, dtype=torch.bfloat16), engine=name)
