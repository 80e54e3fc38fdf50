"""What the models of a comparison are timed in: a forward pass at each batch size, or prompts and generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optkit.comparison.candidates import Candidate, resized
from optkit.core.errors import UserError
from optkit.core.workload import FORWARD, Decode, Prefill, Workload
from optkit.measure.cases import COMPILED_TOKENS
from optkit.measure.config import Measure, check_prompts, prompt_lengths

if TYPE_CHECKING:
    from optkit.comparison.result import Row

COMPILED_ROWS = 2  # sessions of models that generate are free in the number of rows


@dataclass(frozen=True)
class Requests:
    """One kind of request, which all sessions answer in the same rounds.

    Attributes:
        workload: what a request is.
        inputs: of one request, ``(N, ...)`` each.
        here: what rows say of it.
    """

    workload: Workload
    inputs: tuple[Tensor, ...]
    here: Row

    def per_second(self, latency_ms: float) -> Row:
        """The column of throughput, where requests are counted in something else than examples."""
        if not self.workload.generates:
            return {}
        return {"tokens_per_second": 1000 * self.workload.count(self.inputs) / latency_ms}


@dataclass(frozen=True)
class Part:
    """What one session of each model and engine is compiled for, and all that it is timed in.

    Attributes:
        example: what sessions are compiled for.
        requests: what they are timed in.
    """

    example: tuple[Tensor, ...]
    requests: tuple[Requests, ...]


def forward_passes(example: tuple[Tensor, ...], batch_sizes: Sequence[int], *, as_it_is: bool) -> list[Part]:
    """A part for each batch size: sessions are compiled for each on its own.

    Raises:
        UserError: the example cannot be resized.
    """
    parts = []
    for size in batch_sizes:
        inputs = example if as_it_is else resized(example, size)
        parts.append(Part(inputs, (Requests(FORWARD, inputs, {"batch_size": size}),)))
    return parts


def prompts(models: Sequence[Candidate], example: tuple[Tensor, ...], config: Measure) -> list[Part]:
    """One part: each session reads prompts of every length, and generates behind them, at every batch size.

    Raises:
        UserError: a model that does not generate, a prompt longer than one takes, or an example that is no tokens.
    """
    if len(example) != 1 or example[0].dim() != 2 or example[0].is_floating_point():
        shapes = ", ".join(f"{list(x.shape)} of {str(x.dtype).removeprefix('torch.')}" for x in example)
        fix = "with prompt_lengths the example is one tensor of token numbers (N, T)"
        raise UserError(f"{shapes} are no tokens", key="inputs", fix=fix)
    for model in models:
        if not model.generates:
            fix = "a causal language model, such as optkit.models.language_model(FOLDER); or leave prompt_lengths out"
            raise UserError("generates no tokens", key=f"models[{model.name!r}]", fix=fix)
        check_prompts(config, model.longest, "prompt_lengths")
    requests = [
        Requests(
            workload,
            (_cut(example[0], size, length),),
            {"batch_size": size, "workload": workload.name, "prompt_tokens": length},
        )
        for length, size, kind in product(prompt_lengths(config), config.batch_sizes, (Prefill, Decode))
        for workload in [kind(length)]
    ]
    return [Part((_cut(example[0], COMPILED_ROWS, COMPILED_TOKENS),), tuple(requests))]


def _cut(tokens: Tensor, rows: int, length: int) -> Tensor:
    """Tokens ``(rows, length)``: those given, repeated or cut along both dimensions."""
    times = (-(-rows // tokens.shape[0]), -(-length // tokens.shape[1]))
    return tokens.repeat(times)[:rows, :length].to(torch.long)


def where(row: Row) -> str:
    """What a row was timed in, as the beginning of a sentence."""
    size = f"at batch size {row['batch_size']}"
    did = {"prefill": "In reading", "decode": "In generating behind"}.get(row.get("workload", ""))
    return f"A{size[1:]}" if did is None else f"{did} prompts of {row['prompt_tokens']} tokens {size}"


def key(row: Row) -> tuple[Any, ...]:
    """What tells the requests of rows apart."""
    return row["batch_size"], row.get("workload"), row.get("prompt_tokens")
