"""Answers a batch of requests with a session; one bad example does not spoil the others' answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optkit.core.errors import first_line
from optkit.core.structure import flatten, names
from optkit.engines.loading import load
from optkit.serving.model_folder import inputs_of, read_rules, saved_session
from optkit.serving.requests import Arrays

log = logging.getLogger(__name__)
Answer = dict[str, Any]


class Answers:
    """A model that was loaded from a folder.

    Args:
        folder: as `optkit.serving.model_folder.save_model` or ``Session.save`` wrote it.
        max_batch: the most requests at once, for which the session is opened.
        threads: that it computes with.
        trust: what may be called to open it, see `optkit.load`.

    Raises:
        UserError: no session there, or one that cannot be opened.
    """

    def __init__(self, folder: Path, max_batch: int, threads: int, trust: Iterable[str] = ()):
        torch.set_num_threads(threads)
        saved, rules = saved_session(folder, trust), read_rules(folder)
        self.inputs = inputs_of(saved, rules, str(folder))
        self.classes = rules.get("classes")
        self.session = load(folder, batch_size=max_batch, trust=trust)
        self._whole(torch.cat([x[:1]] * max_batch) for x in saved.example)  # the first call may compile

    def __call__(self, requests: Sequence[Arrays]) -> list[Answer | str]:
        """An answer for each, or why there is none: ``outputs`` by name, and ``class`` where the model classifies."""
        try:
            return self._answers(requests)
        except Exception as error:  # noqa: BLE001  # whatever an engine raises is told, and the service goes on
            if len(requests) > 1:
                return [found for one in requests for found in self([one])]
            log.warning("a request failed: %s", first_line(error))
            return [f"the model failed: {first_line(error)}"]

    def _answers(self, requests: Sequence[Arrays]) -> list[Answer | str]:
        stacked = (torch.from_numpy(np.stack([one[put.name] for one in requests])) for put in self.inputs)
        outputs = self._whole(stacked)
        return [self._answer(outputs, place, len(requests)) for place in range(len(requests))]

    def _whole(self, inputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            tensors, structure = flatten(self.session(*inputs))
        return dict(zip(names(structure), tensors, strict=True))

    def _answer(self, outputs: dict[str, torch.Tensor], place: int, size: int) -> Answer | str:
        own = {name: x[place] if x.dim() and len(x) == size else x for name, x in outputs.items()}
        for name, x in own.items():
            if not torch.isfinite(x).all():
                return f"the model failed: its output '{name}' is not finite"
        found: Answer = {"outputs": {name: x.tolist() for name, x in own.items()}}
        if self.classes and len(own) == 1:
            (logits,) = own.values()
            if logits.shape == (len(self.classes),):
                found["class"] = self.classes[int(logits.argmax())]
        return found
