"""Rules for LSTM, GRU and plain recurrent layers: what comes in can be cut, the recurrent width stays whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from optkit.prune.trace.rules.compute import note_macs
from optkit.prune.trace.rules.layout import freeze_all
from optkit.prune.trace.values import Trace, Value


def recurrent(trace: Trace, out: Any, x: Value, *args: Any) -> Any:
    """All layers of an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` on (..., I), or on the data of a packed sequence.

    The first layer's weights (G * H, I), of each direction, are cut with the features of ``x``. Every step reads the
    hidden state of the step before, through an initial state whose size the module holds, so H stays whole.
    """
    found = next(k for k, arg in enumerate(args) if isinstance(arg, bool))  # has_biases follows the parameters
    params: Sequence[Value] = args[found - 1]
    layers, bidirectional = args[found + 1], args[found + 4]
    directions = 2 if bidirectional else 1
    each = len(params) // (layers * directions)
    features = x.axes[-1]
    steps = math.prod(x.shape[:-1])
    for number, weight in enumerate(params):
        first = number < each * directions and number % each == 0
        if len(weight.shape) > 1:
            cut = [None, weight.axes[1]] if first else [None, None]
            note_macs(trace, [None, *cut], [steps, *weight.shape])
        if first:
            # unlike what comes out, what is taken in is a plain matrix product
            if not (x.zero[-1] or weight.zero[1]):
                trace.space.freeze(features)
            features = trace.space.tie(features, weight.axes[1])
        for axis in weight.axes[: 1 if first else None]:
            trace.space.freeze(axis)
    if features is not None:
        trace.attributes.append((trace.space.where, "input_size", features))
    others = [v for arg in args[: found - 1] for v in (arg if isinstance(arg, (list, tuple)) else [arg])]
    rest = Value(x.shape[:-1], x.axes[:-1], x.zero[:-1])
    return freeze_all(trace, out, [rest, *(v for v in others if isinstance(v, Value))])


RULES: dict[str, Callable[..., Any]] = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent)
