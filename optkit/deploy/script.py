"""``infer.py`` and ``prepare.py``: from files to answers with the engine alone, without optkit.

``prepare.py`` makes the model's inputs of files, and ``infer.py`` runs the engine on them. For ONNX Runtime and
OpenVINO neither needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

INFER, PREPARE = "infer.py", "prepare.py"
PIXELS = "rgb.py"  # the copy of optkit/tasks/rgb.py that prepare.py reads images with
TRUNCATION = "truncation.py"  # the copy of optkit/tasks/truncation.py that prepare.py cuts pairs of texts with
IMAGES, TEXTS = "image", "text"

TENSORS = '''

def tensors(found):
    """The tensors of what the model returns, in order."""
    if isinstance(found, torch.Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
'''

SESSIONS = {
    "onnxruntime": """\
session = onnxruntime.InferenceSession(HERE / "model.onnx"$options)


def run(inputs):
    return dict(zip(OUTPUTS, session.run(OUTPUTS, inputs)))
""",
    "openvino": """\
core, compiled = openvino.Core(), {}


def run(inputs):
    full = len(next(iter(inputs.values()))) == $batch_size
    if full not in compiled:
        model = core.read_model(HERE / "model.xml")
        if full:  # as it was measured: kernels for one shape round otherwise than those for any shape
            model.reshape({name: x.shape for name, x in inputs.items()})
        compiled[full] = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "$precision"})
    return dict(zip(OUTPUTS, compiled[full](inputs).values()))
""",
    "torch": """\
model = torch.export.load(HERE / "model.pt2").module()  # may run code of the file: open your own alone
"""
    + TENSORS
    + """

def run(inputs):
    with torch.no_grad():
        found = model(*(torch.from_numpy(x) for x in inputs.values()))
    return dict(zip(OUTPUTS, (x.numpy() for x in tensors(found))))
""",
    "inductor": """\
model = torch.compile(torch.export.load(HERE / "model.pt2").module())  # may run code of the file: open your own alone
"""
    + TENSORS
    + """

def run(inputs):
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):  # int8 kernels need frozen weights
        found = model(*(torch.from_numpy(x) for x in inputs.values()))
    return dict(zip(OUTPUTS, (x.numpy() for x in tensors(found))))
""",
    "huggingface": """\
model = $auto.from_pretrained(HERE).eval()


def run(inputs):
    with torch.no_grad():
        return {"logits": model(**{name: torch.from_numpy(x) for name, x in inputs.items()}).logits.numpy()}
""",
}

CLASSIFY = """

todo, right = list(examples(sys.argv[1:])), []
for start in range(0, len(todo), $batch_size):  # the batch size that it was measured with
    given = todo[start : start + $batch_size]
    logits = run(prepare([example for example, _ in given]))[OUTPUTS[0]]
    for (example, label), row in zip(given, logits):
        answer = CLASSES[row.argmax()]
        if label is None:
            print(example, answer)
        elif label not in CLASSES:
            sys.exit(f"'{label}' is none of the classes in preprocess.json")
        else:
            right.append(answer == label)
if right:
    print(f"accuracy {sum(right) / len(right):.6f} ({sum(right)} of {len(right)})")
"""

SAVE_EACH = """

for path in sys.argv[1:]:
    outputs = run(prepare([path]))
    np.savez(Path(path).stem + ".npz", **outputs)
    print(path, {name: x.shape for name, x in outputs.items()})
"""

SAVE_ALL = """

outputs = run(prepare(sys.argv[1]))
np.savez(sys.argv[2], **outputs)
print({name: x.shape for name, x in outputs.items()})
"""

RULES = """
HERE = Path(__file__).parent
RULES = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
CLASSES = RULES.get("classes")
INPUTS, OUTPUTS = ([put["name"] for put in RULES[side]] for side in ("inputs", "outputs"))
"""

OF_IMAGES = '''

def prepare(paths):
    """The inputs for image files: pixels (N, C, H, W), as the model was measured on."""
    mean, std = (np.array(RULES[key], np.float32)[:, None, None] * 255 for key in ("mean", "std"))
    return {INPUTS[0]: np.stack([(pixels(path) - mean) / std for path in paths])}


def pixels(path):
    """An image, (C, H, W), 0 to 255."""
    with Image.open(path) as opened:
        picture = to_rgb(opened).convert(RULES["color"])
    height, width = RULES["size"]
$fit    return np.asarray(picture, np.float32).reshape(height, width, -1).transpose(2, 0, 1)


def examples(arguments):
    """Image files with their class: of a table (file, label), of a folder of class folders, or None."""
    for path in map(Path, arguments):
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as table:
                yield from ((path.parent / row["file"], row["label"]) for row in csv.DictReader(table))
        elif path.is_dir():
            for file in sorted(file for file in path.glob("*/**/*") if file.suffix.lower() in SUFFIXES):
                parts = file.relative_to(path).parts
                if not any(part.startswith(".") for part in parts):
                    yield file, parts[0]
        else:
            yield path, None
'''

FIT = """\
    picture = fitted(picture, height)
"""
STRETCH = """\
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.$filter)
"""
SAME_SIZE = """\
    if picture.size != (width, height):
        sys.exit(f"{path}: {picture.size[0]}x{picture.size[1]} pixels; the model was measured on {width}x{height}")
"""

OF_TEXTS = '''
TOKENIZER = Tokenizer.from_file(str(HERE / RULES["tokenizer"]))  # it cuts and pads as well
${uncut}csv.field_size_limit(2**31 - 1)  # characters of a text
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def prepare(texts):
    """The inputs for $texts: (N, length) each."""
    found = TOKENIZER.encode_batch(texts)
$inputs

def examples(arguments):
    """Texts with their class: of a table, or None."""
    for argument in arguments:
        if argument.endswith(".csv"):
            with open(argument, newline="", encoding="utf-8-sig") as table:
                for row in csv.DictReader(table):
                    yield $row, row["label"]
        else:
            $alone
'''

CUT_HERE = """\
TOKENIZER.no_truncation()  # of pairs it would keep every piece that it cuts off, with each of the other text's
"""
OF_SINGLES = """\
    return {name: np.array([getattr(x, FIELDS[name]) for x in found], np.int64) for name in INPUTS}
"""
OF_PAIRS = """\
    kept = [kept_tokens(x, RULES["max_length"], RULES["truncation"]["side"]) for x in found]
    inputs = {name: [np.array(getattr(x, FIELDS[name]))[k] for x, k in zip(found, kept)] for name in INPUTS}
    return {name: np.array(rows, np.int64) for name, rows in inputs.items()}
"""

OF_ARRAYS = '''

def prepare(path):
    """The inputs by name, of an .npz file."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in INPUTS}
'''


@dataclass(frozen=True)
class Scripts:
    """The scripts of an export.

    Attributes:
        files: their texts, by name.
        needs: packages that they import.
        usage: what to type, with what comes of it.
    """

    files: Mapping[str, str]
    needs: tuple[str, ...]
    usage: tuple[tuple[str, str], ...]


def scripts(
    engine: str, rules: Mapping[str, Any], *, classifies: bool, batch_size: int, options: Mapping[str, str]
) -> Scripts:
    """Writes the scripts for one model.

    Args:
        engine: the format's name.
        rules: what stands in ``preprocess.json``.
        classifies: whether the model gives logits, the largest of which is the answer.
        batch_size: that the variant was measured with.
        options: what the engine's part is filled with.
    """
    kind = rules.get("kind") if classifies or rules.get("kind") == IMAGES else None
    own = engine if engine in ("onnxruntime", "openvino") else "torch"
    needs = ["numpy", own]
    imported = [f"import {own}"]
    if "operators" in options:
        needs.append("torchao")
        imported.append(f"import {options['operators']}  # its operators, and their int8 kernels")
    if "auto" in options:
        needs.append("transformers")
        imported.append(f"from transformers import {options['auto']}")
    files = {}
    if kind == IMAGES:
        needs.append("pillow")
        files[PIXELS] = pixels_module()
        files[PREPARE] = prepare_text(rules)
    elif kind == TEXTS:
        needs.append("tokenizers")
        if len(rules["columns"]) > 1:
            files[TRUNCATION] = truncation_module()
        files[PREPARE] = prepare_text(rules)
    else:
        files[PREPARE] = _joined("How the model's inputs are read.", ["json"], ["import numpy as np"], [], OF_ARRAYS)
    usage = _usage(kind, rules, classifies)
    body = CLASSIFY if kind and classifies else SAVE_EACH if kind else SAVE_ALL
    names = (
        ["CLASSES", "HERE", "OUTPUTS", "examples", "prepare"] if body == CLASSIFY else ["HERE", "OUTPUTS", "prepare"]
    )
    files[INFER] = "\n".join(
        [
            f'"""{_title(kind, classifies)}',
            "",
            *(f"    {call:{max(len(call) for call, _ in usage)}}    {what}" for call, what in usage),
            "",
            f"Needs {', '.join(needs)}. Written by optkit.",
            '"""',
            "import sys",
            *(["from pathlib import Path"] if body == SAVE_EACH else []),
            "",
            *([] if body == CLASSIFY else ["import numpy as np"]),
            *imported,
            "",
            f"from prepare import {', '.join(names)}",
            "",
            *(
                ["if len(sys.argv) < 2:", "    sys.exit(__doc__)"]
                if kind
                else ["if len(sys.argv) != 3:", "    sys.exit(__doc__)"]
            ),
            Template(SESSIONS[engine] + body).substitute(options, batch_size=batch_size).rstrip("\n"),
            "",
        ]
    )
    return Scripts(files, tuple(needs), usage)


def prepare_text(rules: Mapping[str, Any], package: str = "") -> str:
    """The text of `PREPARE` for images or texts.

    Args:
        rules: what stands in ``preprocess.json``, with its ``kind``.
        package: where the modules are that it imports, with a dot behind it; by default beside it.
    """
    return _of_images(rules, package) if rules["kind"] == IMAGES else _of_texts(rules, package)


def _of_images(rules: Mapping[str, Any], package: str) -> str:
    from optkit.tasks.image_listing import SUFFIXES

    resize = rules.get("resize") or {}
    fit = FIT if "shorter_side" in resize else STRETCH if "stretch" in resize else SAME_SIZE
    fit = Template(fit).substitute(filter=str(resize.get("filter")).upper())
    body = f"SUFFIXES = {SUFFIXES}\n" + Template(OF_IMAGES).substitute(fit=fit)
    standard = ["csv", "json", *(["sys"] if fit == SAME_SIZE else [])]
    third = ["import numpy as np", "from PIL import Image"]
    local = f"from {package}rgb import {'fitted, ' if fit == FIT else ''}to_rgb"
    return _joined("From image files to the model's inputs.", standard, third, [local], body)


def _of_texts(rules: Mapping[str, Any], package: str) -> str:
    columns = rules["columns"]
    row = ", ".join(f'row["{name}"]' for name in map(_escaped, columns))
    pairs = len(columns) > 1
    alone = 'sys.exit(f"{argument}: pairs of texts come in a table")' if pairs else "yield argument, None"
    body = Template(OF_TEXTS).substitute(
        texts="pairs of texts" if pairs else "texts",
        uncut=CUT_HERE if pairs else "",
        inputs=OF_PAIRS if pairs else OF_SINGLES,
        row=f"({row})" if pairs else row,
        alone=alone,
    )
    standard = ["csv", "json", *(["sys"] if pairs else [])]
    third = ["import numpy as np", "from tokenizers import Tokenizer"]
    local = [f"from {package}truncation import kept_tokens"] if pairs else []
    return _joined("From texts to the model's inputs.", standard, third, local, body)


def _joined(title: str, standard: list[str], third: list[str], local: list[str], body: str) -> str:
    imports = [*(f"import {name}" for name in standard), "from pathlib import Path", "", *third]
    imports += ["", *local] if local else []
    return f'"""{title} Written by optkit."""\n\n' + "\n".join(imports) + "\n" + RULES + body


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _title(kind: str | None, classifies: bool) -> str:
    if kind is None:
        return "Runs the model on arrays: how files become its inputs is not known."
    return f"Classifies {kind}s." if classifies else f"Runs the model on {kind}s."


def _usage(kind: str | None, rules: Mapping[str, Any], classifies: bool) -> tuple[tuple[str, str], ...]:
    if kind is None:
        return (("python infer.py INPUTS.npz OUTPUTS.npz", "arrays by their names in preprocess.json"),)
    if not classifies:
        return (("python infer.py IMAGE...", "the outputs of each, as IMAGE.npz here"),)
    if kind == IMAGES:
        return (
            ("python infer.py IMAGE...", "the class of each image"),
            ("python infer.py FOLDER", "the accuracy on a folder of class folders"),
            ("python infer.py TABLE.csv", "the accuracy on a table with the columns file and label, a class name"),
        )
    table = (
        "python infer.py TABLE.csv",
        f"the accuracy on a table with the columns {', '.join(rules['columns'])} and label, a class name",
    )
    return (table,) if len(rules["columns"]) > 1 else (('python infer.py "a text"...', "the class of each text"), table)


def pixels_module() -> str:
    """The text of `PIXELS`: the very code that tasks prepare their images with."""
    from optkit.tasks import rgb

    return Path(str(rgb.__file__)).read_text(encoding="utf-8")


def truncation_module() -> str:
    """The text of `TRUNCATION`: the very code that tasks cut their texts with."""
    from optkit.tasks import truncation

    return Path(str(truncation.__file__)).read_text(encoding="utf-8")
