"""From the body of a request to the inputs of one example: everything is checked, and nothing of it is executed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import OptkitError, UserError, first_line
from optkit.deploy.script import IMAGES, PREPARE, TEXTS, prepare_text

Arrays = dict[str, NDArray[Any]]
MOST_PIXELS = 50_000_000
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow opens others with programs of other packages
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
COLORS = {"RGB": 3, "L": 1}
FREE = "length"
NUMBERS = {int, float, bool}


class RequestError(OptkitError):
    """A request that cannot be answered, whose sender is told why in one line."""


@dataclass(frozen=True)
class Input:
    """An input of one example.

    Attributes:
        name: of it.
        dtype: ``float32``, ``int64``, ...
        shape: without the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Requests:
    """Reads the requests to one model.

    Args:
        inputs: of one example.
        rules: ``preprocess.json``; without a kind arrays alone are taken.
        folder: that holds the tokenizer.
        max_bytes: of a body.
    """

    def __init__(self, inputs: Sequence[Input], rules: Mapping[str, Any], folder: Path, max_bytes: int):
        self.inputs, self.max_bytes = list(inputs), max_bytes
        self.kind = rules.get("kind")
        self.columns = list(rules.get("columns") or ())
        self._prepare = None if self.kind not in (IMAGES, TEXTS) else _preparation(rules, folder)

    @property
    def accepts(self) -> list[str]:
        """The content types that are taken."""
        raw = {IMAGES: ["image/*"], TEXTS: ["text/plain"] if len(self.columns) == 1 else []}
        return ["application/json", *raw.get(str(self.kind), [])]

    def read(self, body: bytes, content_type: str = "") -> Arrays:
        """The inputs by name, each of one example.

        Args:
            body: of the request.
            content_type: its header; JSON where it is empty.

        Raises:
            RequestError: it is too large, not of a type that is taken, or not what the model takes.
        """
        self.check_size(len(body))
        kind = content_type.partition(";")[0].strip().lower() or "application/json"
        if kind == "application/json":
            return self._of_json(body)
        if kind.startswith("image/") and self.kind == IMAGES:
            return self._of_image(body)
        if kind == "text/plain" and self.kind == TEXTS and len(self.columns) == 1:
            return self._of_text(_decoded(body))
        raise RequestError(f"content type '{kind[:100]}' is not taken", fix=f"one of {', '.join(self.accepts)}")

    def check_size(self, size: int) -> None:
        """Raises RequestError for a body of more bytes than are taken."""
        if size > self.max_bytes:
            raise RequestError(f"the body is too large: more than {self.max_bytes} bytes")

    def _of_json(self, body: bytes) -> Arrays:
        found = _json(_decoded(body))
        if not isinstance(found, dict) or len(found) != 1 or not found.keys() & {"inputs", "text"}:
            also = ', or {"text": ...}' if self.kind == TEXTS else ""
            raise RequestError("not an object with one key, 'inputs'", fix='such as {"inputs": {NAME: [...]}}' + also)
        if "text" in found:
            return self._of_text(found["text"])
        given = found["inputs"]
        if not isinstance(given, dict):
            raise RequestError("'inputs' is not an object of arrays by name", fix=f"names: {self._names()}")
        for name in given:
            if name not in {one.name for one in self.inputs}:
                raise RequestError(f"no input {_short(name)}", fix=f"names: {self._names()}")
        for one in self.inputs:
            if one.name not in given:
                raise RequestError(f"input '{one.name}' is missing")
        return {one.name: _array(one, given[one.name]) for one in self.inputs}

    def _of_text(self, given: object) -> Arrays:
        if self.kind != TEXTS:
            raise RequestError("this model takes no texts", fix='such as {"inputs": {NAME: [...]}}')
        assert self._prepare is not None
        if len(self.columns) > 1:
            whole = isinstance(given, dict) and given.keys() == set(self.columns)
            if not whole or not all(isinstance(text, str) for text in given.values()):  # type: ignore[attr-defined]
                raise RequestError(f"'text' is not an object of the texts {', '.join(self.columns)}")
            return self._prepared(tuple(given[name] for name in self.columns))  # type: ignore[index]
        if not isinstance(given, str):
            raise RequestError("'text' is not a string")
        return self._prepared(given)

    def _of_image(self, body: bytes) -> Arrays:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(body), formats=PICTURES) as picture:
                width, height = picture.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RequestError("not an image that can be read", fix=f"one of {', '.join(PICTURES)}") from error
        if width * height > MOST_PIXELS:
            raise RequestError(f"the image is too large: {width}x{height} pixels", fix=f"at most {MOST_PIXELS} pixels")
        return self._prepared(io.BytesIO(body))

    def _prepared(self, given: Any) -> Arrays:
        """The first row of what the export's own code makes of one file or text."""
        assert self._prepare is not None
        try:
            found = self._prepare([given])
        except SystemExit as error:  # the script's way to refuse a file, which it names first
            raise RequestError(str(error.code).partition(": ")[2]) from None
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            raise RequestError(f"not what the model takes: {first_line(error)}") from error
        return {name: array[0] for name, array in found.items()}

    def _names(self) -> str:
        return ", ".join(one.name for one in self.inputs)


def check_rules(rules: object, where: str) -> Mapping[str, Any]:
    """Raises UserError unless rules of a folder are such as `optkit.export` writes; gives them."""
    if not isinstance(rules, Mapping):
        raise UserError("no rules of preprocessing", key=where)
    checks: Mapping[object, Callable[[Mapping[str, Any]], bool]] = {IMAGES: _of_images, TEXTS: _of_texts}
    try:
        fine = checks.get(rules.get("kind"), lambda _: True)(rules)
    except (KeyError, TypeError, ValueError):
        fine = False
    classes = rules.get("classes") or []
    if not fine or not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError("not rules of preprocessing that this optkit knows", key=where, fix="make the folder again")
    return rules


def _of_images(rules: Mapping[str, Any]) -> bool:
    resize = rules.get("resize") or {}
    channels = COLORS[rules["color"]]
    numbers = [*rules["mean"], *rules["std"]]
    return (
        len(rules["mean"]) == len(rules["std"]) == channels
        and all(isinstance(x, float | int) for x in numbers)
        and len(rules["size"]) == 2
        and all(type(x) is int and 0 < x <= 16_384 for x in rules["size"])
        and isinstance(resize, Mapping)
        and resize.get("filter", "bicubic") in FILTERS
    )


def _of_texts(rules: Mapping[str, Any]) -> bool:
    file = rules["tokenizer"]
    return (
        isinstance(file, str)
        and Path(file).name == file
        and 1 <= len(rules["columns"]) <= 2
        and all(isinstance(name, str) for name in rules["columns"])
        and type(rules["max_length"]) is int
        and rules["truncation"]["side"] in ("left", "right")
    )


def _preparation(rules: Mapping[str, Any], folder: Path) -> Callable[[Sequence[Any]], Arrays]:
    """``prepare`` of the script that an export has, of rules that were checked."""
    names: dict[str, Any] = {"__name__": "prepare", "__file__": str(folder / PREPARE)}
    exec(compile(prepare_text(rules, "optkit.tasks."), PREPARE, "exec"), names)
    prepare: Callable[[Sequence[Any]], Arrays] = names["prepare"]
    return prepare


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8, at byte {error.start}") from error


def _json(text: str) -> object:
    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as error:
        raise RequestError("not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"not JSON: {first_line(error)}") from error


def _array(wanted: Input, given: object) -> NDArray[Any]:
    """An array of the dtype and shape that an input has; integers pass as floats, nothing else as something else."""
    name, dtype = wanted.name, np.dtype(wanted.dtype)
    if not _holds_numbers(given):  # of texts numpy would make an array as wide as the longest
        raise RequestError(f"input '{name}' does not hold numbers of {dtype.name}")
    try:
        found = np.asarray(given)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"input '{name}' is not an array: its rows differ in length") from error
    if found.shape != wanted.shape:
        raise RequestError(f"input '{name}' has shape {list(found.shape)}, and not {list(wanted.shape)}")
    if found.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]:
        raise RequestError(f"input '{name}' does not hold numbers of {dtype.name}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if found.size and (int(found.min()) < limits.min or int(found.max()) > limits.max):
            raise RequestError(f"input '{name}' holds numbers outside {dtype.name}")
    with np.errstate(over="ignore"):
        made = found.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise RequestError(f"input '{name}' holds numbers outside {dtype.name}")
    return made


def _holds_numbers(given: object) -> bool:
    """Whether a nested list has numbers and truth values only."""
    if not isinstance(given, list):
        return type(given) in NUMBERS
    kinds = set(map(type, given))
    return kinds <= NUMBERS or (kinds - {list} <= NUMBERS and all(map(_holds_numbers, given)))


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")
