"""The contract of engines: where a variant runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from optkit.core.compat.versions import version_of
from optkit.core.errors import UserError
from optkit.core.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# in a quantized graph's ``meta``, the int8 target it is annotated for; with the same prefix, a trait of its variant
MADE_FOR = "int8:"


def made_for(target: str) -> frozenset[str]:
    """The traits of an int8 variant that is annotated for one target."""
    return frozenset({"int8", f"{MADE_FOR}{target}"})


def traits_of(module: nn.Module) -> frozenset[str]:
    """The traits of a model that comes without a variant."""
    from optkit.core.packed_weights import packed_traits

    target = getattr(module, "meta", {}).get(MADE_FOR)
    return made_for(target) if target else packed_traits(module) or frozenset({"float"})


def not_made_for(target: str | None, traits: frozenset[str]) -> str | None:
    """Why an engine has no int8 kernels for a variant; None when it runs as what it claims to be.

    An engine takes what is float, and int8 graphs that are annotated for its target.

    Args:
        target: the engine's ``int8_target``.
        traits: of the variant.
    """
    if "float" in traits or (target is not None and f"{MADE_FOR}{target}" in traits):
        return None
    if annotated := sorted(trait.removeprefix(MADE_FOR) for trait in traits if trait.startswith(MADE_FOR)):
        fix = f"target={target} makes one for this engine" if target else "this engine has no int8 kernels"
        return f"its int8 graph is annotated for {annotated[0]}; {fix}"
    return f"this engine has no kernels for a variant that is {', '.join(sorted(traits)) or 'not float'}"


def check_eval(module: nn.Module, key: str = "model") -> None:
    """Raises UserError where a layer is in train mode that answers otherwise there than in eval mode."""
    from torch import nn

    by_mode = (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
        nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU,
    )  # fmt: skip
    if any(inner.training and isinstance(inner, by_mode) for inner in module.modules()):
        raise UserError("the model is in train mode", key=key, fix="model.eval()")


def own_precision(module: nn.Module) -> str:
    """What a module computes in by itself: ``fp32``, ``bf16``, ``fp16`` or ``fp64``, by its first float parameter."""
    import torch

    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    floats = (x.dtype for x in module.parameters() if x.is_floating_point())
    return names.get(next(floats, torch.float32), "fp32")


class Session(Protocol):
    """A variant compiled for one engine and the shapes of its example inputs, which are its fast path."""

    def __call__(self, *inputs: Tensor) -> Any:
        """What the module returns, its tensors on the CPU and in the module's dtypes: a tensor, a tuple, a dict, ..."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the engine really runs: ``int8_share`` (of MACs), precision, compile seconds."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes what `optkit.load` needs to open this session again in a fresh process."""
        ...


class Served(Session, Protocol):
    """A session that stands where a module stood: code that prepares a module for inference does it no harm."""

    def eval(self) -> Self:
        """The session, which is for inference."""
        return self

    def train(self, mode: bool = True) -> Self:
        """The session for ``train(False)``; raises UserError for ``train()``."""
        if mode:
            raise UserError("a session is compiled for inference", key="mode", value=mode, fix="train its module")
        return self

    def to(self, device: str | torch.device) -> Self:
        """The session for the CPU, where it takes and gives tensors; raises UserError for anything else."""
        import torch

        if isinstance(device, (str, torch.device)) and torch.device(device).type == "cpu":
            return self
        fix = "another device is another engine, another precision an option of it"
        raise UserError("a session takes and gives tensors on the CPU", key="device", value=device, fix=fix)


class Engine(ABC):
    """The base of all engines: a dataclass whose fields are its config, each with a default.

    The class attributes say what the rest of optkit must know; no other module asks for an engine's name.

    Attributes:
        name: in recipes, records and saved sessions; the name of its entry point.
        device: ``cpu``, or the type of the torch device that the kernels run on. A session takes and gives tensors on
            the CPU in any case.
        precisions: of the products of a float variant, the default first.
        packages: the distributions that decide how fast it is. They must be installed, records hold their versions, and
            latencies under different versions do not compare.
        int8_target: the int8 target whose graphs it runs in int8 kernels; None for an engine without such kernels.
        channels_last: whether its convolutions read activations ``(N, C, H, W)`` in the order ``(N, H, W, C)``.
        shares_torch_threads: whether its kernels run on torch's own threads, so that a session follows their number.
        fills_batches: whether a batch smaller than the compiled one is filled up to it, and takes as long.
    """

    name: ClassVar[str]
    device: ClassVar[str] = "cpu"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    packages: ClassVar[tuple[str, ...]] = ()
    int8_target: ClassVar[str | None] = None
    channels_last: ClassVar[bool] = False
    shares_torch_threads: ClassVar[bool] = False
    fills_batches: ClassVar[bool] = False

    def unavailable(self) -> str | None:
        """Why this engine does not work on this machine, with the fix; None when it works."""
        absent = [name for name in self.packages if version_of(name) is None]
        return f"{', '.join(absent)} not installed (pip install {' '.join(absent)})" if absent else None

    def unsupported(self, traits: frozenset[str]) -> str | None:
        """Why a variant with these traits cannot run here as what it claims to be; None when it can."""
        return not_made_for(self.int8_target, traits)

    @abstractmethod
    def compile(self, module: nn.Module, variant: Variant, example: tuple[Tensor, ...]) -> Session:
        """Compiles a module for the shapes of example inputs, on torch's number of threads.

        Raises:
            StageError: the engine cannot run this module.
        """

    def for_trials(self) -> Engine:
        """An engine with the same kernels that compiles faster; it times parts of a model against each other."""
        return self


def no_engine(kind: object) -> str | None:
    """Why an object is no class of engines; None for one that is."""
    if not isinstance(kind, type) or not issubclass(kind, Engine):
        return "it is no class that inherits optkit.engines.Engine"
    if not is_dataclass(kind):
        return "its class is no dataclass"
    if missing := [*kind.__abstractmethods__, *(["name"] if not hasattr(kind, "name") else [])]:
        return f"its class has no '{sorted(missing)[0]}'"
    return None


def packages_of(engines: Iterable[Engine | type[Engine]]) -> tuple[str, ...]:
    """The distributions that decide how fast any of these engines is."""
    return tuple(sorted({name for engine in engines for name in engine.packages}))
