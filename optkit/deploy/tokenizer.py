"""The tokenizer of a model's task, in the folder that the model is exported to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optkit.deploy.json_files import update_fields

if TYPE_CHECKING:
    from optkit.deploy.source import Source

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_tokenizer(source: Source, folder: Path) -> None:
    """Writes the tokenizer beside a model of transformers; does nothing where the task has none.

    A model that was built from a config with random weights has that config's numbers for the tokens that begin and end
    a text, which belong to another tokenizer: the files of the folder get those of its own.
    """
    if not hasattr(source.task, "save_tokenizer"):
        return
    source.task.save_tokenizer(folder)
    params = source.variant.model.get("params", {})
    if params.get("config") is None or params.get("pretrained") is not None:
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for name in ("config.json", "generation_config.json"):
        if (path := folder / name).is_file():
            update_fields(path, {key: getattr(tokenizer, key) for key in TOKENS})
