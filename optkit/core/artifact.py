"""Variants on disk: weights as safetensors, everything else as JSON; never a pickled module.

A folder holds ``variant.json`` (the model spec, the surgeries that turn a fresh model into this variant, its history),
``weights.safetensors``, and for an int8 variant ``probe.safetensors`` (`optkit.core.probe`). Loading builds the fresh
model, replays the surgeries without data, and loads the weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.checksums import ENTRY, damage
from optkit.core.compat.versions import version_of
from optkit.core.errors import OptkitError, UserError, first_line
from optkit.core.probe import PROBE_FILE, load_probe, save_probe
from optkit.core.surgeries import FORMAT_1
from optkit.core.trust import check_trust, rebuild, stage_class
from optkit.core.variant import Variant

VARIANT, WEIGHTS = "variant.json", "weights.safetensors"
FILES = (VARIANT, WEIGHTS, PROBE_FILE)  # of which the last may be absent
FORMAT = 2
MADE_WITH = ("optkit", "torch", "torchvision", "torchao", "transformers")  # their versions decide what a replay gives
# what a replay raises where a graph has other nodes, or a model other members, than when it was saved
FAILURES = (OptkitError, RuntimeError, LookupError, AttributeError, TypeError, ValueError)


@dataclass(frozen=True)
class InputSpec:
    """Shape and dtype of one input, batch dimension included."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, x: Tensor) -> InputSpec:
        return cls(tuple(x.shape), str(x.dtype).removeprefix("torch."))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputSpec:
        """The spec that ``asdict`` gave; raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(getattr(torch, data["dtype"], None), torch.dtype):
            raise ValueError(f"no dtype {data['dtype']!r}")
        shape = tuple(torch.Size(data["shape"]))
        if min(shape, default=0) < 0:
            raise ValueError(f"no shape {list(shape)}")
        return cls(shape, data["dtype"])

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Artifact:
    """A saved variant: its description, its inputs, where its weights are, and the versions that it was saved with."""

    variant: Variant
    inputs: tuple[InputSpec, ...]
    folder: Path
    made_with: Mapping[str, str | None] = field(default_factory=dict)

    def module(self, trusted: Iterable[str] = ()) -> nn.Module:
        """The module, in eval mode. What the store wrote is checked: see `optkit.core.checksums`.

        Args:
            trusted: names of what may be called to rebuild it, besides optkit's models and stages: see
                `optkit.core.trust`.

        Raises:
            UserError: its files are damaged, it names code that is not trusted, or these versions of torch and others
                do not give the structure that was saved; the message names both versions.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        trusted = check_trust(trusted)
        self._check_files()
        example = tuple(spec.zeros() for spec in self.inputs)
        with torch.random.fork_rng(devices=[]):
            module = rebuild(self.variant.model, trusted)
            for surgery in self.variant.surgeries:
                stage = stage_class(surgery["by"], trusted)
                with self._by_version():
                    module = stage.replay(module, surgery["data"], example)
        try:
            with self._by_version():
                load_model(module, self.folder / WEIGHTS)
            load_probe(module, self.folder)
        except SafetensorError as error:
            raise UserError(f"damaged: {error}", key=str(self.folder), fix="make it again") from error
        return module.eval()

    def _check_files(self) -> None:
        """Raises UserError if its files are not those that were saved; a file is hashed once a process."""
        if wrong := damage(self.folder):
            raise UserError(f"damaged: {wrong}", key=str(self.folder), fix="make it again")

    @contextmanager
    def _by_version(self) -> Iterator[None]:
        """What fails inside names the packages that had another version when the variant was saved."""
        try:
            yield
        except FAILURES as error:
            here = {name: version_of(name) for name in MADE_WITH if name in self.made_with}
            if not (other := [name for name in here if here[name] != self.made_with[name]]):
                raise
            was, now = (", ".join(f"{name} {of[name] or '(none)'}" for name in other) for of in (self.made_with, here))
            reason = error.message if isinstance(error, OptkitError) else first_line(error)
            message = f"{reason}; it was saved with {was}, and this is {now}"
            fix = "install the versions that it was saved with, or make it again"
            raise UserError(message, key=str(self.folder), fix=fix) from error

    def weights_digest(self) -> str:
        """SHA-256 of the file of its weights, hex."""
        with (self.folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def size_bytes(self) -> int:
        """What it takes on disk to run this variant."""
        return sum((self.folder / name).stat().st_size for name in (VARIANT, WEIGHTS))


def save_artifact(folder: Path, variant: Variant, module: nn.Module, example: tuple[Tensor, ...]) -> Artifact:
    """Writes a variant into an existing folder."""
    from safetensors.torch import save_model

    inputs = tuple(InputSpec.of(x) for x in example)
    (folder / ENTRY).unlink(missing_ok=True)  # of what was saved there before
    save_model(module, str(folder / WEIGHTS))
    save_probe(module, folder)
    made_with = {name: version_of(name) for name in MADE_WITH}
    description = {
        "format": FORMAT,
        "made_with": made_with,
        "inputs": [asdict(spec) for spec in inputs],
        "variant": variant.to_json(),
    }
    (folder / VARIANT).write_text(json.dumps(description, indent=1) + "\n")
    for name in FILES:  # safetensors lets only its owner read what it writes
        if (folder / name).is_file():
            shutil.copymode(folder / VARIANT, folder / name)
    return Artifact(variant, inputs, folder, made_with)


def open_artifact(folder: Path) -> Artifact:
    """Reads a variant's description; the weights are read when its module is asked for.

    Raises:
        UserError: the folder holds no variant, or one of another format.
    """
    path = folder / VARIANT
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"no variant at {folder}", fix=_where_variants_are(folder))
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        if description["format"] not in (1, FORMAT):
            message = f"written in format {description['format']}, this optkit reads 1 to {FORMAT}"
            raise UserError(message, key=str(path), fix="open it with the version of optkit that wrote it")
        inputs = tuple(InputSpec.from_json(spec) for spec in description["inputs"])
        variant = Variant.from_json(description["variant"])
        if description["format"] == 1:
            variant = replace(variant, surgeries=tuple(map(_named, variant.surgeries)))
        return Artifact(variant, inputs, folder, dict(description.get("made_with", {})))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a variant: {error}", key=str(path)) from error


def _where_variants_are(folder: Path) -> str:
    """What to give instead of a folder that holds no variant: the variants below it, if it is a run's."""
    for variants in (folder / "variants", folder):
        names = sorted((path.parent.name for path in variants.glob(f"*/{VARIANT}")), key=_by_number)
        if names:
            return f"its variants: {', '.join(str(variants / name) for name in names)}"
    return f"give a folder with {VARIANT} and {WEIGHTS}, such as a run's variants/NAME"


def _by_number(name: str) -> tuple[int, str]:
    number = name.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, name)


def _named(surgery: dict[str, Any]) -> dict[str, Any]:
    """A surgery of format 1, which held a module path, under the name that it has now."""
    return surgery | {"by": FORMAT_1.get(surgery["by"], surgery["by"])}
