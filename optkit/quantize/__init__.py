"""Quantization on one graph: pure functions, and their stages."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.quantize.dynamic import DynamicInt8, quantize_dynamic, replay_dynamic
    from optkit.quantize.graph.layers import LayerError
    from optkit.quantize.graph.targets.registry import INT8_TARGETS
    from optkit.quantize.graph.targets.target import Int8Target
    from optkit.quantize.mixed_precision import quantize_within
    from optkit.quantize.mixed_weights import allocate_weights, quantize_weights_within
    from optkit.quantize.options import Int8Options, StaticOptions
    from optkit.quantize.qat.freezing import Freezing
    from optkit.quantize.qat.graph import PreparedQAT, convert_qat, prepare_qat
    from optkit.quantize.sensitivity import LayerCost, LayerCosts
    from optkit.quantize.stages.dynamic import DynamicQuantization
    from optkit.quantize.stages.qat import QuantizationAwareTraining
    from optkit.quantize.stages.static import StaticQuantization
    from optkit.quantize.stages.weight_only import WeightOnlyQuantization
    from optkit.quantize.static import Calibrated, Quantized, calibrate, quantize_static, replay_static
    from optkit.quantize.weight_only import WeightOnly, quantize_weight_only, replay_weight_only
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "INT8_TARGETS",
    "Calibrated",
    "DynamicInt8",
    "DynamicQuantization",
    "Freezing",
    "Int8Options",
    "Int8Target",
    "LayerCost",
    "LayerCosts",
    "LayerError",
    "PreparedQAT",
    "QuantizationAwareTraining",
    "Quantized",
    "StaticOptions",
    "StaticQuantization",
    "WeightOnly",
    "WeightOnlyQuantization",
    "allocate_weights",
    "calibrate",
    "convert_qat",
    "prepare_qat",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight_only",
    "quantize_weights_within",
    "quantize_within",
    "replay_dynamic",
    "replay_static",
    "replay_weight_only",
]
