"""Every metric against an independent reference, and its pseudo-values against their definition."""

import datasets
import evaluate
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from optkit.core.errors import UserError
from optkit.core.metric import check_table, stacked
from optkit.core.task import Batch
from optkit.metrics.classification import Accuracy, BalancedAccuracy, MacroF1
from optkit.metrics.functions import MeanScore
from optkit.metrics.libraries import EvaluateMetric, TorchMetric
from optkit.metrics.multilabel import MultilabelF1, MultilabelMAP
from optkit.metrics.regression import R2, MeanAbsoluteError, RootMeanSquareError
from optkit.metrics.retrieval import RecallAtK
from optkit.metrics.segmentation import MeanIoU

N, CLASSES = 200, 5


def batch_of(targets):
    return Batch((torch.zeros(len(targets)),), targets, torch.arange(len(targets)))


def in_batches(metric, output, targets):
    """The table of a split that comes in batches of 64."""
    parts = range(0, len(targets), 64)
    return stacked([metric.observe(output[i : i + 64], batch_of(targets[i : i + 64])) for i in parts])


@pytest.fixture
def labelled():
    torch.manual_seed(0)
    targets = torch.multinomial(torch.tensor([0.5, 0.25, 0.15, 0.08, 0.02]), N, replacement=True)
    return torch.randn(N, CLASSES) + 2 * torch.eye(CLASSES)[targets], targets


@pytest.fixture
def labels():
    torch.manual_seed(0)
    targets = (torch.rand(N, CLASSES) < torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05])).long()
    return torch.randn(N, CLASSES) + 2 * targets - 1, targets


def test_metrics_of_one_label_are_those_of_sklearn(labelled):
    logits, targets = labelled
    predicted = logits.argmax(-1)
    for metric, expected in (
        (Accuracy(), sklearn.accuracy_score(targets, predicted)),
        (Accuracy(top=3), sklearn.top_k_accuracy_score(targets, logits, k=3)),
        (BalancedAccuracy(), sklearn.balanced_accuracy_score(targets, predicted)),
        (MacroF1(), sklearn.f1_score(targets, predicted, average="macro")),
    ):
        assert metric.value(in_batches(metric, logits, targets)) == pytest.approx(expected), metric.name


def test_a_class_that_is_nowhere_is_left_out(labelled):
    logits, targets = labelled
    metrics = BalancedAccuracy(), MacroF1()
    wide = torch.nn.functional.pad(logits, (0, 1), value=-100.0)
    for metric, same in zip(metrics, (BalancedAccuracy(), MacroF1()), strict=True):
        assert metric.value(in_batches(metric, wide, targets)) == same.value(in_batches(same, logits, targets))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_of_labels_is_that_of_sklearn(labels, average):
    logits, targets = labels
    metric = MultilabelF1(CLASSES, average=average)
    expected = sklearn.f1_score(targets, logits > 0, average=average)
    assert metric.value(in_batches(metric, logits, targets)) == pytest.approx(expected)


def test_average_precision_of_labels_is_that_of_sklearn_with_ties(labels):
    logits, targets = labels
    coarse = logits.round()
    metric = MultilabelMAP(CLASSES)
    expected = sklearn.average_precision_score(targets, coarse, average="macro")
    assert metric.value(in_batches(metric, coarse, targets)) == pytest.approx(expected)


def test_mean_iou_is_that_of_sklearn_over_all_pixels():
    torch.manual_seed(0)
    targets = torch.randint(0, CLASSES, (12, 8, 9))
    logits = torch.randn(12, CLASSES, 8, 9) + torch.eye(CLASSES)[targets].permute(0, 3, 1, 2)
    targets[:, 0] = 255
    seen = targets != 255
    expected = sklearn.jaccard_score(targets[seen], logits.argmax(1)[seen], average="macro")
    metric = MeanIoU(CLASSES)
    assert metric.value(in_batches(metric, logits, targets)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 4, 4), r"masks are \[2, 4, 4\], and the model gives \[2, 8, 8\]"),
        (torch.full((2, 8, 8), 7), "a mask holds the class 7, and there are 5"),
    ],
)
def test_masks_that_do_not_fit_are_refused(targets, message):
    with pytest.raises(UserError, match=message):
        MeanIoU(CLASSES).observe(torch.zeros(2, CLASSES, 8, 8), batch_of(targets))


def test_metrics_of_numbers_are_those_of_sklearn():
    torch.manual_seed(0)
    targets = torch.randn(N, 3) * torch.tensor([1.0, 5.0, 0.1])
    ours = targets + 0.3 * torch.randn(N, 3)
    for metric, expected in (
        (MeanAbsoluteError(), sklearn.mean_absolute_error(targets, ours)),
        (RootMeanSquareError(), sklearn.mean_squared_error(targets, ours) ** 0.5),
        (R2(3), sklearn.r2_score(targets, ours)),
    ):
        assert metric.value(in_batches(metric, ours, targets)) == pytest.approx(expected, rel=1e-5), metric.name


def test_one_number_an_example_may_have_an_axis_of_its_own():
    table = MeanAbsoluteError().observe(torch.ones(4, 1), batch_of(torch.zeros(4)))
    assert table.tolist() == [[1.0]] * 4
    with pytest.raises(UserError, match=r"the model gives \[4, 2\] for targets \[4\]"):
        MeanAbsoluteError().observe(torch.ones(4, 2), batch_of(torch.zeros(4)))


@pytest.mark.parametrize("k", [1, 4])
def test_recall_is_that_of_a_loop_over_all_pairs(k):
    torch.manual_seed(0)
    targets = torch.randint(0, 12, (70,))
    embedded = torch.randn(12, 6)[targets] + torch.randn(70, 6)
    unit = torch.nn.functional.normalize(embedded.double(), dim=1)
    right = 0
    for query in range(70):
        others = sorted((o for o in range(70) if o != query), key=lambda o: -float(unit[query] @ unit[o]))
        right += any(targets[o] == targets[query] for o in others[:k])
    metric = RecallAtK(k)
    assert metric.value(in_batches(metric, embedded, targets)) == pytest.approx(right / 70)


def test_pseudo_values_are_the_jackknife_s(labelled):
    logits, targets = labelled
    logits, targets = logits[:40], targets[:40]
    for metric in (BalancedAccuracy(), MacroF1()):
        table = in_batches(metric, logits, targets)
        whole, n = metric.value(table), len(table)
        expected = [n * whole - (n - 1) * metric.value(np.delete(table, i, axis=0)) for i in range(n)]
        assert metric.pseudo_values(table) == pytest.approx(np.array(expected)), metric.name


def test_pseudo_values_of_groups_leave_out_each_group_once(labels):
    logits, targets = labels

    class InFour(MultilabelMAP):
        groups = 4

    metric = InFour(CLASSES)
    table = in_batches(metric, logits, targets)
    found = metric.pseudo_values(table)
    assert found.shape == (4,)
    assert found.mean() == pytest.approx(metric.value(table), abs=0.02)
    rows = np.random.default_rng(0).permutation(N) % 4
    assert found[2] == pytest.approx(4 * metric.value(table) - 3 * metric.value(table[rows != 2]))


def test_accuracy_has_the_interval_and_the_test_that_records_have_today(labelled):
    from optkit.core.statistics import paired_difference, proportion

    logits, targets = labelled
    metric = Accuracy()
    ours, theirs = (in_batches(metric, x, targets) for x in (logits, logits.flip(1)))
    assert metric.interval(ours) == proportion(int(ours.sum()), N)
    assert metric.difference(ours, theirs) == paired_difference(ours[:, 0] > 0, theirs[:, 0] > 0)


def test_a_difference_is_paired(labelled):
    logits, targets = labelled
    metric = MacroF1()
    torch.manual_seed(1)
    ours, near, far = (
        in_batches(metric, x, targets)
        for x in (logits, logits + 0.05 * torch.randn_like(logits), 2 * torch.randn_like(logits))
    )
    same, close, other = (metric.difference(ours, x) for x in (ours, near, far))
    assert same.delta.value == 0
    assert same.delta.low < 0 < same.delta.high
    assert same.p_value == 1
    assert close.delta.high - close.delta.low < metric.interval(ours).high - metric.interval(ours).low
    assert other.p_value < 1e-6
    assert other.delta.value == metric.value(ours) - metric.value(far)


def test_an_own_function_is_a_metric():
    metric = MeanScore(lambda output, targets: (output - targets).abs().mean(1), name="error", higher_is_better=False)
    output, targets = torch.randn(30, 4), torch.randn(30, 4)
    table = in_batches(metric, output, targets)
    assert metric.value(table) == pytest.approx(float((output - targets).abs().mean()))
    interval = metric.interval(table)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda output, targets: output.mean(), "gives .* for a batch of 8 examples"),
        (lambda output, targets: output[:3, 0], "gives .* for a batch of 8 examples"),
        (lambda output, targets: torch.full((8,), float("nan")), "not finite for example 0"),
    ],
)
def test_scores_that_are_none_are_refused(function, message):
    metric, batch = MeanScore(function, name="mine"), batch_of(torch.zeros(8))
    with pytest.raises(UserError, match=message):
        check_table(metric.observe(torch.randn(8, 2), batch), batch, metric.name)


class Right(evaluate.Metric):
    """The share of right answers, as a user writes a metric that needs no hub."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="accuracy", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)}


def test_a_metric_of_evaluate_has_its_value_and_an_interval(labelled):
    logits, targets = labelled
    metric, same = EvaluateMetric(Right(keep_in_memory=True), "theirs"), Accuracy()
    table, ours = in_batches(metric, logits, targets), in_batches(same, logits, targets)
    assert metric.value(table) == pytest.approx(same.value(ours))
    theirs = in_batches(metric, logits.flip(1), targets)
    found, expected = metric.difference(table, theirs), same.difference(ours, in_batches(same, logits.flip(1), targets))
    assert found.delta.value == pytest.approx(expected.delta.value)
    assert found.delta.low == pytest.approx(expected.delta.low, abs=0.03)


def test_a_metric_of_torchmetrics_has_its_value(labelled):
    torchmetrics = pytest.importorskip("torchmetrics")
    logits, targets = labelled
    metric = TorchMetric(torchmetrics.CohenKappa("multiclass", num_classes=CLASSES), "kappa")
    expected = sklearn.cohen_kappa_score(targets, logits.argmax(-1))
    assert metric.value(in_batches(metric, logits, targets)) == pytest.approx(expected, abs=1e-6)


def test_a_library_s_metric_with_several_numbers_is_refused(labelled):
    logits, targets = labelled

    class Several:
        def compute(self, predictions, references):
            return {"precision": 0.5, "recall": 0.6}

    metric = EvaluateMetric(Several(), "both")
    table = in_batches(metric, logits, targets)
    with pytest.raises(UserError, match=r"gives precision, recall \(name one of them"):
        metric.value(table)
    assert in_batches(chosen := EvaluateMetric(Several(), "one", key="recall"), logits, targets) is not None
    assert chosen.value(table) == 0.6


def test_the_interval_of_r2_ends_at_1():
    random = np.random.default_rng(0)
    targets = torch.from_numpy(random.standard_normal((12, 1)))
    outputs = targets + 1e-4 * torch.from_numpy(random.standard_t(1.5, (12, 1)))
    metric = R2()
    table = metric.observe(outputs, Batch((outputs,), targets, torch.arange(12)))
    found = metric.interval(table)
    assert found.low < found.value <= found.high <= 1.0
