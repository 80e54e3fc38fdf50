"""The private names of other libraries: what each is for, and what is said when it is gone."""

import ast
import importlib
import inspect
import logging
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn
from torch.fx import Graph, symbolic_trace
from torch.nn import functional as F

from optkit.core import compat
from optkit.core.compat import (
    hydra_loading,
    loggers,
    torch_compiler,
    torch_graphs,
    torch_modules,
    torch_operators,
    torch_tracing,
    torch_trees,
    torchao,
    versions,
)
from optkit.core.compat.torch_operators import private_aten
from optkit.core.errors import UserError
from optkit.core.structure import flatten

from .private_names import private_names

ROOT = Path(__file__).parents[2]
COMPAT = Path(compat.__file__).parent
SHOWN = set()  # the names that a test below says the purpose of


def _arguments(function, files, place=0):
    """The string that each call of a function gives, by syntax tree."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=called), args=given) if called == function:
                    yield from (x.value for x in given[place : place + 1] if isinstance(x, ast.Constant))


PATHS = set(_arguments("private", COMPAT.glob("*.py")))
ATTRIBUTES = set(_arguments("attribute", COMPAT.glob("*.py"), place=1))
OPERATORS = set(_arguments("private_aten", (ROOT / "optkit").rglob("*.py")))


def shows(*names):
    """Marks a test as the one that says what private names are for."""
    SHOWN.update(names)
    return lambda test: test


TREES = "torch.utils._pytree."


@shows(*(TREES + name for name in ("tree_leaves", "tree_map", "tree_map_only", "tree_flatten", "tree_unflatten")))
@shows(TREES + "TreeSpec")
def test_trees_are_taken_apart_and_put_together():
    tree = (1, ["a", {"b": 2}])
    assert torch_trees.tree_leaves(tree) == [1, "a", 2]
    assert torch_trees.tree_map(str, tree) == ("1", ["a", {"b": "2"}])
    assert torch_trees.tree_map_only(int, lambda n: n + 1, tree) == (2, ["a", {"b": 3}])
    leaves, spec = torch_trees.tree_flatten(tree)
    assert isinstance(spec, torch_trees.TreeSpec)
    assert torch_trees.tree_unflatten(leaves, spec) == tree


@shows(TREES + "register_pytree_node", TREES + "tree_structure")
def test_a_class_becomes_a_node_of_trees():
    class Pair:
        def __init__(self, *parts):
            self.parts = parts

    torch_trees.register_pytree_node(Pair, lambda pair: (list(pair.parts), None), lambda parts, _: Pair(*parts))
    spec = torch_trees.tree_structure((Pair(1, 2), 3))
    made = torch_trees.tree_unflatten([4, 5, 6], spec)
    assert (made[0].parts, made[1]) == ((4, 5), 6)


class _Seen(torch_tracing.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@shows("torch.utils._python_dispatch.TorchDispatchMode", "torch.utils._mode_utils.no_dispatch")
def test_a_mode_sees_the_operators_and_can_be_kept_from_them():
    x = torch.ones(2)
    with _Seen() as seen:
        x + x
        with torch_tracing.no_dispatch():
            x * x
    assert seen.names == ["aten::add.Tensor"]


@shows("torch._subclasses.fake_tensor.FakeTensor", "torch._subclasses.fake_tensor.FakeTensorMode")
def test_fake_tensors_have_the_shape_of_the_result():
    with torch_tracing.FakeTensorMode() as mode:
        out = torch.ones(2, 3) @ torch.ones(3, 4)
    assert isinstance(out, torch_tracing.FakeTensor)
    assert out.shape == (2, 4)
    made = torch_tracing.FakeTensor(mode, torch.empty(5, device="meta"), torch.device("cpu"))
    assert (made.shape, made.device.type, made.constant) == ((5,), "cpu", None)


@shows("torch._prims_common.suggest_memory_format")
def test_the_memory_format_of_a_tensor():
    x = torch.ones(2, 3, 4, 5)
    assert torch_tracing.suggest_memory_format(x) is torch.contiguous_format
    assert torch_tracing.suggest_memory_format(x.to(memory_format=torch.channels_last)) is torch.channels_last


@shows("torch._C.DispatchKey", "py_kernels", "_dispatch_cache")
def test_an_export_does_not_unroll_a_recurrent_layer(monkeypatch):
    operator = torch.ops.aten.gru.input

    def unrolled(*_):
        raise RuntimeError("unrolled")

    for key in list(operator.py_kernels):
        monkeypatch.setitem(operator.py_kernels, key, unrolled)
    before = dict(operator.py_kernels)
    assert before
    with torch_tracing.recurrence_by_shape():
        program = torch.export.export(nn.GRU(3, 4, batch_first=True), (torch.zeros(2, 5, 3),), strict=False)
        assert operator.py_kernels != before
    assert operator.py_kernels == before
    (call,) = [node for node in program.graph.nodes if node.target is operator]
    assert [value.shape for value in call.meta["val"]] == [(2, 5, 4), (1, 2, 4)]
    operator._dispatch_cache.clear()


class _Dict(nn.Module):
    def forward(self, x):
        return {"twice": 2 * x, "more": [x + 1]}


@shows("torch.fx.graph._PyTreeCodeGen", "_codegen")
def test_a_graph_returns_a_structure_or_its_tensors():
    x = torch.arange(3.0)
    structure = flatten(_Dict()(x))[1]
    graph = torch.export.export(_Dict(), (x,)).module()
    assert torch_graphs.is_exported(graph.graph)
    assert not torch_graphs.is_exported(symbolic_trace(_Dict()).graph)
    torch_graphs.return_tensors(graph.graph)
    graph.recompile()
    assert [t.tolist() for t in graph(x)] == [[0, 2, 4], [1, 2, 3]]
    graph = torch.export.export(_Tuple(), (x,)).module()
    torch_graphs.return_structure(graph, structure)
    assert {k: v for k, v in graph(x).items() if k == "twice"}["twice"].tolist() == [0, 2, 4]
    assert torch_graphs.graph_structure(graph.graph) == structure


class _Tuple(nn.Module):
    def forward(self, x):
        return 2 * x, x + 1


def test_the_guards_of_an_exported_module_have_a_name():
    graph = torch.export.export(_Tuple(), (torch.arange(3.0),)).module()
    assert torch_graphs.GUARDS in [node.target for node in graph.graph.nodes if node.op == "call_module"]


@shows("torch.nn.modules.batchnorm._BatchNorm", "torch.nn.modules.batchnorm._NormBase")
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm1d, (4, 3, 5)), (nn.BatchNorm3d, (4, 3, 2, 2, 2))])  # fmt: skip
def test_a_batch_norm_of_any_number_of_dimensions(kind, shape):
    x = torch.randn(shape)
    ours, theirs = torch_modules.BatchNorm(3), kind(3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert all(isinstance(norm, torch_modules.NormWithStatistics) for norm in (ours, theirs, nn.InstanceNorm2d(3)))
    assert not isinstance(nn.LayerNorm(3), torch_modules.NormWithStatistics)


@shows("_orig_mod")
def test_the_module_behind_a_compiled_one():
    module = nn.Linear(2, 2)
    assert torch_modules.compiled_from(torch.compile(module)) is module
    assert torch_modules.compiled_from(module) is None


@shows("_forward_hooks", "_forward_pre_hooks")
def test_hooks_are_noticed():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = nn.Linear(2, 2)
        assert not torch_modules.has_forward_hooks(module)
        getattr(module, register)(lambda *_: None)
        assert torch_modules.has_forward_hooks(module)


@shows("torch._inductor.config")
def test_options_of_inductor_hold_inside_only():
    from torch._inductor import config

    assert not config.freezing
    with torch_compiler.inductor_options({"freezing": True, "cpp_wrapper": True, "post_grad_custom_post_pass": None}):
        assert (config.freezing, config.cpp_wrapper) == (True, True)
    assert not config.freezing
    with pytest.raises(UserError, match=r"torch \S+ has no torch\._inductor\.config\.freezer; optkit supports torch"):
        torch_compiler.inductor_options({"freezer": True})


@shows("torch._inductor.custom_graph_pass.CustomGraphPass")
def test_a_pass_of_inductor_calls_a_function_and_is_in_no_cache():
    seen = []
    made = torch_compiler.graph_pass(seen.append)
    graph = Graph()
    made(graph)
    assert (seen, made.uuid()) == ([graph], None)


@shows("torch._dynamo.exc.TorchDynamoException")
def test_the_error_for_what_cannot_be_captured():
    with pytest.raises(torch_compiler.compiler_errors()):
        torch.compile(lambda x: x + 1 if x.sum() > 0 else x, backend="eager", fullgraph=True)(torch.ones(2))


def test_int8_kernels_are_known_in_inductors_graph():
    import functools

    from torch._inductor.fx_passes import quantization
    from torch._inductor.pattern_matcher import CallFunction, KeywordArg, register_lowering_pattern

    made = [getattr(quantization, f"_register_quantized_{kind}") for kind in ("conv_lowering", "linear_unary_lowering")]
    graph = Graph()
    for maker, kind in zip(made, ("conv", "linear"), strict=True):

        def kernel():
            return None

        kernel.__qualname__ = f"{maker.__qualname__}.<locals>.qkernel"
        node = SimpleNamespace(target=functools.partial(kernel))
        assert torch_compiler.int8_kernel(node) == kind
    onednn = torch.ops.onednn
    assert torch_compiler.int8_kernel(graph.call_function(onednn.qlinear_pointwise.default)) == "linear"
    assert torch_compiler.int8_kernel(graph.call_function(onednn.qconv_prepack.default)) is None
    assert torch_compiler.int8_kernel(graph.call_function(torch.ops.aten.linear.default)) is None

    pattern = CallFunction(torch.ops.aten.relu.default, KeywordArg("x"))
    lowered = register_lowering_pattern(pattern, pass_dict=_Patterns())(lambda match, x: x)
    assert torch_compiler.is_lowered(lowered)
    assert not torch_compiler.is_lowered(torch.ops.aten.relu.default)


class _Patterns(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


@shows("torch._ops.OpOverload", "_schema")
def test_what_an_operator_says_of_itself():
    add, add_ = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
    assert torch_operators.is_operator(add)
    assert not any(map(torch_operators.is_operator, (torch.add, torch.ops.aten.add, "add", len)))
    assert torch_operators.schema(add).name == "aten::add"
    assert [a.name for a in torch_operators.schema(add).arguments] == ["self", "other", "alpha"]
    assert [torch_operators.schema(op).is_mutable for op in (add, add_)] == [False, True]
    assert torch_operators.schema(torch.ops.aten.view.default).returns[0].alias_info is not None
    assert torch_operators.schema(add).returns[0].alias_info is None


@shows("torch.ao.quantization.fx._decomposed.quantized_decomposed_lib")
def test_the_operators_of_int8_graphs_are_registered():
    torch_operators.register_int8_operators()
    quantized = torch.ops.quantized_decomposed.quantize_per_tensor.default(torch.ones(2), 0.5, 3, 0, 255, torch.uint8)
    assert quantized.tolist() == [5, 5]


@shows("_softmax.default")
def test_softmax_in_exported_graphs():
    x = torch.randn(2, 3)
    assert torch.equal(private_aten("_softmax.default")(x, -1, False), x.softmax(-1))


@shows("_unsafe_view.default")
def test_a_view_that_may_be_a_copy():
    x = torch.randn(2, 3)
    assert torch.equal(private_aten("_unsafe_view.default")(x, [6]), x.flatten())


@shows("_assert_tensor_metadata.default")
def test_the_check_of_a_tensor_in_exported_graphs():
    check = private_aten("_assert_tensor_metadata.default")
    check(torch.ones(2), dtype=torch.float32)
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        check(torch.ones(2), dtype=torch.int32)


@shows("_weight_norm.default")
def test_the_weight_of_a_weight_norm():
    v, g = torch.randn(4, 3), torch.rand(4, 1)
    torch.testing.assert_close(private_aten("_weight_norm.default")(v, g, 0), g * v / v.norm(dim=1, keepdim=True))


@shows("_weight_int8pack_mm.default", "_weight_int8pack_mm")
def test_products_with_int8_weights():
    x = torch.randn(5, 32).bfloat16()
    weight, scale = torch.randint(-128, 128, (16, 32), dtype=torch.int8), torch.rand(16).bfloat16()
    expected = x.float() @ (weight.float() * scale.float()[:, None]).T
    torch.testing.assert_close(private_aten("_weight_int8pack_mm.default")(x, weight, scale).float(), expected, rtol=0.02, atol=1)  # fmt: skip
    assert private_aten("_weight_int8pack_mm").default is private_aten("_weight_int8pack_mm.default")


@shows("_weight_int4pack_mm_for_cpu.default", "_weight_int4pack_mm_for_cpu")
@shows("_convert_weight_to_int4pack_for_cpu.default")
def test_products_with_int4_weights():
    x, digits = torch.randn(5, 64).bfloat16(), torch.randint(0, 16, (32, 64), dtype=torch.int32)
    scale, offset = torch.rand(2, 32).bfloat16(), torch.randn(2, 32).bfloat16()
    packed = private_aten("_convert_weight_to_int4pack_for_cpu.default")(digits, 1)
    both = torch.stack([scale, offset], -1)
    out = private_aten("_weight_int4pack_mm_for_cpu.default")(x, packed, 32, both).float()
    each = [t.float().T.repeat_interleave(32, 1) for t in (scale, offset)]
    torch.testing.assert_close(out, x.float() @ ((digits - 8) * each[0] + each[1]).T, rtol=0.02, atol=1)
    assert private_aten("_weight_int4pack_mm_for_cpu").default is private_aten("_weight_int4pack_mm_for_cpu.default")


@shows("_scaled_dot_product_flash_attention_for_cpu")
def test_the_attention_kernel_of_the_processor():
    q = torch.randn(1, 2, 8, 4)
    with _Seen() as seen:
        F.scaled_dot_product_attention(q, q, q)
    kernel = private_aten("_scaled_dot_product_flash_attention_for_cpu")
    assert kernel.default.name() in seen.names


@shows("_fake_quantize_learnable_per_tensor_affine.default", "_fake_quantize_learnable_per_channel_affine.default")
def test_fake_quantization_gives_its_scale_a_gradient():
    x = torch.tensor([[0.26, 9.0], [0.4, -0.1]])
    for name, shape in (("tensor", (1,)), ("channel", (2,))):
        scale, zero = torch.full(shape, 0.5, requires_grad=True), torch.zeros(shape)
        fake = private_aten(f"_fake_quantize_learnable_per_{name}_affine.default")
        out = fake(x, scale, zero, *(() if name == "tensor" else (0,)), -4, 4, 1.0)
        assert out.tolist() == [[0.5, 2.0], [0.5, 0.0]]
        out[0, 1].backward()
        assert scale.grad[0] == 4  # where it saturates, the gradient is the largest integer


@shows("_cslt_compress.default", "_cslt_sparse_mm.default")
def test_the_kernels_for_2_4_weights_take_what_the_engine_gives_them():
    arguments = [a.name for a in torch_operators.schema(private_aten("_cslt_sparse_mm.default")).arguments]
    assert arguments[:3] == ["compressed_A", "dense_B", "bias"]
    assert "transpose_result" in arguments
    assert len(torch_operators.schema(private_aten("_cslt_compress.default")).arguments) == 1


def test_an_annotation_of_torchao_is_marked():
    node = Graph().placeholder("x")
    found = torchao.annotation({node: "spec"})
    assert (found.input_qspec_map, found._annotated) == ({node: "spec"}, True)


def test_an_annotation_without_the_mark_is_a_clear_error(monkeypatch):
    from torchao.quantization.pt2e import quantizer

    monkeypatch.setattr(quantizer, "QuantizationAnnotation", lambda input_qspec_map: None)
    with pytest.raises(UserError, match=r"torchao \S+ has no .*QuantizationAnnotation\(_annotated\).*supports torchao"):
        torchao.annotation({})


@shows("_attn_implementation")
def test_a_config_takes_over_the_attention_of_another():
    from transformers import BertConfig, BertModel

    from optkit.core.compat.transformers import copy_attention

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    source, to = BertConfig(**size, attn_implementation="eager"), BertConfig(**size)
    copy_attention(source, to)
    assert BertModel(to).config._attn_implementation == "eager"


@shows("_fingerprint")
def test_a_table_has_a_fingerprint_that_follows_its_rows():
    from datasets import Dataset

    from optkit.core.compat.datasets import fingerprint

    rows = Dataset.from_dict({"x": [1, 2, 3]})
    assert fingerprint(rows) == fingerprint(Dataset.from_dict({"x": [1, 2, 3]}))
    assert len({fingerprint(rows), fingerprint(rows.select([0])), fingerprint(Dataset.from_dict({"x": [1]}))}) == 3


@shows("openvino._offline_transformations.paged_attention_transformation")
def test_attention_with_a_state_becomes_paged_attention():
    ov = pytest.importorskip("openvino")
    from optkit.core.compat.openvino import to_paged_attention

    with pytest.raises(RuntimeError, match="supposed to be stateful"):
        to_paged_attention(ov.Model([], [], "no attention"))


def test_ray_takes_a_node_of_ones_own():
    ray = pytest.importorskip("ray")
    from optkit.core.compat.ray import own_node

    source = inspect.getsource(ray.init)
    assert all(f'"{name}"' in source for name in own_node("folder"))


ORT = "onnxruntime.capi.onnxruntime_pybind11_state."


@shows(*(ORT + kind for kind in ("Fail", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "InvalidArgument")))
@shows(ORT + "RuntimeException")
def test_what_onnxruntime_raises_for_a_file_and_for_inputs():
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from optkit.core.compat.onnxruntime import onnxruntime_errors

    def session(operator, domain="", rank=1):
        put = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2] * rank) for name in "xy"]
        graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", put[:1], put[1:])
        opsets = [helper.make_opsetid("", 18)]
        return ort.InferenceSession(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())

    with pytest.raises(onnxruntime_errors()):
        session("NoSuchOperator")
    with pytest.raises(onnxruntime_errors()):
        session("Relu").run(None, {"x": np.zeros((2, 2, 2), np.float32)})
    with pytest.raises(onnxruntime_errors(), match="INVALID_PROTOBUF"):
        ort.InferenceSession(b"no model")


def test_the_noisy_loggers_are_those_of_modules():
    for name in loggers.NOISY:
        module = importlib.import_module(name)
        held = [value.name for value in vars(module).values() if isinstance(value, logging.Logger)]
        assert held == [name]


@shows("hydra._internal.hydra", "hydra._internal.config_loader_impl.ConfigLoaderImpl")
def test_hydra_composes_by_the_loader_of_its_main_module():
    assert hydra_loading.main.ConfigLoaderImpl is hydra_loading.ConfigLoaderImpl
    assert callable(hydra_loading.ConfigLoaderImpl._compose_config_from_defaults_list)


def test_every_private_name_has_a_test_that_says_what_it_is_for():
    assert SHOWN == PATHS | ATTRIBUTES | OPERATORS


# a name that is gone


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_name_that_is_gone_is_named_with_the_versions(path, monkeypatch):
    module, _, name = path.rpartition(".")
    pytest.importorskip(path.partition(".")[0])
    package = versions.DISTRIBUTIONS.get(path.partition(".")[0], path.partition(".")[0])
    versions.private(path)
    monkeypatch.delattr(importlib.import_module(module), name)
    monkeypatch.setitem(sys.modules, path, None)
    here = versions.version_of(package)
    with pytest.raises(UserError) as caught:
        versions.private(path)
    assert caught.value.message == f"{package} {here} has no {path}; optkit supports {package}{_bounds(package)}"
    assert caught.value.fix == f'pip install "{package}{_bounds(package)}"'


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_an_operator_that_is_gone_is_named_with_the_versions(name, monkeypatch):
    first = name.partition(".")[0]

    class Without:
        def __getattr__(self, asked):
            if asked == first:
                raise AttributeError(asked)
            return getattr(torch.ops.aten, asked)

    monkeypatch.setattr(torch_operators.torch, "ops", type("ops", (), {"aten": Without()}))
    with pytest.raises(UserError, match=rf"torch \S+ has no torch\.ops\.aten\.{name}; optkit supports torch"):
        private_aten(name)


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_an_attribute_that_is_gone_is_named_with_the_versions(name):
    with pytest.raises(UserError, match=rf"torch \S+ has no object\.{name}; optkit supports torch"):
        versions.attribute(object(), name)


def test_a_package_that_is_not_installed_is_said():
    with pytest.raises(UserError, match=r'no_such_package is not installed \(pip install "no_such_package"\)'):
        versions.private("no_such_package.inner._name")


def _bounds(package):
    return versions.supported(package)


def test_compat_imports_no_library_before_it_is_asked():
    code = (
        "import sys, optkit.core.compat.versions, optkit.core.compat.loggers, optkit.core.compat.torchao\n"
        "import optkit.core.compat.transformers, optkit.core.compat.datasets, optkit.core.compat.onnxruntime\n"
        "print({'torch', 'torchao', 'transformers', 'datasets', 'onnxruntime', 'accelerate'} & set(sys.modules))\n"
        "import optkit.core.compat.torch_compiler, optkit.core.compat.torch_graphs\n"
        "print({'torch._inductor.compile_fx', 'torch._dynamo.convert_frame', 'torchao'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"]


# no other module of optkit touches a private name


def test_no_other_module_touches_a_private_name():
    files = set((ROOT / "optkit").rglob("*.py")) - set(COMPAT.glob("*.py"))
    assert len(files) > 200
    found = {str(file.relative_to(ROOT)): private_names(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import torch._dynamo",
        "from torch._inductor import config",
        "from torch.utils import _pytree as pytree",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "from torch.fx.experimental import symbolic_shapes",
        "import torch.ao.quantization",
        "def f(x): return x._schema",
        "x.target._schema.name",
        "torch.ops.aten._softmax.default",
        "import torch\ndef _cslt(): ...\ntorch._cslt()",
        "getattr(config, '_attn_implementation', None)",
        "setattr(config, '_attn_implementation', 'eager')",
        "vars(module)['_modules']",
        "module.__dict__['_buffers']",
        "find('torch._subclasses.FakeTensor')",
        "Annotation(specs, _annotated=True)",
        "class A(nn.Module):\n def _load_from_state_dict(self, *args): super()._load_from_state_dict(*args)",
        "class A(nn.Module):\n def f(self): return self._modules",
    ],
)
def test_private_names_are_found(code):
    assert private_names(code)


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations",
        "from optkit.core import _own",
        "import torch\ntorch.nn.Linear.__init__",
        "class A:\n def __init__(self): self._x = 1\n def of(self, other): return other._x + self._inherited",
        "class A:\n def _cast(self): ...\ndef f(a): a._cast()",
        "_SIZES = (1, 2)\nmodule._SIZES",
        "point._replace(x=1)._asdict()",
        "getattr(kind, '_fields', ())",
        "import os\nos._exit(1)",
        '"""See torch._dynamo.config, which is private."""',
        "name = '_softmax'",
        "kernel = 'aten._weight_int8pack_mm'",
        "row['_ci']",
        "f'{name}_ci'",
        "for _, x in pairs: x.name",
    ],
)
def test_what_is_not_private_is_not_found(code):
    assert private_names(code) == []


# the versions that are supported


def _declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name, extra in project["optional-dependencies"].items() if name != "dev" for text in extra]
    needs = [Requirement(text) for text in (*project["dependencies"], *extras)]
    return [need for need in needs if need.name != "optkit"]  # an extra may bring another


@pytest.mark.parametrize("need", _declared(), ids=str)
def test_every_dependency_has_bounds_that_hold_the_version_that_set_up_installs(need):
    pinned = dict(
        line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    assert need.specifier.contains(pinned[need.name.lower()])
    operators = {one.operator for one in need.specifier}
    assert operators == ({">="} if need.name == "packaging" else {">=", "<"})


@pytest.mark.parametrize("package", ["torch", "torchao", "onnxruntime"])
def test_packages_with_private_names_are_bound_to_the_minor_version(package):
    (need,) = [need for need in _declared() if need.name == package]
    pinned = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(f"{package}==")
    )
    major, minor = map(int, pinned.partition("==")[2].split(".")[:2])
    assert not need.specifier.contains(f"{major}.{minor + 1}.0")
    assert need.specifier.contains(f"{major}.{minor}.99")


def test_versions_outside_the_bounds_are_told(monkeypatch):
    needs = ["numpy>=2,<3", "torch>=1.0,<1.1", "rich>=1", "no-such-package>=1"]
    monkeypatch.setattr(versions, "_requirements", lambda: map(Requirement, needs))
    assert versions.unsupported() == [f"torch {versions.version_of('torch')} (>=1.0,<1.1)"]
    assert (versions.supported("rich"), versions.supported("scipy")) == (">=1", "")


def test_the_bounds_are_those_of_the_installed_optkit():
    for package in ("torch", "onnxruntime"):
        assert versions.supported(package).startswith(">=")
    assert versions.supported("ruff") == ""


def test_a_compiled_call_that_a_finalizer_came_between_is_made_again():
    answers = iter([RuntimeError("torch.compile with fullgraph=True found no compiled frames. Skipped frames: ..."), 3])

    def compiled(x):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer + x

    assert torch_compiler.compiled_call(compiled, torch.tensor(1)) == 4

    def broken(x):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="^shapes$"):
        torch_compiler.compiled_call(broken, torch.tensor(1))
