"""Quantization on one graph: pure functions, and their stages."""

from optkit.quantize.analysis import LayerCost, LayerCosts
from optkit.quantize.aware import Freezing, QuantizationAwareTraining
from optkit.quantize.dynamic import DynamicInt8, quantize_dynamic, replay_dynamic
from optkit.quantize.layerwise import LayerError
from optkit.quantize.mixed import quantize_within
from optkit.quantize.pt2e import Calibrated, Quantized, calibrate, quantize_static, replay_static
from optkit.quantize.qat import PreparedQAT, convert_qat, prepare_qat
from optkit.quantize.stages import DynamicQuantization, StaticQuantization, WeightOnlyQuantization
from optkit.quantize.weight_only import WeightOnly, quantize_weight_only, replay_weight_only

__all__ = [
    "Calibrated",
    "DynamicInt8",
    "DynamicQuantization",
    "Freezing",
    "LayerCost",
    "LayerCosts",
    "LayerError",
    "PreparedQAT",
    "QuantizationAwareTraining",
    "Quantized",
    "StaticQuantization",
    "WeightOnly",
    "WeightOnlyQuantization",
    "calibrate",
    "convert_qat",
    "prepare_qat",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight_only",
    "quantize_within",
    "replay_dynamic",
    "replay_static",
    "replay_weight_only",
]
