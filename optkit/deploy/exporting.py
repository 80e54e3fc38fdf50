"""A variant, or any model, as a folder that runs where there is no optkit."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.engine import MADE_FOR
from optkit.core.errors import UserError
from optkit.core.task import CLASSES
from optkit.deploy.formats import FORMATS, HUGGINGFACE, find_format
from optkit.deploy.script import IMAGES, INFER, TEXTS, scripts
from optkit.deploy.source import Source, of_folder, of_model
from optkit.deploy.target import check_target, new_export

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.core.engine import Engine
    from optkit.deploy.formats import Format

log = logging.getLogger(__name__)
RULES = "preprocess.json"
TESTS = "test"
# registers the operators of int8 graphs, and inductor's int8 kernels for them: without it they run in float, in silence
OPERATORS = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        folder: where it is.
        files: their names in it.
        recorded: the figure of quality that the run recorded on this engine (``metric``, ``value``, ``examples``,
            ``batch_size``); None where there is none.
    """

    folder: Path
    files: tuple[str, ...]
    recorded: Mapping[str, Any] | None

    def summary(self) -> str:
        """What was written, and what to do with it, in a few lines."""
        own = [name for name in self.files if not name.startswith(f"{TESTS}/")]
        tests = len(self.files) - len(own)
        lines = [f"export: {self.folder}", f"files: {', '.join(own)}"]
        if tests:
            lines.append(f"test examples: {self.folder / TESTS} ({tests} files)")
        if self.recorded is not None:
            metric, value = self.recorded["metric"], self.recorded["value"]
            lines.append(
                f"recorded {metric}: {value:.6f} on {self.recorded['examples']} {self.recorded['split']} examples"
            )
        call = f"python {INFER} {TESTS}/test.csv" if tests else f"python {INFER}"
        return "\n".join([*lines, f"try it: cd {shlex.quote(str(self.folder))} && {call}"])


def export(
    model: Any,
    to: str | Path,
    *,
    engine: str | Engine,
    example_inputs: tuple[Tensor, ...] | None = None,
    task: Any = None,
    preprocessing: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    trust: Iterable[str] = (),
    test_files: bool = False,
    force: bool = False,
) -> Exported:
    """Writes a model for one engine, with all that is needed to run it where there is no optkit.

    The folder holds the engine's file with named inputs and outputs, ``preprocess.json``, the script ``infer.py``, a
    model card, and for texts the tokenizer. The folder appears whole or not at all.

    Args:
        model: a variant's folder (``RUN/variants/NAME``), a run's folder (then the last variant of its chain), a module
            in eval mode, or what `quantize_static`, `prune_structured` and the like return.
        to: the folder to write: a new or empty one, or an export of the same variant for the same engine.
        engine: ``onnxruntime``, ``openvino``, ``inductor`` and ``torch`` (both a package of ``torch.export``), or
            ``huggingface`` (a folder for ``from_pretrained``); or one of the first four with its options. Of language
            models also ``compressed-tensors`` (a folder that transformers and vLLM read), ``gguf`` and ``gguf-q8_0``.
        example_inputs: what a module is called with, of any batch size; a variant's folder knows them.
        task: whose preprocessing, class names and test files go with the model; a run's folder knows it.
        preprocessing: of a module without a task, as ``Task.preprocessing`` gives it.
        overrides: of the run's recipe, such as ``task.path=DIR`` where its data have moved.
        trust: what may be called to rebuild a variant, see `optkit.load`; what the run's recipe names needs none.
        test_files: also write the test split, so that ``infer.py`` gives the recorded accuracy.
        force: write into a folder that holds something else: files of the same names are replaced, others stay.

    Raises:
        UserError: a folder that is not to be written to, no variant, an engine that cannot run it or is not installed,
            or a model that transformers cannot express.
        StageError: the engine cannot compile the model, or the disk is full.
    """
    to = Path(to)
    check_target(to, None, force)
    if isinstance(model, (str, Path)):
        source = of_folder(Path(model), overrides, trust, task)
    else:
        source = of_model(model, example_inputs, task)
    name, form = find_format(engine, source.engines)
    if reason := form.refused(source):
        raise UserError(reason, key="engine", value=name, fix=_made_for(source))
    check_target(to, (source.variant.id, name), force)
    if test_files and not hasattr(source.task, "write_test"):
        message = "this task cannot write its test files" if source.task else "the task is not known"
        raise UserError(message, key="test_files", fix="leave it out")
    rules = dict(preprocessing) if preprocessing is not None else preprocessing_of(source.task)
    recorded = _recorded(source, form)
    about: dict[str, Any] = {"name": source.name, "variant": source.variant.id, "engine": name, "recorded": recorded}
    with new_export(to, about) as folder:
        _write(source, name, form, rules, recorded, folder, test_files)
    return Exported(to, tuple(about["files"]), recorded)


def _write(
    source: Source,
    name: str,
    form: Format,
    rules: dict[str, Any],
    recorded: dict[str, Any] | None,
    folder: Path,
    test_files: bool,
) -> None:
    from optkit.core.cache import write_text
    from optkit.core.generation import Generative
    from optkit.deploy.card import card
    from optkit.deploy.language_script import language_scripts

    names = input_names(source)
    metadata = {"optkit_variant": source.variant.id, "preprocess": json.dumps(rules, ensure_ascii=False)}
    if rules.get("classes"):
        metadata["classes"] = json.dumps(rules["classes"], ensure_ascii=False)
    puts = form.write(source, folder, names, metadata)
    rules |= {"inputs": [asdict(put) for put in puts.inputs], "outputs": [asdict(put) for put in puts.outputs]}
    write_text(folder / RULES, json.dumps(rules, indent=1, ensure_ascii=False) + "\n")
    if rules.get("kind") == TEXTS and source.task is not None:
        source.task.save_tokenizer(folder)
    if test_files:
        (folder / TESTS).mkdir()
        source.task.write_test(folder / TESTS)
    classifies = classifies_by(source, rules)
    batch_size = recorded["batch_size"] if recorded else 32
    made = language_scripts(name) if isinstance(source.module, Generative) else None
    if made is None:
        options = _options(source, name, form, folder, rules)
        made = scripts(name, rules, classifies=classifies, batch_size=batch_size, options=options)
    for file, text in made.files.items():
        write_text(folder / file, text)
    described = card(source, name, form, rules, recorded, made, classifies=classifies, tests=test_files)
    described.save(folder / "README.md")


def _made_for(source: Source) -> str | None:
    """The format that an int8 variant is made for, as a fix."""
    targets = (name for name in FORMATS if f"{MADE_FOR}{name}" in source.variant.traits)
    target = next(targets, None)
    return target and f"or export it for {target}"


def preprocessing_of(task: Any) -> dict[str, Any]:
    """What a task says of its preprocessing; a task of another package may say nothing."""
    return dict(task.preprocessing()) if hasattr(task, "preprocessing") else {}


def input_names(source: Source) -> list[str]:
    """Names of the inputs: the task's, or else those of the parameters of the model's forward."""
    import inspect

    count = len(source.example)
    if source.task is not None:
        found = list(source.task.model_defaults().get("inputs") or [])
        if len(found) == count:
            return found
    parameters = inspect.signature(source.module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named[:count] if len(named) >= count else []


def classifies_by(source: Source, rules: Mapping[str, Any]) -> bool:
    """Whether the only output is logits of the classes, one of which is the answer."""
    outputs = rules["outputs"]
    if len(outputs) != 1 or outputs[0]["shape"][1:] != [len(rules.get("classes") or ())]:
        return False
    return source.task is None or source.task.output_kind == CLASSES


def _recorded(source: Source, form: Format) -> dict[str, Any] | None:
    """The first figure of quality that the run recorded on the engine."""
    if source.record is None:
        return None
    names = [name for name, engine in source.engines.items() if engine is form.engine]
    names += [source.record.reference] if form.engine.name == "eager" else []
    own = source.task.conditions().items() if source.task is not None else set()
    on_engine = (m for m in source.record.primary if m.conditions["engine"] in names)
    found = [m for m in on_engine if own <= m.conditions.items()]
    if not found:
        return None
    first = max(found, key=lambda m: m.conditions["batch_size"])
    where = {"split": first.conditions["split"], "batch_size": first.conditions["batch_size"]}
    return {"metric": first.name, "value": first.value, "unit": first.unit, "examples": first.n} | where


def _options(source: Source, name: str, form: Format, folder: Path, rules: Mapping[str, Any]) -> dict[str, str]:
    """What the engine's part of the script is filled with."""
    if name == "onnxruntime":
        # optkit's engine runs such a file so: see optkit/engines/onnxruntime.py
        scaled = b"DynamicQuantizeLinear" in (folder / form.file).read_bytes()
        return {"options": ', disabled_optimizers=["MatMulAddFusion"]' if scaled else ""}
    if name == "openvino":
        from optkit.engines.openvino import PRECISIONS

        return {"precision": PRECISIONS[getattr(form.engine, "precision", "fp32")]}
    if name == HUGGINGFACE:
        return {"auto": f"AutoModelFor{'Image' if rules.get('kind') == IMAGES else 'Sequence'}Classification"}
    return {} if "float" in source.variant.traits else {"operators": OPERATORS}
