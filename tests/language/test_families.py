"""Each family of causal language models, on each engine: a session with a cache answers as the full forward pass."""

import pytest

from optkit.core.structure import tensors
from optkit.engines import Eager, Inductor, ONNXRuntime, OpenVINO
from optkit.prune import prune_depth, prune_structured
from optkit.quantize import quantize_weight_only
from tests.language.families import EXAMPLE, FAMILIES, FLOAT, build, check_generation


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_generates(family):
    module = build(family)
    check_generation(Eager().compile(module, FLOAT, EXAMPLE), module)


class Traced(Inductor):
    """Inductor's sessions without its kernels: what would be compiled runs as it is."""

    def compiled(self, module, example, int8_macs=None):
        return lambda *inputs: tensors(module(*inputs)), None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_fixed_length_generates(family):
    module = build(family)
    check_generation(Traced().compile(module, FLOAT, EXAMPLE), module)


CHANGES = {
    "width": lambda module: prune_structured(module, EXAMPLE, amount=0.2, floor=0.3).module,
    "depth": lambda module: prune_depth(module, EXAMPLE, amount=0.5, by="position").module,
    "int8": lambda module: quantize_weight_only(module, bits=8).module,
    "int4": lambda module: quantize_weight_only(module, bits=4, group_size=32).module,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_model_generates(family, change):
    module = CHANGES[change](build(family))
    # products of weights of few bits round activations to bfloat16
    check_generation(Eager().compile(module, FLOAT, EXAMPLE), module, 2e-2 if "int" in change else 1e-4)


# every way to attend and to place tokens once, for a compilation takes seconds: mistral has the windows of phi3; olmo,
# granite and stablelm are llama with other numbers and norms; qwen3 and gpt2 are below, made smaller
COMPILED = ["llama", "qwen2", "gemma2", "gemma3_text", "phi3", "gpt_neox", "opt", "bloom", "falcon"]


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPILED)
@pytest.mark.parametrize("engine", [ONNXRuntime(), OpenVINO()], ids=lambda engine: engine.name)
def test_an_engine_generates(engine, family):
    module = build(family)
    check_generation(engine.compile(module, FLOAT, EXAMPLE), module)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "change"), [("qwen3", "width"), ("gpt2", "depth")])
@pytest.mark.parametrize("engine", [ONNXRuntime(), OpenVINO()], ids=lambda engine: engine.name)
def test_a_smaller_model_generates_on_an_engine(engine, family, change):
    module = CHANGES[change](build(family))
    check_generation(engine.compile(module, FLOAT, EXAMPLE), module)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "change"), [("gemma2", None), ("qwen3", "width")])
def test_compiled_steps_generate(family, change):
    module = build(family) if change is None else CHANGES[change](build(family))
    check_generation(Inductor(cpp_wrapper=False).compile(module, FLOAT, EXAMPLE), module)
