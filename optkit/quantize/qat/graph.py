"""Quantization-aware training: the graph that static quantization gives, made trainable, and its way back.

Weights are quantized by output channel and symmetrically, which a batch norm's scale commutes with: fq(w) * s is
fq(w * s). So a convolution trains with its own weight fake-quantized and its batch norm alive behind it. The norm is
folded at conversion, into the graph that post-training quantization of the same model gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from optkit.core.compat.torch_graphs import GUARDS
from optkit.core.compat.torch_modules import BatchNorm
from optkit.core.compat.torch_operators import private_aten
from optkit.core.errors import StageError
from optkit.core.loaders import Pick, as_example
from optkit.quantize.batches import Batches
from optkit.quantize.graph.annotate import behind_observer, calls, keep_in_float, operand, tensor_at
from optkit.quantize.graph.norms import factor_and_shift, folded, set_parameter
from optkit.quantize.graph.observers import ActivationObserver, WeightObserver
from optkit.quantize.options import Int8Options
from optkit.quantize.qat.fake_quant import LearnedRange, LearnedScales, MaxScales, MovingRange
from optkit.quantize.static import Calibrated, Quantized, calibrate_graph, export_graph, observers

aten = torch.ops.aten
CHECKED_METADATA = private_aten("_assert_tensor_metadata.default")


class LiveNorm(BatchNorm):
    """A batch norm of inputs ``(N, C, ...)`` whose statistics can be frozen in the middle of a training."""

    frozen = False

    def train(self, mode: bool = True) -> LiveNorm:
        return super().train(mode and not self.frozen)

    def freeze(self) -> None:
        """From now on it normalizes with its running statistics, as in eval mode."""
        self.frozen = True
        self.train(self.training)


@dataclass(frozen=True)
class Norm:
    """A batch norm of an exported graph.

    Attributes:
        source: the node it reads.
        bias: the name of that node's bias; None for none.
        module: its name in the training graph; calls of one norm share it.
        attributes: what of the exported graph holds its weight, bias, running mean and variance; None for none.
    """

    source: str
    bias: str | None
    module: str
    attributes: tuple[str | None, ...]


@dataclass(frozen=True)
class PreparedQAT:
    """A model to be trained for int8, and what converts it.

    Attributes:
        module: computes what the int8 graph will, in float and with gradients; to be trained in place.
        calibrated: the graph with observers, its batch norms folded.
        norms: the batch norms by their nodes in the exported graph.
    """

    module: GraphModule
    calibrated: Calibrated
    norms: dict[str, Norm]


def prepare_qat(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Any],
    *,
    inputs: Pick | None = None,
    target: str = "inductor",
    observer: str = "histogram",
    reduce_range: bool | None = None,
    learned_scales: bool = False,
    protect: Iterable[str] = (),
) -> PreparedQAT:
    """A model's graph with fake-quantized weights and activations, to be trained (Jacob et al., 2018).

    In train mode its batch norms and dropouts are alive, and the ranges of activations follow the batches. Dropout
    inside ``scaled_dot_product_attention`` is off, and so is all of it where a target spells attention out.

    Args:
        model, example_inputs, batches, inputs: as for `quantize_static`; the ranges begin as calibration finds them.
        target, observer, reduce_range, protect: see `Int8Options`.
        learned_scales: train the scales, of weights and activations, by gradients (LSQ; Esser et al., 2020).

    Raises:
        UserError: an option out of its range; a pattern that matches no layer.
        StageError: no operator could be quantized.
    """
    options = Int8Options(target=target, observer=observer, reduce_range=reduce_range, protect=tuple(protect))
    example_inputs = as_example(example_inputs)
    graph = export_graph(model, example_inputs, target)
    kept = keep_in_float(graph, options.protect)
    raw = {
        name: nn.Parameter(x, False) for name, x in graph.named_buffers(remove_duplicate=False) if x.is_floating_point()
    }
    raw |= dict(graph.named_parameters(remove_duplicate=False))
    norms, modules = _norms(graph)
    calibrated = calibrate_graph(graph, Batches.of(batches, len(example_inputs), inputs), options, schemes=(observer,))
    calibrated = replace(calibrated, protect=kept)
    if not any(observers(calibrated.graph)):
        raise StageError("no operator of this model could be quantized")
    trainable = copy.deepcopy(calibrated.graph)
    for found in observers(trainable):
        found.scheme = observer
    _revive(trainable, norms, modules, raw)
    _fake_quantize(trainable, learned_scales)
    _loosen(trainable)
    # an exported module refuses train() and eval(), a fresh one does not
    return PreparedQAT(GraphModule(trainable, trainable.graph), calibrated, norms)


def convert_qat(prepared: PreparedQAT) -> Quantized:
    """The int8 graph of a trained model; its structure is that of `quantize_static`, and `replay_static` replays it.

    Args:
        prepared: from `prepare_qat`, its module trained; not touched.
    """
    calibrated = prepared.calibrated
    graph, trained = copy.deepcopy(calibrated.graph), copy.deepcopy(prepared.module).cpu()
    fakes = dict(trained.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for path in _attributes(trained):
            tensor_at(graph, path).copy_(tensor_at(trained, path))
        scales = {}
        for name, path in _observed_weights(graph).items():
            weight = tensor_at(trained, path)
            # rounded by the scale that it was trained with: the folded weight has the same integers
            set_parameter(graph, path, fakes[name](weight))
            scales[name] = fakes[name].scales(weight)
        _fold(graph, trained, prepared.norms, scales)
        for name, scale in scales.items():
            _reach(graph.get_submodule(name), scale)
    for name, module in graph.named_modules():
        if isinstance(module, ActivationObserver):
            module.statistics.low, module.statistics.high = fakes[name].range()
    return replace(calibrated, graph=graph).convert("minmax")


def move_to_device(module: GraphModule, device: torch.device) -> None:
    """Moves a training graph to a device, with the tensors that it makes itself (positions, masks)."""
    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(
            (node.args, node.kwargs), lambda x: device if isinstance(x, torch.device) else x
        )
    module.recompile()
    module.to(device)


def _norms(graph: GraphModule) -> tuple[dict[str, Norm], dict[str, LiveNorm]]:
    """The batch norms by node, and the modules by name that take their place."""
    norms: dict[str, Norm] = {}
    modules: dict[str, LiveNorm] = {}
    of_statistics: dict[str, str] = {}
    for node in calls(graph, {aten.batch_norm.default}):
        source, (momentum, eps) = operand(node, 0), node.args[6:8]
        paths = tuple(str(x.target) if isinstance(x, Node) else None for x in node.args[1:5])
        if (mean := paths[2]) is None:
            continue
        assert isinstance(momentum, (int, float))
        assert isinstance(eps, (int, float))
        name = of_statistics.setdefault(mean, f"live_{node.name}")
        bias = source.args[2] if len(source.args) > 2 else None
        norms[node.name] = Norm(source.name, str(bias.target) if isinstance(bias, Node) else None, name, paths)
        if name not in modules:
            modules[name] = LiveNorm(
                len(tensor_at(graph, mean)),
                eps,
                momentum or None,  # an export writes 0 for None, the mean over all batches
                affine=paths[0] is not None,
            )
            for mine, path in zip(_state(modules[name]), paths, strict=True):
                if path is not None:
                    mine.data.copy_(tensor_at(graph, path))
    return norms, modules


def _state(norm: LiveNorm) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var  # type: ignore[return-value]


def _revive(
    observed: GraphModule, norms: dict[str, Norm], modules: dict[str, LiveNorm], raw: dict[str, nn.Parameter]
) -> None:
    """Undoes the folding of batch norms, and puts modules in place of norms and dropouts, which know of train mode."""
    graph = observed.graph
    nodes = {node.name: node for node in graph.nodes}
    for name, module in modules.items():
        observed.add_module(name, module)
    for name, norm in norms.items():
        if name in nodes:
            _call_instead(nodes[name], norm.module)
            continue
        source = nodes[norm.source]
        x, weight, _, *rest = source.args
        for path in filter(None, (str(behind_observer(operand(source, 1)).target), norm.bias)):
            set_parameter(observed, path, raw[path])
        with graph.inserting_before(source):
            source.args = (x, weight, norm.bias and graph.get_attr(norm.bias), *rest)
        with graph.inserting_after(source):
            call = graph.call_module(norm.module, (source,))
        source.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    for node in calls(observed, {aten.dropout.default}):
        share = node.args[1]
        assert isinstance(share, (int, float))
        observed.add_module(f"live_{node.name}", nn.Dropout(share))
        _call_instead(node, f"live_{node.name}")


def _call_instead(node: Node, module: str) -> None:
    """A module in a node's place, of its first argument."""
    with node.graph.inserting_after(node):
        call = node.graph.call_module(module, (node.args[0],))
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)


def _fake_quantize(observed: GraphModule, learned: bool) -> None:
    """Fake quantizers in place of observers; what shared an observer shares one."""
    weights = _observed_weights(observed)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(observed.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationObserver) and module not in made:
            made[module] = LearnedRange(module) if learned else MovingRange(module)
        elif name in weights and module not in made:
            highest = int(module.quant_max)
            made[module] = LearnedScales(tensor_at(observed, weights[name]), highest) if learned else MaxScales(highest)
        if module in made:
            observed.set_submodule(name, made[module])


def _loosen(observed: GraphModule) -> None:
    """Drops what holds for the inputs that were exported with alone: their device, precision and layout."""
    for node in list(observed.graph.nodes):
        if node.target in (GUARDS, CHECKED_METADATA):
            observed.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default  # a view of what is channels-last now
    observed.graph.eliminate_dead_code()


def _fold(graph: GraphModule, trained: GraphModule, norms: dict[str, Norm], scales: dict[str, Tensor]) -> None:
    """Folds trained batch norms into the weights before them and their scales; the others are only written back."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for name, norm in norms.items():
        live = trained.get_submodule(norm.module)
        assert isinstance(live, LiveNorm)
        if name in nodes:
            for path, value in zip(norm.attributes, _state(live), strict=True):
                if path is not None:
                    tensor_at(graph, path).copy_(value)
            continue
        source = nodes[norm.source]
        read = operand(source, 1)
        weight, bias = str(behind_observer(read).target), str(operand(source, 2).target)
        gamma, beta, mean, variance = _state(live)
        own = None if norm.bias is None else tensor_at(trained, norm.bias)
        factor, shift = factor_and_shift(mean, variance, live.eps, gamma, beta)
        found = folded(source, tensor_at(graph, weight), own, factor, shift)
        for path, value in zip((weight, bias), found, strict=True):
            set_parameter(graph, path, value)
        if read.op == "call_module":
            scales[str(read.target)] = scales[str(read.target)] * factor.abs().float()


def _reach(observer: nn.Module, scale: Tensor) -> None:
    """Lets a weight's observer have seen what gives these scales."""
    assert isinstance(observer, WeightObserver)
    largest = scale * ((observer.quant_max - observer.quant_min) / 2)
    observer.min_val, observer.max_val = -largest, largest


def _observed_weights(graph: GraphModule) -> dict[str, str]:
    """Which weight each observer of weights sees."""
    return {
        str(node.target): str(operand(node, 0).target)
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), WeightObserver)
    }


def _attributes(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
