"""Model specs: the builder, its arguments, and the source of the first weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.instantiate import TARGET, check_parameters, locate, parameters
from optkit.core.source_digest import code_of_classes, code_of_module

if TYPE_CHECKING:
    from torch import nn

INITIAL_WEIGHTS = ("checkpoint", "weights")


@dataclass(frozen=True)
class ModelSpec:
    """A builder's dotted path and its arguments, as JSON.

    Attributes:
        target: a class or function that returns an ``nn.Module``.
        params: its arguments; one that is None and that the task knows (``optkit.core.task.MODEL_DEFAULTS``) is
            filled in from the task.
        checkpoint: a .safetensors or .pt file with the first weights; None for the builder's own.
    """

    target: str
    params: dict[str, Any]
    checkpoint: str | None = None

    @classmethod
    def from_config(cls, node: Mapping[str, Any], task_defaults: Mapping[str, Any], key: str = "model") -> ModelSpec:
        """The spec of a config node, checked against the builder's signature.

        Raises:
            UserError: no such builder, an argument it does not take, a checkpoint that is not there.
        """
        if TARGET not in node:
            raise UserError("no _target_", key=key, fix="pick a model: model=resnet20_cifar, or give model._target_")
        builder = locate(node[TARGET], f"{key}.{TARGET}")
        params = {name: value for name, value in node.items() if name not in (TARGET, "checkpoint")}
        for name in parameters(builder):
            if name in task_defaults and params.get(name) is None:
                params[name] = task_defaults[name]
        check_parameters(builder, params, key)
        checkpoint = node.get("checkpoint")
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise UserError(f"no file {checkpoint}", key=f"{key}.checkpoint", value=checkpoint, fix="check the path")
        return cls(node[TARGET], params, checkpoint and str(Path(checkpoint).resolve()))

    def build(self, seed: int, key: str = "model") -> nn.Module:
        """A new module with its first weights: random under ``seed``, then the checkpoint's if there is one.

        Raises:
            UserError: a checkpoint that does not fit, or weights that are NaN or infinite.
        """
        import torch

        from optkit.models.weights import check_finite, load_weights

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = locate(self.target, f"{key}.{TARGET}")(**self.params)
        if self.checkpoint:
            load_weights(module, Path(self.checkpoint), f"{key}.checkpoint")
        check_finite(module, key)
        return module

    def skeleton(self, module: nn.Module) -> dict[str, Any]:
        """The spec of the structure alone, for weights that are loaded later; JSON.

        Args:
            module: as built. One whose parameters do not tell its structure (a hub id) has a ``skeleton()`` that does.
        """
        own = getattr(module, "skeleton", None)
        if own is not None:
            return own()
        params = {k: (None if k in INITIAL_WEIGHTS else v) for k, v in self.params.items()}
        return {"target": self.target, "params": params}

    def identity(self, module: nn.Module) -> list[Any]:
        """The identity of a model as built: structure, weights, code; JSON."""
        builder = locate(self.target, TARGET)
        defined = inspect.isroutine(builder) or inspect.isclass(builder)
        home = builder.__module__ if defined else self.target.rpartition(".")[0]
        return [self.skeleton(module), weights_digest(module), {home: code_of_module(home)} | module_code(module)]


def module_code(module: nn.Module) -> dict[str, Any]:
    """What stands for the code that a module and those within it run, by file; torch's own left out."""
    return code_of_classes({type(inner) for inner in module.modules()})


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all tensors of a module by name, hex."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
