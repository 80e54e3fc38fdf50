"""A folder that OpenVINO GenAI runs: a stateful model and its tokenizer, as OpenVINO's own files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.errors import UserError
from optkit.core.extras import install
from optkit.engines.openvino_paged import windows_of

log = logging.getLogger(__name__)

MODEL, TOKENIZER, DETOKENIZER = "openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def save_genai(
    model: Any,
    folder: Path,
    metadata: Mapping[str, str] | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
) -> Any:
    """Writes what ``openvino_genai.LLMPipeline(folder, "CPU")`` opens.

    Args:
        model: of a session of a language model on OpenVINO (``session.model``); not touched.
        folder: to write into.
        metadata: texts to keep in the file.
        save_tokenizer: writes the model's tokenizer into a folder, as ``save_pretrained`` of transformers does; without
            one the pipeline takes no texts, and the folder is for programs that have tokens.

    Returns:
        The model that was written: of the inputs ``input_ids``, ``attention_mask``, ``position_ids`` where it reads
        them, and ``beam_idx``, and the output ``logits`` of all new tokens.

    Raises:
        UserError: openvino-tokenizers is not installed.
    """
    import openvino as ov

    if save_tokenizer is not None and find_spec("openvino_tokenizers") is None:
        message = f"no tokenizer of OpenVINO's own: openvino_tokenizers not installed ({install('language')})"
        raise UserError(message, key="engine")
    if windows := sorted({window for window in windows_of(model) or () if window is not None}):
        log.warning(
            "OpenVINO GenAI's paged attention drops sliding windows, here of %s tokens: for longer texts, open the "
            'folder with LLMPipeline(folder, "CPU", ATTENTION_BACKEND="SDPA")',
            " and ".join(map(str, windows)),
        )
    folder.mkdir(parents=True, exist_ok=True)
    made = of_all_places(model)
    for key, text in (metadata or {}).items():
        made.set_rt_info(text, ["model_info", key])
    ov.save_model(made, folder / MODEL, compress_to_fp16=False)
    if save_tokenizer is not None:
        save_tokenizer(folder)
        _convert_tokenizer(folder)
    return made


def _convert_tokenizer(folder: Path) -> None:
    """Writes OpenVINO's form of the tokenizer in a folder, and which tokens begin and end a text."""
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    reads, writes = convert_tokenizer(tokenizer, with_detokenizer=True, skip_special_tokens=True)
    ov.save_model(reads, folder / TOKENIZER)
    ov.save_model(writes, folder / DETOKENIZER)
    ends = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {key: value for key, value in ends.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def of_all_places(model: Any) -> Any:
    """The model without the input ``places``: it gives the logits of all new tokens."""
    from openvino import opset13 as ops

    found = model.clone()
    puts = {put.get_any_name(): put for put in found.inputs}
    shape = ops.shape_of(puts["input_ids"], output_type="i64")
    zero, one = (ops.constant(np.int64(n)) for n in (0, 1))
    places = puts["places"].get_node()
    every = ops.range(zero, ops.gather(shape, one, zero), one, output_type="i64")
    for reader in places.output(0).get_target_inputs():
        reader.replace_source_output(every.output(0))
    found.remove_parameter(places)
    found.validate_nodes_and_infer_types()
    return found
