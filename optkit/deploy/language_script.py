"""The script of a language model's export, which continues a text without optkit."""

from __future__ import annotations

from string import Template

from optkit.deploy.script import INFER, Scripts

OF_TRANSFORMERS = '''"""Continues a text with the most likely tokens.

    python infer.py "Once upon a time" [TOKENS]    prints the text and what follows

Needs $needs. Written by optkit.
"""
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
tokenizer = AutoTokenizer.from_pretrained(HERE$file)
model = AutoModelForCausalLM.from_pretrained(HERE$file, dtype="float32").eval()
tokens = tokenizer(sys.argv[1], return_tensors="pt")
limit = int(sys.argv[2]) if len(sys.argv) == 3 else 40
found = model.generate(**tokens, max_new_tokens=limit, do_sample=False)
print(tokenizer.decode(found[0], skip_special_tokens=True))
'''
OF_OPENVINO = '''"""Continues a text with the most likely tokens.

    python infer.py "Once upon a time" [TOKENS]    prints the text and what follows

Needs openvino-genai. Written by optkit.
"""
import sys
from pathlib import Path

import openvino_genai

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
pipeline = openvino_genai.LLMPipeline(Path(__file__).resolve().parent, "CPU")
limit = int(sys.argv[2]) if len(sys.argv) == 3 else 40
print(sys.argv[1] + pipeline.generate(sys.argv[1], max_new_tokens=limit, apply_chat_template=False))
'''
# by format: what transformers needs besides itself, and the file that it is told of
READ_BY_TRANSFORMERS = {
    "huggingface": ((), ""),
    "compressed-tensors": (("compressed-tensors",), ""),
    "gguf": (("gguf",), ', gguf_file="model.gguf"'),
    "gguf-q8_0": (("gguf",), ', gguf_file="model.gguf"'),
}


def language_scripts(engine: str) -> Scripts | None:
    """The script for one format, by its name; None for formats that `optkit.deploy.script` writes for."""
    usage = (('python infer.py "Once upon a time"', "prints the text and what follows"),)
    if engine == "openvino":
        return Scripts({INFER: OF_OPENVINO}, ("openvino-genai",), usage)
    if engine not in READ_BY_TRANSFORMERS:
        return None
    more, file = READ_BY_TRANSFORMERS[engine]
    needs = ("torch", "transformers", *more)
    return Scripts({INFER: Template(OF_TRANSFORMERS).substitute(needs=", ".join(needs), file=file)}, needs, usage)
