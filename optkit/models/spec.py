"""Model specs: the builder, its arguments, and the source of the first weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.instantiate import TARGET, call, check_parameters, locate, parameters
from optkit.core.source_digest import code_of_classes, code_of_module
from optkit.core.task import MODEL_DEFAULTS
from optkit.core.trust import check_trust

if TYPE_CHECKING:
    from torch import nn

    from optkit.core.artifact import Artifact

INITIAL_WEIGHTS = ("checkpoint", "weights")
VARIANT, TRUST = "variant", "trust"
FLOAT = frozenset({"float"})


@dataclass(frozen=True)
class ModelSpec:
    """A builder's dotted path and its arguments, as JSON.

    Attributes:
        target: a class or function that returns an ``nn.Module``.
        params: its arguments; one that is None and that the task knows (``optkit.core.task.MODEL_DEFAULTS``) is
            filled in from the task.
        checkpoint: a .safetensors or .pt file with the first weights; None for the builder's own.
        variant: the folder of a saved variant that the model is, cut, masked or quantized as it may be; target and
            params are then those of the fresh model that it was made of. None for a fresh model.
        trust: what that variant may name besides optkit's models and stages, as for `optkit.load`.
    """

    target: str
    params: dict[str, Any]
    checkpoint: str | None = None
    variant: str | None = None
    trust: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, node: Mapping[str, Any], task_defaults: Mapping[str, Any], key: str = "model") -> ModelSpec:
        """The spec of a config node, checked against the builder's signature.

        Raises:
            UserError: no such builder, an argument it does not take, a checkpoint that is not there.
        """
        if TARGET not in node and node.get(VARIANT) is not None:
            return cls._of_variant(node, key)
        if TARGET not in node:
            raise UserError("no _target_", key=key, fix="pick a model: model=resnet20_cifar, or give model._target_")
        builder = locate(node[TARGET], f"{key}.{TARGET}")
        params = {name: value for name, value in node.items() if name not in (TARGET, "checkpoint")}
        for name in parameters(builder):
            if name in task_defaults and params.get(name) is None:
                params[name] = task_defaults[name]
        check_parameters(builder, params, key)
        for name, parameter in parameters(builder).items():
            if name in MODEL_DEFAULTS and parameter.default is not None and params.get(name, parameter.default) is None:
                message = f"{builder.__name__} needs it, and the task does not say it"
                raise UserError(message, key=f"{key}.{name}", fix=f"set {key}.{name}=...")
        checkpoint = node.get("checkpoint")
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise UserError(f"no file {checkpoint}", key=f"{key}.checkpoint", value=checkpoint, fix="check the path")
        return cls(node[TARGET], params, checkpoint and str(Path(checkpoint).resolve()))

    @classmethod
    def _of_variant(cls, node: Mapping[str, Any], key: str) -> ModelSpec:
        for name, value in node.items():
            if name not in (VARIANT, TRUST) and value is not None:
                message = f"unknown key; a model that starts from a variant takes no '{name}'"
                raise UserError(message, key=f"{key}.{name}", value=value, fix=f"it takes {VARIANT} and {TRUST}")
        artifact = open_start(node, key)
        assert artifact is not None
        try:
            trust = check_trust(node.get(TRUST) or ())
        except UserError as error:
            raise UserError(error.message, key=f"{key}.{error.key}", value=error.value, fix=error.fix) from error
        model = artifact.variant.model
        return cls(str(model.get("target")), model.get("params", {}), None, str(artifact.folder.resolve()), trust)

    def start(self) -> Artifact | None:
        """The variant that the model is; None for a fresh model."""
        from optkit.core.artifact import open_artifact

        return None if self.variant is None else open_artifact(Path(self.variant))

    def build(self, seed: int, key: str = "model") -> nn.Module:
        """A new module with its first weights: random under ``seed``, then the checkpoint's if there is one.

        Raises:
            UserError: a checkpoint that does not fit, or weights that are NaN or infinite.
        """
        import torch

        from optkit.models.weights import check_finite, load_weights

        if (artifact := self.start()) is not None:
            try:
                module = artifact.module(self.trust)
            except UserError as error:
                where = f"{key}.{VARIANT}"
                message = f"{artifact.folder}: {error.message}"
                fix = error.fix and error.fix.removesuffix("to trust") + f"to {key}.{TRUST}"
                raise UserError(message, key=where, value=self.variant, fix=fix) from error
            check_finite(module, key)
            return module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = call(locate(self.target, f"{key}.{TARGET}"), self.params)
        if self.checkpoint:
            load_weights(module, Path(self.checkpoint), f"{key}.checkpoint")
        check_finite(module, key)
        return module

    def skeleton(self, module: nn.Module) -> dict[str, Any]:
        """The spec of the structure alone, for weights that are loaded later; JSON.

        Args:
            module: as built. One whose parameters do not tell its structure (a hub id) has a ``skeleton()`` that does.
        """
        if (artifact := self.start()) is not None:
            return artifact.variant.model
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
        artifact = self.start()
        weights = weights_digest(module) if artifact is None else [artifact.variant.id, artifact.weights_digest()]
        return [self.skeleton(module), weights, {home: code_of_module(home)} | module_code(module)]


def open_start(node: Mapping[str, Any], key: str = "model") -> Artifact | None:
    """The variant that a model's config node starts from; None for a fresh model.

    Raises:
        UserError: there is none in that folder.
    """
    if TARGET in node or node.get(VARIANT) is None:
        return None
    from optkit.core.artifact import open_artifact

    try:
        return open_artifact(Path(str(node[VARIANT])).expanduser())
    except UserError as error:
        where = f"{error.key}: " if error.key else ""
        message = f"{where}{error.message}"
        raise UserError(message, key=f"{key}.{VARIANT}", value=node[VARIANT], fix=error.fix) from error


def start_traits(node: Mapping[str, Any]) -> frozenset[str]:
    """What is true of the model of a config node before any stage. Raises UserError as `open_start`."""
    artifact = open_start(node)
    return FLOAT if artifact is None else artifact.variant.traits


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
