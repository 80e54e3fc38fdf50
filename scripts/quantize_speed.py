"""int8 made by optkit beside each engine's own tool: latency of both, timed in turn in the same rounds.

    python scripts/quantize_speed.py [--cases resnet20:1 resnet20:32 resnet50:1 resnet50:8 mobilenet_v2:1]
        [--text-model DIR --text-cases 16x64] [--engines openvino onnxruntime inductor] [--threads 2] [--seconds 10]

The native tools are ``nncf.quantize``, ``onnxruntime.quantization.quantize_static`` and torchao's
``X86InductorQuantizer``; all calibrate on the same noise, which changes no latency. "over eager" is eager fp32 over
optkit's int8, "native over optkit" is above 1 where optkit is faster; both with their 95% intervals.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from optkit import engines
from optkit.core.compat.openvino import core
from optkit.core.engine import Session, made_for
from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import Inductor, OpenVINO
from optkit.engines.deployed import arrays, tensor
from optkit.engines.onnx_file import to_onnx
from optkit.measure.latency import interleaved
from optkit.models import ResNetCIFAR, torchvision
from optkit.quantize import quantize_static

Inputs = tuple[Tensor, ...]
IMAGE_MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: ResNetCIFAR(20), 32),
    "resnet50": (lambda: torchvision("resnet50", 1000), 224),
    "mobilenet_v2": (lambda: torchvision("mobilenet_v2", 1000), 224),
}
BATCHES = 4


class Native:
    """A model of a native tool, called as a session is."""

    def __init__(self, call: Callable[[Inputs], np.ndarray]):
        self.call = call

    def __call__(self, *inputs: Tensor) -> Tensor:
        return tensor(self.call(inputs))


def native_openvino(model: nn.Module, x: Inputs, batches: list[Inputs]) -> Native:
    """``nncf.quantize`` on the model as OpenVINO reads it, compiled for `x` with the options of our engine."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    is_text = not x[0].is_floating_point()
    read = core().read_model(to_onnx(model, x)[0])
    data = nncf.Dataset([arrays(batch) for batch in batches])
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if is_text else {}
    quantized = nncf.quantize(read, data, subset_size=len(batches), **kind)
    request = OpenVINO().compile_model(quantized, x).create_infer_request()
    return Native(lambda inputs: request.infer(arrays(inputs), share_inputs=True, share_outputs=True)[0])


def native_onnxruntime(model: nn.Module, x: Inputs, batches: list[Inputs]) -> Native:
    """ONNX Runtime's ``quantize_static``: uint8 activations, int8 weights per channel, its own preprocessing first."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from optkit.engines.onnxruntime import _runtime

    class Reader(CalibrationDataReader):
        def __init__(self, names: list[str]):
            self.left: Iterator[dict] = iter([dict(zip(names, arrays(batch), strict=True)) for batch in batches])

        def get_next(self) -> dict | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "quantized"))
        Path(plain).write_bytes(to_onnx(model, x)[0])
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        names = [put.name for put in _runtime(Path(plain).read_bytes()).get_inputs()]
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(ready, quantized, Reader(names), **kinds)
        runtime = _runtime(Path(quantized).read_bytes())
    return Native(lambda inputs: runtime.run(None, dict(zip(names, arrays(inputs), strict=True)))[0])


def native_inductor(model: nn.Module, x: Inputs, batches: list[Inputs]) -> Session:
    """torchao's X86InductorQuantizer as its tutorial uses it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    rows = tuple(v[:2] if len(v) > 1 else torch.cat([v, v]) for v in x)
    free = tuple({0: torch.export.Dim.AUTO} for _ in rows)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(
        torch.export.export(copy.deepcopy(model), rows, dynamic_shapes=free).module(check_guards=False), quantizer
    )
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    variant = Variant("native", None, made_for("inductor"), {})
    return Inductor().compile(convert_pt2e(prepared), variant, x)


NATIVE = {"openvino": native_openvino, "onnxruntime": native_onnxruntime, "inductor": native_inductor}


def cases(args: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Inputs]]:
    """Name, model and inputs of every case."""
    for case in args.cases:
        name, _, batch = case.partition(":")
        build, size = IMAGE_MODELS[name]
        yield f"{name}, batch {batch}", build().eval(), (torch.randn(int(batch), 3, size, size),)
    if args.text_model:
        from optkit.models import huggingface

        for case in args.text_cases:
            batch, length = map(int, case.split("x"))
            model = huggingface(pretrained=args.text_model, num_classes=2).eval()
            tokens = torch.randint(5, 1000, (batch, length))
            yield (
                f"{Path(args.text_model).name}, {length} tokens, batch {batch}",
                model,
                (tokens, torch.ones_like(tokens)),
            )


def shown(over: np.ndarray, under: np.ndarray) -> str:
    """A ratio of medians with its interval."""
    ratio = ratio_of_medians(over, under)
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    images = ["resnet20:1", "resnet20:32", "resnet50:1", "resnet50:8", "mobilenet_v2:1"]
    parser.add_argument("--cases", nargs="*", default=images)
    parser.add_argument("--text-model", help="folder or id of a Hugging Face text classifier")
    parser.add_argument("--text-cases", nargs="*", default=["16x64"], help="BATCHxTOKENS")
    parser.add_argument("--engines", nargs="+", default=list(NATIVE), choices=list(NATIVE))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each row")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    print("| model | engine | int8 % | optkit ms | over eager | native over optkit |\n|---|---|---:|---:|---|---|")
    for name, model, x in cases(args):
        for engine in args.engines:
            rows = tuple(v[:2] if len(v) > 1 else torch.cat([v, v]) for v in x)
            ours = engines.compile(quantize_static(model, rows, [x] * BATCHES, target=engine).module, x, engine=engine)
            sessions: dict = {"eager": engines.compile(model, x, engine="eager"), "ours": ours}
            try:
                sessions["native"] = NATIVE[engine](model, x, [x] * BATCHES)
            except (RuntimeError, ValueError) as error:
                failure = f"fails: {str(error).splitlines()[0][:60]}"
            series = interleaved(sessions, x, args.seconds, seed=0)
            samples = {key: found.samples for key, found in series.items()}
            beside = shown(samples["native"], samples["ours"]) if "native" in samples else failure
            share, ms = 100 * ours.facts()["int8_share"], np.median(samples["ours"])
            over = shown(samples["eager"], samples["ours"])
            print(f"| {name} | {engine} | {share:.0f} | {ms:.2f} | {over} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
