"""Prompts that a model does not take are refused before any work."""

import pytest

from optkit.core.errors import UserError
from optkit.measure.config import Measure, check_prompts


def test_prompts_must_leave_room_for_the_tokens_behind_them():
    config = Measure(prompt_lengths=[16, 120])
    check_prompts(config, None)
    check_prompts(config, 128)
    with pytest.raises(
        UserError, match=r"prompts of 120 tokens and 8 behind them, and the model takes 127.*at most 119"
    ):
        check_prompts(config, 127)
