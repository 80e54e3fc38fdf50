"""Hugging Face classifiers of texts and images, called like every model here: tensors in, logits out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.trust import builds_saved, is_numeric

if TYPE_CHECKING:
    from torch import nn

IMAGES = ["pixel_values"]


def check_saved_params(params: Mapping[str, Any]) -> None:
    """Raises UserError unless parameters are such as `_skeleton` gives: nothing is fetched, and no other file read."""
    config = params.get("config")
    if params.get("pretrained") is not None or not isinstance(config, Mapping):
        raise UserError("names a hub id or a folder", key="model", fix="a saved model holds its whole config")
    for part in _mappings(config):
        for key, value in part.items():
            # kernels come from the hub as code; timm takes paths of pickled weights among its arguments
            foreign = (
                ("_implementation" in key and value is not None)
                or (key == "architecture" and ":" in str(value))
                or (key == "model_args" and not all(map(is_numeric, dict(value or {}).values())))
            )
            if foreign:
                raise UserError("a saved config names no code and no files", key=f"model.config.{key}", value=value)


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A mapping and those within it."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _mappings(inner)


@builds_saved(check_saved_params)
def huggingface(
    pretrained: str | None = None,
    config: Mapping[str, Any] | str | None = None,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_shape: Sequence[int] | None = None,
    vocab_size: int | None = None,
    pad_token_id: int | None = None,
    max_length: int | None = None,
) -> nn.Module:
    """A Hugging Face model for the classification of texts or of images.

    Args:
        pretrained: hub id or local folder of a model with its weights. If they are of another number of classes, the
            last layer is new.
        config: in place of `pretrained`, random weights: ``model_type`` and the sizes of a config, or the hub id or
            local folder of one.
        inputs: what the task's batches hold; ``pixel_values`` makes it an image classifier.
        num_classes: width of the last layer.
        in_channels, input_shape: of the task's images, for a `config` that does not say.
        vocab_size, pad_token_id, max_length: of the task's tokenizer, for a `config` that does not say; a pretrained
            model must have room for them.

    Raises:
        UserError: no such model, or one that does not fit the task.
    """
    from optkit.models.classifiers import ImageClassifier, TextClassifier

    check_source(pretrained, config)
    of_images = list(inputs) == IMAGES
    sizes = (
        {"num_channels": in_channels, "image_size": input_shape and input_shape[-1]}
        if of_images
        else {"vocab_size": vocab_size, "pad_token_id": pad_token_id}
    )
    wrapper = ImageClassifier if of_images else TextClassifier
    with quietly():
        if isinstance(config, Mapping):
            found = config_of(config, {"num_labels": num_classes, **sizes})
        else:
            found = read_config(str(pretrained or config), num_classes, "pretrained" if pretrained else "config")
        if not of_images:
            check_room(found, vocab_size, max_length, growing=isinstance(config, Mapping))
            if getattr(found, "pad_token_id", None) is None:
                found.pad_token_id = pad_token_id
        model = _build(pretrained, found, of_images)
        if not of_images and max_length is not None and (missing := _missing_places(model, max_length)):
            if not isinstance(config, Mapping):
                fits = max_length - missing
                message, fix = f"the model takes {fits} tokens at most", f"task.max_length={fits}"
                raise UserError(message, key="task.max_length", value=max_length, fix=fix)
            found.max_position_embeddings += missing
            model = _build(pretrained, found, of_images)
        return wrapper(model).eval()


def config_of(given: Mapping[str, Any], of_task: Mapping[str, Any]) -> Any:
    """A config from its fields, those left open filled in from the task."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        fix = did_you_mean(str(kind), CONFIG_MAPPING_NAMES) if kind else "such as bert, distilbert, vit or swin"
        raise UserError(f"no model_type {kind!r}", key="model.config.model_type", value=kind, fix=fix)
    default = AutoConfig.for_model(kind)
    fields = {k: v for k, v in given.items() if k != "model_type"}
    # a recipe's own config is short, one read back from an artifact has every field
    for name in fields:
        if not hasattr(default, name) and "transformers_version" not in fields:
            fix = did_you_mean(name, default.to_dict())
            raise UserError(f"{type(default).__name__} has no '{name}'", key=f"model.config.{name}", fix=fix)
    fill = {k: v for k, v in of_task.items() if v is not None and k not in fields and hasattr(default, k)}
    try:
        return AutoConfig.for_model(kind, **fields, **fill)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"not a config of {kind}: {reason}", key="model.config") from error


def read_config(name: str, num_classes: int | None, key: str) -> Any:
    """The config of a hub id or folder; ``key`` of the model's node named it."""
    from transformers import AutoConfig

    labels = {} if num_classes is None else {"num_labels": num_classes}
    with explained(name, key):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **labels)


def check_source(pretrained: str | None, config: Mapping[str, Any] | str | None) -> None:
    """Raises UserError unless a model is either pretrained or made from a config."""
    if (pretrained is None) == (config is None):
        found = "both are given" if config is not None else "neither is given"
        fix = "a hub id or folder in model.pretrained, or sizes in model.config"
        raise UserError(f"a model is pretrained or made from a config, and {found}", key="model.pretrained", fix=fix)


def check_room(
    config: Any, vocab_size: int | None, max_length: int | None, growing: bool, length: str = "task.max_length={}"
) -> None:
    """Whether a config has room for the task's tokens; one that is made here may grow to hold the texts' length.

    Args:
        config: of the model.
        vocab_size, max_length: of the task; None where it does not say.
        growing: whether the config is made here.
        length: how the task's length is set.
    """
    places = getattr(config, "max_position_embeddings", None)
    if max_length is not None and places is not None and places < max_length:
        if not growing:
            key, fix = length.partition("=")[0], length.format(places)
            raise UserError(f"the model takes {places} tokens at most", key=key, value=max_length, fix=fix)
        config.max_position_embeddings = max_length
    known = getattr(config, "vocab_size", None)
    if vocab_size is not None and known is not None and known < vocab_size:
        message = f"the tokenizer has {vocab_size} tokens, the model knows {known}"
        raise UserError(message, key="task.tokenizer", fix="give the model's own: task.tokenizer=ID or DIR")


def _missing_places(model: Any, max_length: int) -> int:
    """How many more places the longest text needs in a model that counts them from its padding's on (RoBERTa)."""
    from torch import nn

    places = getattr(model.config, "max_position_embeddings", None)
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.num_embeddings == places
        if module.padding_idx is not None
    ]
    return max(0, max_length + max(reserved) - places) if reserved and places is not None else 0


def _build(pretrained: str | None, config: Any, of_images: bool) -> nn.Module:
    import torch
    import transformers as hf

    auto = hf.AutoModelForImageClassification if of_images else hf.AutoModelForSequenceClassification
    known = hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING if of_images else hf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in known:
        message = f"{config.model_type} does not classify {'images' if of_images else 'texts'}"
        raise UserError(message, key="model", value=config.model_type, fix="pick a model and a task that fit")
    if isinstance(classes := known[type(config)], tuple) and not config.architectures and classes[0] is not None:
        config.architectures = [classes[0].__name__]  # DeiT has two, and is not built unless one is chosen
    if pretrained is None:
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with explained(pretrained, "pretrained"):
        return auto.from_pretrained(
            pretrained, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False
        )


@contextmanager
def explained(name: str, key: str) -> Iterator[None]:
    """What transformers raises for a model that it cannot get, as one line that says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = first_line(error)
        fix = f"check the network, or give a local folder: model.{key}=DIR with config.json and model.safetensors"
        raise UserError(f"cannot load '{name}': {reason}", key=f"model.{key}", value=name, fix=fix) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars and its notes on layers that are new."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
