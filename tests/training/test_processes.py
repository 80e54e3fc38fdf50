"""One process and two end alike: the same steps, the same weights, and each example once."""

import json

import pytest
import torch
from safetensors.torch import load_file

from optkit.training import Callback
from tests.launching import ended, start
from tests.training.several import ALIKE, DIGITS, MOVED, OF_TWO, fit, recorded, stopped
from tests.training.statistics_of_data import FOUND

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes have made of all trainings."""
    folder = tmp_path_factory.mktemp("two")
    for name, (trainer, make) in MOVED.items():
        stopped(trainer, make(), folder / f"{name}, from one", 9)
    codes, _, said = ended(start("tests.training.several", str(folder)))
    assert codes == [0, 0], said
    return folder


def _weights(folder, name, rank=0):
    return load_file(folder / f"{name} {rank}.safetensors")


def _facts(folder, name):
    return json.loads((folder / f"{name} 0.json").read_text())


def _assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_end_with_the_weights_of_one(folder, tmp_path, name):
    module, report = ALIKE[name](tmp_path)
    _assert_close(_weights(folder, name), module.state_dict())
    found, expected = _facts(folder, name), report.facts()["training"]
    assert found["processes"] == 2
    assert found["sharding"] == ("fsdp" if "sharded" in name else "none")
    assert (found["steps"], found["batch_size"]) == (expected["steps"], expected["batch_size"]) == (12, 26)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["validation"] == pytest.approx(expected["validation"], rel=1e-4)
    assert found["kept"] == expected["kept"]


@pytest.mark.parametrize("name", [*ALIKE, *OF_TWO])
def test_both_processes_hold_the_same_weights_and_statistics(folder, name):
    first, second = (_weights(folder, name, rank) for rank in range(2))
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_shards_are_what_replicas_are(folder):
    for name in ("quantized", "norms"):
        _assert_close(_weights(folder, f"{name}, sharded"), _weights(folder, name))


def test_the_record_says_how_the_batch_was_shared(folder):
    shared = ("batch_size", "processes", "examples_at_once", "accumulation_steps")
    assert [_facts(folder, "plain")[key] for key in shared] == [26, 2, 13, 1]
    assert [_facts(folder, "accumulated")[key] for key in shared] == [26, 2, 4, 4]


def test_each_example_is_seen_once_and_one_more_keeps_an_empty_share_in_step(folder):
    first, second = (json.loads((folder / f"seen {rank}.json").read_text()) for rank in range(2))
    # of the last batch, of one example, the first process has none, and takes part with the one of the second
    assert len(first) + len(second) == DIGITS.size("train") + 1
    assert set(first) | set(second) == set(range(DIGITS.size("train")))


@pytest.mark.parametrize("name", FOUND)
def test_statistics_of_data_are_those_of_one_process(folder, name):
    expected = FOUND[name]()
    for rank in range(2):
        _assert_close(_weights(folder, name, rank), expected)


def test_what_the_first_does_alone_it_does_as_one_process(folder):
    assert [json.loads((folder / f"alone {rank}.json").read_text()) for rank in range(2)] == [1, 1]


@pytest.mark.parametrize("top", [None, 3])
def test_a_teacher_is_recorded_by_both(folder, tmp_path, monkeypatch, top):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    expected, batches = recorded(tmp_path, top)
    for rank, seen in enumerate((batches[::2], batches[1::2])):
        _assert_close(_weights(folder, f"recorded {top}", rank), expected)
        assert json.loads((folder / f"recorded {top} {rank}.json").read_text()) == seen


@pytest.mark.parametrize("name", MOVED)
def test_what_one_number_of_processes_began_another_ends(folder, tmp_path, name):
    trainer, make = MOVED[name]
    whole, moved = make(), make()
    expected = fit(trainer, whole, tmp_path / "whole")
    _assert_close(_weights(folder, f"{name}, to two"), whole.state_dict())
    report = fit(trainer, moved, folder / f"{name}, from two", callbacks=[Callback()])
    _assert_close(moved.state_dict(), whole.state_dict())
    facts = report.facts()["training"]
    assert (facts["processes"], facts["earlier_processes"]) == (1, [2])
    assert _facts(folder, f"{name}, to two")["earlier_processes"] == [1]
    assert facts["losses"] == pytest.approx(expected.losses, rel=1e-4)
