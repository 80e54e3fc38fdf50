"""Surgeries on disk: names that stay when files move, and the classes that replay them."""

from __future__ import annotations

from typing import Any

from optkit.core.errors import UserError

# A name keeps its meaning for good. Data of another layout gets the next number, and the old name stays in the table.
REPLAYED_BY = {
    "prune.structured/1": "optkit.prune.StructuredPruning",
    "prune.depth/1": "optkit.prune.DepthPruning",
    "prune.smaller_dense/1": "optkit.prune.stages.smaller_dense.SmallerDense",
    "quantize.calibrated/1": "optkit.quantize.stages.calibrated.CalibratedInt8",
    "quantize.dynamic/1": "optkit.quantize.DynamicQuantization",
    "quantize.weight_only/1": "optkit.quantize.weights.first_layout.FirstLayout",
    "quantize.weight_only/2": "optkit.quantize.WeightOnlyQuantization",
}
# what format 1 of a variant wrote in their place: the module paths of that time
FORMAT_1 = {
    "optkit.prune.stages.StructuredPruning": "prune.structured/1",
    "optkit.prune.shortening.DepthPruning": "prune.depth/1",
    "optkit.prune.controls.SmallerDense": "prune.smaller_dense/1",
    "optkit.quantize.stages.StaticQuantization": "quantize.calibrated/1",
    "optkit.quantize.aware.QuantizationAwareTraining": "quantize.calibrated/1",
    "optkit.quantize.stages.DynamicQuantization": "quantize.dynamic/1",
    "optkit.quantize.stages.WeightOnlyQuantization": "quantize.weight_only/1",
}


def surgery_name(stage: type) -> str:
    """The name under which a stage's surgery is saved.

    It is the ``surgery`` of the class that defines ``replay``, so a class that inherits ``replay`` saves what its base
    class reads. A stage of another package, or one with a ``replay`` of its own, goes by its dotted path.
    """
    owner = next((kind for kind in stage.__mro__ if "replay" in vars(kind)), stage)
    name = vars(owner).get("surgery")
    return name if name in REPLAYED_BY else f"{stage.__module__}.{stage.__qualname__}"


def replayed_by(name: str) -> str:
    """The dotted path of the class that replays the surgery of a name of optkit's.

    Raises:
        UserError: this optkit does not know the name.
    """
    if name not in REPLAYED_BY:
        fix = "open it with the version of optkit that wrote it, or a newer one"
        raise UserError(f"this optkit knows no surgery '{name}'", key="surgery", value=name, fix=fix)
    return REPLAYED_BY[name]


def is_surgery_name(by: Any) -> bool:
    """Whether it is a name of optkit's, known or not, and no dotted path."""
    return isinstance(by, str) and "/" in by
