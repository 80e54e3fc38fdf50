import numpy as np
import pytest
import torch

from optkit.core.task import SealedTask
from optkit.distill import (
    DistillationObjective,
    attention_map_loss,
    attention_transfer_loss,
    dist_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    relation_loss,
    rkd_loss,
    similarity_loss,
    token_kd_loss,
)
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


def _logits(seed=0, n=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, classes, generator=generator).double() for _ in range(2))


def test_dkd_with_the_weight_of_the_other_classes_that_kd_has_is_kd():
    # Zhao et al. (2022), equation 7: KD = TCKD + (1 - p of the right class) NCKD, example by example
    student, teacher = _logits()
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    for n in range(6):
        s, t, y = student[n : n + 1], teacher[n : n + 1], targets[n : n + 1]
        p = float((t / 2.0).softmax(-1)[0, y])
        torch.testing.assert_close(dkd_loss(s, t, y, 2.0, 1.0, 1 - p), kd_loss(s, t, 2.0))


def test_dist_is_one_minus_the_correlations():
    student, teacher = _logits()
    p, q = (x.softmax(-1).numpy() for x in (student, teacher))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert float(dist_loss(student, teacher, 1.0, 2.0, 3.0)) == pytest.approx(2 * inter + 3 * intra)


def _maps(seed, channels, size=3):
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(seed)).double()


def test_attention_transfer_compares_where_the_energy_is():
    student, teacher = _maps(0, 2), _maps(1, 5)
    maps = []
    for x in (student.numpy(), teacher.numpy()):
        energy = (x**2).sum(1).reshape(4, -1)
        maps.append(energy / np.sqrt((energy**2).sum(1, keepdims=True)))
    assert float(attention_transfer_loss(student, teacher)) == pytest.approx(((maps[0] - maps[1]) ** 2).mean())
    torch.testing.assert_close(attention_transfer_loss(student, 3 * student), torch.tensor(0.0).double())


def test_similarity_compares_gram_matrices():
    student, teacher = _maps(0, 2), _maps(1, 5, size=2)
    grams = []
    for x in (student.numpy(), teacher.numpy()):
        gram = np.array([[(a * b).sum() for b in x] for a in x])
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    assert float(similarity_loss(student, teacher)) == pytest.approx(((grams[0] - grams[1]) ** 2).mean())


def _huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_rkd_compares_distances_and_angles():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, c, generator=generator).double() for c in (3, 6))
    tables = []
    for x in (student.numpy(), teacher.numpy()):
        distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        unit = lambda v: v / max(np.linalg.norm(v), 1e-8)  # noqa: E731
        angle = np.array([[[unit(j - i) @ unit(k - i) for k in x] for j in x] for i in x])
        tables.append((distance / distance[distance > 0].mean(), angle))
    expected = [_huber(a - b).mean() for a, b in zip(*tables, strict=True)]
    assert float(rkd_loss(student, teacher)) == pytest.approx(25 * expected[0] + 50 * expected[1])
    student.requires_grad_()
    rkd_loss(student, teacher).backward()
    assert torch.isfinite(student.grad).all()


def test_relations_are_the_softmaxes_of_products_token_by_token():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 2, 5, 4, generator=generator).double()
    teacher = torch.randn(2, 4, 5, 6, generator=generator).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    total, count = 0.0, 0
    for n in range(2):
        length = int(mask[n].sum())
        flat = [x[n].transpose(0, 1).reshape(5, -1)[:length] for x in (student, teacher)]
        for head in range(4):
            chances = []
            for x in flat:
                part = x.chunk(4, dim=1)[head]
                chances.append((part @ part.T / part.shape[1] ** 0.5).softmax(-1))
            ours, theirs = chances
            total += float((theirs * (theirs / ours).log()).sum())
            count += length
    assert float(relation_loss(student, teacher, 4, mask)) == pytest.approx(total / count)


def test_attention_maps_count_only_where_attention_is_open():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 2, 3, 3, generator=generator) for _ in range(2))
    open_ = torch.ones(3, 3).tril().bool()
    expected = ((student - teacher) ** 2)[:, :, open_].mean()
    hidden = [x.masked_fill(~open_, -torch.inf) for x in (student, teacher)]
    torch.testing.assert_close(attention_map_loss(*hidden, open_), expected)


@pytest.mark.parametrize("loss", [attention_transfer_loss, similarity_loss, rkd_loss, hint_loss])
def test_losses_of_features_vanish_for_equal_ones_and_pull_the_student_only(loss):
    student, teacher = _maps(0, 3).requires_grad_(), _maps(1, 3).requires_grad_()
    torch.testing.assert_close(loss(teacher, teacher.detach()), torch.tensor(0.0).double(), atol=1e-9, rtol=0)
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_kd_of_tokens_is_kd_of_each_token():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    each = [kd_loss(student[n, t : t + 1], teacher[n, t : t + 1], 2.0) for n in range(2) for t in range(3)]
    assert token_kd_loss(student, teacher, 2.0) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


@pytest.mark.parametrize("features", [torch.ones(1, 4), torch.ones(3, 4)])
def test_rkd_of_one_example_or_equal_ones_is_no_nan(features):
    student = features.clone().requires_grad_()
    loss = rkd_loss(student, features)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(student.grad).all()
