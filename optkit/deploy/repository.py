"""A variant as a model repository of a server: OpenVINO Model Server, or Triton Inference Server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.cache import write_text
from optkit.core.checks import check_choice, check_count
from optkit.core.errors import UserError
from optkit.deploy.exporting import RULES, Exported, input_names, preprocessing_of
from optkit.deploy.formats import Format, Put, Puts, find_format
from optkit.deploy.source import of_folder
from optkit.deploy.target import check_target, new_export

if TYPE_CHECKING:
    from optkit.core.engine import Engine

OVMS, TRITON = "ovms", "triton"
SERVERS = (OVMS, TRITON)
VERSION = "1"
# https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
TYPES = {
    "float32": "TYPE_FP32", "float64": "TYPE_FP64", "float16": "TYPE_FP16", "int64": "TYPE_INT64",
    "int32": "TYPE_INT32", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL",
}  # fmt: skip


class Enum(str):
    """A name of a protocol buffer's enumeration, which stands without quotes."""


def export_repository(
    variant: str | Path,
    to: str | Path,
    *,
    server: str,
    engine: str | Engine,
    max_batch: int = 1,
    max_wait_ms: float = 0.0,
    instances: int = 1,
    threads: int = 1,
    overrides: Sequence[str] = (),
    trust: Iterable[str] = (),
    force: bool = False,
) -> Exported:
    """Writes a model repository: the engine's file, and the server's own config with batches as they were chosen.

    Args:
        variant: a variant's folder, or a run's (then the last variant of its chain).
        to: the folder to write, as in `export`.
        server: ``ovms`` (a model in OpenVINO's format), or ``triton`` (in OpenVINO's, or ONNX).
        engine: that runs it, as in `export`.
        max_batch: the most requests in a batch.
        max_wait_ms: how long a request waits for others.
        instances: copies of the model that serve at the same time.
        threads: of each.
        overrides, trust, force: as in `export`.

    Raises:
        UserError: a server that does not run this engine's files, or as in `export`.
        StageError: as in `export`.
    """
    to = Path(to)
    check_choice("server", server, SERVERS)
    for key, value in {"max_batch": max_batch, "instances": instances, "threads": threads}.items():
        check_count(key, value)
    check_target(to, None, force)
    source = of_folder(Path(variant), overrides, trust, None)
    name, form = find_format(engine, source.engines)
    if not (form.ovms if server == OVMS else form.triton):
        raise UserError(f"{server} does not run the files of {name}", key="engine", value=name, fix=_fix(server))
    if reason := form.refused(source):
        raise UserError(reason, key="engine", value=name)
    _check_module(source.module)
    check_target(to, (source.variant.id, name), force)
    model = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name)
    rules = preprocessing_of(source.task)
    about: dict[str, Any] = {"name": source.name, "variant": source.variant.id, "engine": name, "recorded": None}
    with new_export(to, about) as folder:
        inside = folder / model / VERSION
        inside.mkdir(parents=True)
        puts = form.write(source, inside, input_names(source), {"optkit_variant": source.variant.id})
        rules |= {"inputs": [asdict(put) for put in puts.inputs], "outputs": [asdict(put) for put in puts.outputs]}
        write_text(folder / RULES, json.dumps(rules, indent=1, ensure_ascii=False) + "\n")
        options = form.server_options(inside)
        numbers = (max_batch, max_wait_ms, instances, threads)
        if server == OVMS:
            write_text(folder / "config.json", json.dumps(_ovms(model, options, *numbers), indent=1) + "\n")
        else:
            write_text(folder / model / "config.pbtxt", pbtxt(_triton(model, form, options, puts, *numbers)))
    return Exported(to, tuple(about["files"]), None)


def _check_module(module: Any) -> None:
    from optkit.core.generation import Generative

    if isinstance(module, Generative):
        fix = "leave --repository out"
        raise UserError("a repository holds no language models", key="repository", fix=fix)


def _fix(server: str) -> str:
    from optkit.deploy.formats import FORMATS

    own = [name for name, (kind, _) in FORMATS.items() if (kind.ovms if server == OVMS else kind.triton)]
    return f"--engine {' or '.join(own)}"


def _ovms(
    model: str, own: Mapping[str, str], max_batch: int, max_wait_ms: float, instances: int, threads: int
) -> dict[str, Any]:
    """``config.json``: requests of one example each, which the batching device of OpenVINO gathers."""
    options: dict[str, Any] = {"NUM_STREAMS": str(instances), "INFERENCE_NUM_THREADS": instances * threads}
    config: dict[str, Any] = {"name": model, "base_path": model, "batch_size": "1", "target_device": "CPU"}
    if max_batch > 1:
        config["target_device"] = f"BATCH:CPU({max_batch})"
        options["AUTO_BATCH_TIMEOUT"] = max(1, math.ceil(max_wait_ms))
        config["nireq"] = 2 * instances * max_batch
    return {"model_config_list": [{"config": config | {"plugin_config": options | dict(own)}}]}


def _triton(
    model: str,
    form: Format,
    own: Mapping[str, str],
    puts: Puts,
    max_batch: int,
    max_wait_ms: float,
    instances: int,
    threads: int,
) -> dict[str, Any]:
    """The message ``ModelConfig``."""
    assert form.triton is not None
    options = {form.triton_threads: str(threads), **own}
    return {
        "name": model,
        "backend": form.triton,
        "max_batch_size": max_batch,
        "input": [_described(put) for put in puts.inputs],
        "output": [_described(put) for put in puts.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(1e3 * max_wait_ms)},
        "instance_group": [{"count": instances, "kind": Enum("KIND_CPU")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in options.items()],
    }


def _described(put: Put) -> dict[str, Any]:
    """An input or output without its batch; a size that stays free is -1."""
    if put.dtype not in TYPES:
        raise UserError(f"'{put.name}' is of {put.dtype}, which Triton does not know", key="engine")
    if not put.shape or isinstance(put.shape[0], int):
        message = f"'{put.name}' has no row for each example, so requests cannot share a batch"
        raise UserError(message, key="repository", fix="export it without --repository")
    dims = [size if isinstance(size, int) else -1 for size in put.shape[1:]]
    # a number for each example has no dimension of its own, which Triton does not allow
    found: dict[str, Any] = {"name": put.name, "data_type": Enum(TYPES[put.dtype]), "dims": dims or [1]}
    return found if dims else found | {"reshape": {"shape": []}}


def pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in the text format of protocol buffers, without comments."""
    lines = []
    for key, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{key} {{\n{pbtxt(one, f'{indent}  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, str) and not isinstance(value, Enum):
        return json.dumps(value)
    return str(value)
