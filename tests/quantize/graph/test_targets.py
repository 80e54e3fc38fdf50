"""int8 targets by name, and the rules that a saved variant was made by."""

from dataclasses import replace

import pytest

from optkit.core.errors import UserError
from optkit.quantize import DynamicQuantization, Int8Target, StaticQuantization
from optkit.quantize.graph.targets import INT8_TARGETS, find_target, registry, saved_target
from optkit.quantize.graph.targets.registry import code_of_target, made_by


@pytest.mark.parametrize("name", INT8_TARGETS)
def test_a_target_keeps_the_contract(name):
    target = INT8_TARGETS[name]
    assert isinstance(target, Int8Target)
    assert (target.name, target.engine, target.revision) == (name, name, 1)
    assert find_target(name) is find_target(target) is target
    # variants for them hold what they always held
    assert made_by(name) == {}
    assert saved_target({"target": name}) is target


def test_a_variant_without_a_target_is_from_when_there_was_one():
    assert saved_target({}) is INT8_TARGETS["inductor"]


def test_stages_refuse_targets_that_are_not_there_or_not_dynamic():
    with pytest.raises(UserError, match=r"target: no int8 target 'indoctor' \(did you mean 'inductor'\?\)"):
        StaticQuantization(target="indoctor")
    with pytest.raises(UserError, match="target: openvino has no int8 kernels .* one of: inductor, onnxruntime"):
        DynamicQuantization(target="openvino")


def test_the_code_of_a_target_is_part_of_the_key():
    codes = {code_of_target(name) for name in INT8_TARGETS}
    assert len(codes) == len(INT8_TARGETS)
    assert None not in codes


@pytest.fixture
def plugin(monkeypatch):
    """A target of another package in its third revision, which still knows the second."""
    second = replace(INT8_TARGETS["openvino"], name="mine", revision=2)
    third = replace(second, revision=3, earlier={2: second})
    monkeypatch.setattr(registry, "INT8_TARGETS", Offered(third))
    return third


class Offered(dict):
    def __init__(self, target):
        super().__init__({target.name: target})

    def find(self, name, key, package=None):
        return self[name]

    def package(self, name):
        return "my-package"

    def source(self, name):
        return "my-package 3.0"


def test_a_saved_variant_is_rebuilt_by_the_rules_of_its_revision(plugin):
    written = {"target": "mine"} | made_by("mine")
    assert written["target_made_by"] == {"package": "my-package", "source": "my-package 3.0", "revision": 3}
    assert saved_target(written) is plugin
    older = {"target": "mine", "target_made_by": {"package": "my-package", "source": "my-package 2.1", "revision": 2}}
    assert saved_target(older) is plugin.earlier[2]
    older["target_made_by"] |= {"source": "my-package 1.0", "revision": 1}
    with pytest.raises(UserError) as caught:
        saved_target(older)
    assert caught.value.message == "revision 1 of the int8 target 'mine' is not known to my-package 3.0"
    assert caught.value.fix == "install my-package 1.0, which made the variant"
