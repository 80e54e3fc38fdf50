"""A small model, texts of few words, and their tokenizer."""

import numpy as np
import pytest

SPECIAL = ["[PAD]", "[UNK]"]
WORDS = [f"w{n}" for n in range(30)]


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder with ``train.txt``, ``validation.txt`` and ``test.txt``, and a tokenizer of their words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder, random = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for name, words in (("train", 400), ("validation", 100), ("test", 200)):
        (folder / f"{name}.txt").write_text(" ".join(random.choice(WORDS, words)) + "\n")
    vocabulary = {word: n for n, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder
