"""EleutherAI's lm-eval on a session of optkit, so that its tasks are answered by the artifact that is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from optkit.core.errors import UserError
from optkit.core.generation import Generator, greedy
from optkit.core.progress import track
from optkit.tasks.language.continuation import Pair, as_input, encode_pair, scores

MULTIPLE = 8
NEW_TOKENS = 256  # where a task names no number


class SessionLM(LM):
    """A session as lm-eval takes a model: ``lm_eval.simple_evaluate(model=SessionLM(...), tasks=[...])``.

    Args:
        session: takes tokens ``(N, T)`` and gives logits ``(N, T, V)``; to generate it is a `Generator`, too.
        tokenizer: of transformers, the model's own.
        max_length: tokens that the model takes; longer contexts are cut on the left.
        batch_size: of requests for log-likelihoods.
    """

    def __init__(self, session: Any, tokenizer: Any, max_length: int, batch_size: int = 1):
        super().__init__()
        self.session, self.tokenizer = session, tokenizer
        self.max_length, self.batch_size = max_length, batch_size

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._answered([encode_pair(self.tokenizer, *request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        hf = self.tokenizer
        first = hf.eos_token_id if hf.bos_token_id is None else hf.bos_token_id
        found = []
        for request in requests:
            tokens = hf(request.args[0], verbose=False)["input_ids"]
            windows = get_rolling_token_windows(tokens, first, self.max_length, context_len=1)
            found.append(sum(total for total, _ in self._answered([make_disjoint_window(w) for w in windows])))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations up to the first stop text.

        Raises:
            UserError: the session keeps no cache, or a task asks for sampling.
        """
        if not isinstance(self.session, Generator):
            raise UserError("this session generates no text", key="session", fix="compile a language model")
        return [self._continued(*request.args) for request in track(requests, "generating", len(requests))]

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample"):
            raise UserError("the task samples, and this generates greedily", key="do_sample", fix="do_sample: false")
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", NEW_TOKENS))
        tokens = self.tokenizer(context, verbose=False)["input_ids"][-max(1, self.max_length - most) :]
        with torch.inference_mode():
            return self._until(self.session.start(torch.tensor([tokens])), stops, most)

    def _until(self, logits: torch.Tensor, stops: Sequence[str], most: int) -> str:
        found: list[int] = []
        text = ""
        while len(found) < most:
            chosen = greedy(logits)
            if int(chosen) == self.tokenizer.eos_token_id:
                break
            found.append(int(chosen))
            text = self.tokenizer.decode(found, skip_special_tokens=True)
            if any(stop in text for stop in stops):
                break
            logits = self.session.step(chosen)
        ends = [text.index(stop) for stop in stops if stop in text]
        return text[: min(ends, default=len(text))]

    def _answered(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what greedy decoding gives; long ones first."""
        order = sorted(range(len(pairs)), key=lambda n: -sum(map(len, pairs[n])))
        groups = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        found: dict[int, tuple[float, bool]] = {}
        with torch.inference_mode():
            for places in track(groups, "log-likelihoods", len(groups)):
                some = [pairs[n] for n in places]
                longest = max(len(context) + len(continuation) - 1 for context, continuation in some)
                width = min(self.max_length, -(-longest // MULTIPLE) * MULTIPLE)
                filled = some + some[-1:] * (self.batch_size - len(some))
                tokens, targets = as_input(filled, width, self.tokenizer.eos_token_id)
                totals, likeliest = scores(self.session(tokens), targets)
                found |= dict(zip(places, zip(totals.tolist(), likeliest.tolist(), strict=True), strict=False))
        return [found[n] for n in range(len(pairs))]
