"""The script's short version: real processes that start together and share a store, and one that is killed."""

import json

import pytest

from scripts.simultaneous import main

pytestmark = pytest.mark.slow


def test_simultaneous_starts_and_a_kill_change_nothing(capsys):
    assert main(["--pairs", "2", "--kills", "1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    counted = ("failures", "made_twice", "recorded_twice", "records_missing", "other_accuracies", "left_over")
    assert [last[name] for name in counted] == [0] * 6
