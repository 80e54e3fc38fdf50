from dataclasses import replace

import pytest
import torch

from optkit.core.macs import count_macs
from optkit.prune.stages.smaller_dense import SmallerDense


def test_a_smaller_dense_model_is_fresh_and_evenly_narrow(context, mlp, digits):
    wide = mlp.__class__(input_shape=[1, 8, 8], widths=[64, 64])
    small = mlp.__class__(input_shape=[1, 8, 8], widths=[20, 64])
    ctx = context()
    made = replace(
        ctx,
        variant=replace(ctx.variant, model={"target": "optkit.models.MLP", "params": {}}),
        build_model=lambda node: wide,
        module_of=lambda variant: small,
    )
    outcome = SmallerDense("cut").apply(mlp, made)
    wanted, found = (count_macs(m, digits.example(2)) for m in (small, outcome.module))
    assert found == pytest.approx(wanted, rel=0.05)
    again = SmallerDense.replay(
        mlp.__class__(input_shape=[1, 8, 8], widths=[64, 64]), outcome.surgery, digits.example(2)
    )
    again.load_state_dict(outcome.module.state_dict())
    assert torch.equal(again(*digits.example(2)), outcome.module(*digits.example(2)))
