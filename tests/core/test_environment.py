"""What records say of their surroundings, and which of it latencies depend on."""

import pytest

from optkit.core.environment import environment, same_timing, timing_packages

OLD = {"cpu": {"name": "a"}, "gpu": None, "threads": 2, "packages": {"torch": "2", "openvino": "1", "evaluate": "1"}}
NEW = OLD | {"packages": {"torch": "2", "mine": "3"}, "engine_packages": ["mine", "torch"]}


def test_a_record_holds_the_versions_of_its_engines():
    found = environment(2, ("torch", "no-such-package"))
    assert found["engine_packages"] == ["torch", "no-such-package"]
    assert found["packages"]["no-such-package"] is None
    assert found["packages"]["torch"]
    assert timing_packages(found) == ("torch", "no-such-package")


def test_an_older_record_depends_on_what_its_optkit_compared():
    assert timing_packages(OLD) == ("torch", "onnxruntime", "openvino")


CASES = {
    "the same": (OLD, OLD, True),
    "old and new": (OLD, NEW, True),
    "another torch": (OLD, NEW | {"packages": {"torch": "1", "mine": "3"}}, False),
    "another version of an engine": (NEW, NEW | {"packages": {"torch": "2", "mine": "4"}}, False),
    "an engine that only one used": (OLD, OLD | {"engine_packages": ["torch"], "packages": {"torch": "2"}}, True),
    "other packages": (OLD, OLD | {"packages": OLD["packages"] | {"evaluate": "2"}}, True),
    "threads": (OLD, OLD | {"threads": 4}, False),
    "a processor": (OLD, OLD | {"cpu": {"name": "b"}}, False),
}


@pytest.mark.parametrize(("one", "other", "same"), CASES.values(), ids=CASES)
def test_latencies_compare_under_the_same_machine_threads_and_engines(one, other, same):
    assert same_timing(one, other) is same
    assert same_timing(other, one) is same
