"""What the distillation tests share: a small BERT, and texts of different lengths as a task."""

import csv

import torch

from optkit.models import huggingface
from optkit.tasks import TextFiles

WORDS = "one two three four five six seven eight nine ten cat dog bird fish tree house".split()


def write_texts(folder, count=96):
    """Files of short and long texts whose label is whether they speak of a cat."""
    generator = torch.Generator().manual_seed(0)
    for split, total in (("train", count), ("test", 24)):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for n in range(total):
                length = int(torch.randint(2, 14, (), generator=generator))
                words = [WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist()]
                rows.writerow([" ".join([*words, "cat" if n % 2 else "dog", str(n)]), n % 2])
    return folder


def task_of(folder):
    return TextFiles(path=str(write_texts(folder)), max_length=16, vocab_size=512, validation_share=0.25)


def bert(layers=2, width=16, heads=2, seed=0, **defaults):
    """A BERT for a task's texts."""
    torch.manual_seed(seed)
    config = {
        "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 2 * width, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return huggingface(config=config, **defaults).eval()
