import pytest

from optkit.core.errors import SealedSplitError
from optkit.core.task import SealedTask


def test_stages_see_train_and_validation_only(digits):
    sealed = SealedTask(digits)
    assert sealed.size("train") == digits.size("train")
    assert len(next(sealed.batches("validation", 8))) == 8
    for question in (lambda: sealed.size("test"), lambda: sealed.batches("test", 8)):
        with pytest.raises(SealedSplitError, match="sealed"):
            question()


def test_a_stage_finds_no_handle_on_the_unsealed_task(digits):
    assert digits not in vars(SealedTask(digits)).values()
