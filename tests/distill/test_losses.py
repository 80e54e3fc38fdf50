import torch

from optkit.core.task import SealedTask
from optkit.distill import DistillationObjective, kd_loss
from optkit.distill.terms import read_terms


def test_kd_is_the_textbook_sum():
    torch.manual_seed(0)
    student, teacher, temperature = torch.randn(5, 7), torch.randn(5, 7), 3.0
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(-1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(-1, keepdim=True)
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(kd_loss(student, teacher, temperature), expected)


def test_kd_of_equal_logits_is_zero_and_flat():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = kd_loss(logits, logits.detach().clone(), 2.0)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)


def test_at_high_temperature_the_gradient_is_the_difference_of_centred_logits():
    # Hinton et al. (2015), section 2.1
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 5).double().requires_grad_(), torch.randn(1, 5).double()
    kd_loss(student, teacher, 1e4).backward()
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centred.detach() / 5, atol=1e-4, rtol=1e-3)


def test_no_gradient_reaches_the_teacher():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    kd_loss(student, teacher, 1.0).backward()
    assert teacher.grad is None


def test_the_objective_weighs_teacher_and_labels(digits, mlp):
    import copy

    teacher = copy.deepcopy(mlp)
    torch.nn.init.normal_(teacher.layers[1].weight, std=0.1)
    batch = next(digits.batches("train", 16))
    student_logits, teacher_logits = mlp(*batch.inputs), teacher(*batch.inputs)
    kd = kd_loss(student_logits, teacher_logits, 4.0)
    ce = torch.nn.functional.cross_entropy(student_logits, batch.targets)
    terms = read_terms({"kd": 1.0}, None, 4.0)
    found = DistillationObjective(SealedTask(digits), mlp, teacher, terms, alpha=0.7)(mlp, batch)
    torch.testing.assert_close(found, 0.7 * kd + 0.3 * ce)
