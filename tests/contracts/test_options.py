"""Options have the same names and defaults wherever they can be given: to a function, a stage, or a recipe."""

import inspect
from dataclasses import MISSING, fields, replace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optkit.core.errors import UserError
from optkit.core.instantiate import TARGET, build, locate
from optkit.prune import CutOptions, StructuredPruning, prune_structured
from optkit.quantize import (
    Int8Options,
    QuantizationAwareTraining,
    StaticOptions,
    StaticQuantization,
    prepare_qat,
    quantize_static,
    quantize_within,
)
from optkit.recipe.compose import shipped, stage_catalogue
from optkit.recipe.keys import within

# several configs of one class, which set its options differently
VARIATIONS = ("prune/gradual", "prune/iterative", "prune/pattern")


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (prune_structured, CutOptions),
        (quantize_static, StaticOptions),
        (quantize_within, StaticOptions),
        (prepare_qat, Int8Options),
    ],
)
def test_a_function_takes_the_options_as_keywords(function, options):
    keywords = inspect.signature(function).parameters
    for field in fields(options):
        default = keywords[field.name].default
        assert default == (inspect.Parameter.empty if field.default is MISSING else field.default)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (StructuredPruning(0.3, engine="eager", budget="latency"), CutOptions),
        (StaticQuantization(target="openvino", smooth=0.5), StaticOptions),
        (QuantizationAwareTraining(observer="minmax", protect=["head"]), Int8Options),
    ],
)
def test_a_stage_is_its_options(stage, options):
    assert isinstance(stage, options)
    assert options(**stage.keywords()) == options(**{f.name: getattr(stage, f.name) for f in fields(options)})
    assert replace(stage, protect=("a",)).keywords() == stage.keywords() | {"protect": ("a",)}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (CutOptions, {"amount": 1.0}),
        (CutOptions, {"amount": 0.5, "threads": 1}),
        (CutOptions, {"amount": 0.5, "budget": "latency", "engine": "egaer"}),
        (Int8Options, {"target": "tensorrt"}),
        (Int8Options, {"reduce_range": "yes"}),
        (StaticOptions, {"observer": "max"}),
        (StaticOptions, {"smooth": 1.5}),
        (StaticOptions, {"rounding": "adaround"}),
    ],
)
def test_options_are_checked_when_they_are_made(options, wrong):
    with pytest.raises(UserError) as caught:
        options(**wrong)
    assert caught.value.key == list(wrong)[-1]


@pytest.mark.parametrize("name", [name for name in stage_catalogue() if not name.startswith("distill/")])
def test_a_stage_has_the_keys_and_defaults_of_its_config(name):
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        node = OmegaConf.to_container(compose(overrides=[f"+stage@it={name}"])["it"])
    kind = locate(node[TARGET], name)
    assert node.keys() - {TARGET} == {field.name for field in fields(kind) if field.init}
    if name not in VARIATIONS:
        ours, theirs = build(node, name), kind()
        own = {field.name for field in fields(kind)} - within(ours).keys()
        assert {key: _plain(getattr(ours, key)) for key in own} == {key: _plain(getattr(theirs, key)) for key in own}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
