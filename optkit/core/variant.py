"""A variant: one model on its way through a chain, named by what made it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from optkit.core.records import Cost


@dataclass(frozen=True)
class Step:
    """One stage as it was applied: its name in the recipe, its technique, its class and its parameters."""

    stage: str
    technique: str
    target: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A model with its history; the weights and what rebuilds them lie in the store under `id`.

    Attributes:
        id: hash of everything that decides the weights (see `variant_id`).
        parent: id of the variant it was made from; None for the model as it was loaded.
        traits: what is true of it (``float``, ``int8``, ``sparse``, ...); stages and engines ask for these.
        model: the model spec that builds a fresh instance.
        surgeries: what turns that fresh instance into this variant's structure, in order; JSON.
        steps: the stages that led here.
        facts: what the last stage says it did.
        cost: what the last stage took.
    """

    id: str
    parent: str | None
    traits: frozenset[str]
    model: dict[str, Any]
    surgeries: tuple[dict[str, Any], ...] = ()
    steps: tuple[Step, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=lambda: Cost(0.0, 0.0))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the inverse of `from_json`."""
        return asdict(self) | {"traits": sorted(self.traits)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Variant:
        """The variant that `to_json` gave; raises KeyError or TypeError for anything else."""
        fields = dict(data)
        fields["traits"] = frozenset(fields["traits"])
        fields["surgeries"] = tuple(fields["surgeries"])
        fields["steps"] = tuple(Step(**step) for step in fields["steps"])
        fields["cost"] = Cost(**fields["cost"])
        return cls(**fields)


def variant_id(*parts: Any) -> str:
    """16 hex digits that name these JSON-able parts; equal parts give equal ids in every process.

    The plan passes the parent's id, the stage's class, parameters and code, what else it depends on, and the seed; for
    the model as loaded its identity, the data's fingerprint, and the code that all variants share.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
