"""Any torchvision classification builder, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.trust import builds_saved, is_numeric

if TYPE_CHECKING:
    from torch import nn

FORCE_DATA = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # documented by torch.load
DECIDED_BY_WEIGHTS = ("transform_input", "image_size")  # arguments that torchvision's classes keep under their names


def _check_saved(params: Mapping[str, Any]) -> None:
    """Raises UserError for weights to be downloaded: a saved model has its own."""
    if (weights := params.get("weights")) is not None:
        raise UserError("a saved model names no other weights", key="model.weights", value=weights)
    if not isinstance(options := params.get("options") or {}, Mapping):
        raise UserError(f"{options!r} are no options", key="model.options")
    for name, value in options.items():
        if name in ("weights", "weights_backbone") or not is_numeric(value):
            raise UserError("a saved model's options are numbers", key=f"model.options.{name}", value=value)


@builds_saved(_check_saved)
def torchvision(
    name: str, num_classes: int = 1000, weights: str | None = None, options: dict[str, Any] | None = None
) -> nn.Module:
    """The torchvision model ``name`` with ``num_classes`` outputs.

    Args:
        name: a builder of ``torchvision.models`` (``resnet18``, ``vit_b_16``, ...).
        num_classes: width of the last layer.
        weights: None, ``DEFAULT`` or a member of the builder's weights enumeration; downloaded by torchvision. If
            they have another number of classes, the last layer is new.
        options: other arguments of torchvision's builder (``image_size`` of a ViT, ``dropout``, ...).

    Raises:
        UserError: an unknown builder or weights, options it does not take, or weights that could not be fetched.
    """
    from pickle import UnpicklingError

    from torch import hub
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"no torchvision classifier '{name}'", key="model.name", value=name, fix=did_you_mean(name, known)
        )
    builder, options = models.get_model_builder(name), dict(options or {})
    # these two add a training-only auxiliary head unless told otherwise
    auxiliary = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if weights is None:
        arguments = {"num_classes": num_classes, **auxiliary, **_quiet_init(name)}
        return _built(builder, arguments, options)
    enum = models.get_model_weights(name)
    if weights not in [*enum.__members__, "DEFAULT"]:
        fix = did_you_mean(weights, [*enum.__members__, "DEFAULT"])
        raise UserError(f"{name} has no weights '{weights}'", key="model.weights", value=weights, fix=fix)
    try:
        with _data_only():
            model = _built(builder, {"weights": enum[weights]}, options)
    except UnpicklingError as error:
        message = f"the file of {weights} in {hub.get_dir()}/checkpoints is no data: {first_line(error)}"
        raise UserError(message, key="model.weights", value=weights, fix="remove the file") from error
    except OSError as error:
        fix = "check the network, or give model.checkpoint=PATH"
        raise UserError(f"could not fetch: {error}", key="model.weights", value=weights, fix=fix) from error
    if auxiliary:
        model.aux_logits = False
        for head in ("aux1", "aux2", "AuxLogits"):
            setattr(model, head, None) if hasattr(model, head) else None
    if num_classes != len(enum[weights].meta["categories"]):
        _replace_head(model, num_classes)
    decided = {key: getattr(model, key) for key in DECIDED_BY_WEIGHTS if hasattr(model, key)}
    # an attribute, as torchvision's class is to stay what it is; a partial, as lambdas cannot be pickled
    model.skeleton = partial(_skeleton, name, num_classes, options | decided)
    return model


@contextmanager
def _data_only() -> Iterator[None]:
    """Files are read as data within: torchvision's downloads lie in a cache, and torch.hub would run code in them."""
    before = os.environ.get(FORCE_DATA)
    os.environ[FORCE_DATA] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE_DATA)
        if before is not None:
            os.environ[FORCE_DATA] = before


def _skeleton(name: str, num_classes: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What rebuilds a model without its weights, which had decided some of its arguments."""
    params = {"name": name, "num_classes": num_classes, "weights": None, "options": dict(options)}
    return {"target": "optkit.models.torchvision", "params": params}


def _built(builder: Callable[..., Any], arguments: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    try:
        return builder(**arguments, **options)
    except (TypeError, ValueError) as error:
        if not options:
            raise
        fix = "see the arguments of torchvision's builder"
        raise UserError(first_line(error), key="model.options", value=options, fix=fix) from error


def _quiet_init(name: str) -> dict[str, bool]:
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Gives the last linear or 1x1 convolution layer of a classifier a new width and new weights."""
    from torch import nn

    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(head, nn.Linear):
        new: nn.Module = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:
        (height, width), (down, right) = head.kernel_size, head.stride
        new = nn.Conv2d(head.in_channels, num_classes, (height, width), (down, right), bias=head.bias is not None)
    setattr(parent, name.rpartition(".")[2], new)
