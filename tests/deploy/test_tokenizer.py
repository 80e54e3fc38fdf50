"""What an exported model of a config says of the tokens that begin and end a text."""

import json
from types import SimpleNamespace

import pytest

from optkit.core.variant import Variant
from optkit.deploy.tokenizer import write_tokenizer
from optkit.tasks.tokens import trained_on_documents

TEXTS = ["the heron stood in the cold water", "a small grey fish did not move at all"] * 40


@pytest.mark.parametrize(
    ("params", "is_replaced"),
    [
        ({"config": {"model_type": "llama"}}, True),
        ({"pretrained": "org/model", "config": None}, False),
        ({}, False),
    ],
)
def test_a_model_of_a_config_has_the_ends_of_its_own_tokenizer(tmp_path, params, is_replaced):
    hf = trained_on_documents(TEXTS, "ends", 300).hf
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": 77, "kept": 1}))
    variant = Variant("v", None, frozenset({"float"}), {"target": "causal_lm", "params": params})
    task = SimpleNamespace(save_tokenizer=lambda folder: hf.save_pretrained(str(folder)))
    write_tokenizer(SimpleNamespace(task=task, variant=variant), tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    for name in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / name).read_text())
        assert said["kept"] == 1
        assert said["eos_token_id"] == (hf.eos_token_id if is_replaced else 77)
    assert hf.eos_token_id != 77


def test_a_task_without_a_tokenizer_leaves_the_folder_as_it_is(tmp_path):
    write_tokenizer(SimpleNamespace(task=None, variant=None), tmp_path)
    assert not list(tmp_path.iterdir())
