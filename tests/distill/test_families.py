"""Hidden states and attention of the families of transformers: a shorter student against its teacher."""

import copy

import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.task import CLASSES, Batch
from optkit.distill import DistillationObjective
from optkit.distill.terms import read_terms
from optkit.models import ImageClassifier, TextClassifier
from optkit.prune import prune_depth
from scripts.prune_cases import transformer_cases

TEXTS = ["bert", "roberta", "distilbert", "electra", "mpnet", "deberta_v2"]
IMAGES = ["vit", "deit", "swin"]
SHOWN = ["bert", "roberta", "distilbert", "electra", "vit", "deit"]  # their attention is scaled_dot_product_attention


class _Task:
    """As much of a task as an objective asks for."""

    output_kind = CLASSES

    def __init__(self, inputs):
        self.inputs = inputs

    def batches(self, split, batch_size):
        yield Batch(self.example(batch_size), torch.zeros(batch_size).long(), torch.arange(batch_size))

    def example(self, batch_size):
        return tuple(x[:batch_size] for x in self.inputs.values())

    def model_defaults(self):
        return {"inputs": list(self.inputs)}

    def forward(self, module, batch):
        return module(*batch.inputs)


@pytest.fixture(scope="module")
def cases():
    torch.manual_seed(0)
    return transformer_cases()


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_a_shorter_student_is_compared_with_its_teacher(cases, name):
    make, inputs = cases[name]
    inputs = {n: x.clone() for n, x in inputs.items()}
    if name in TEXTS:
        inputs["attention_mask"][1, 9:] = 0
    torch.manual_seed(0)
    teacher = (TextClassifier if name in TEXTS else ImageClassifier)(make()).eval()
    task = _Task(inputs)
    student = prune_depth(teacher, task.example(2), amount=0.5, by="position").module
    losses = {"hidden": 1.0, "attention": 1.0}
    batch = Batch(task.example(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    with DistillationObjective(task, student, teacher, read_terms(losses, None, 4.0), alpha=1.0) as objective:
        loss = objective(student, batch)
        loss.backward()
    assert loss.item() > 0
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    same = copy.deepcopy(teacher)
    with DistillationObjective(task, same, teacher, read_terms(losses, None, 4.0), alpha=1.0) as objective:
        assert objective(same, batch).item() == pytest.approx(0, abs=1e-9)
    if name in SHOWN:
        DistillationObjective(task, student, teacher, read_terms({"relations": 1.0}, None, 4.0), alpha=1.0)
    elif name == "deberta_v2":
        with pytest.raises(UserError, match=r"losses.relations: .*without scaled_dot_product_attention"):
            DistillationObjective(task, student, teacher, read_terms({"relations": 1.0}, None, 4.0), alpha=1.0)
