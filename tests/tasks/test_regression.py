import csv

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.core.task import VALUES
from optkit.tasks import Regression
from tests.tasks.test_multilabel import edit

PICTURES = {"target_columns": "covered", "unit": "%", "image_size": 32, "workers": 0}


def covered(scenes, split):
    with (scenes / f"{split}.csv").open(newline="") as file:
        return np.array([float(row["covered"]) for row in csv.DictReader(file)])


def test_the_model_gives_standardized_numbers_and_metrics_are_in_the_unit(scenes):
    task = Regression(path=str(scenes), **PICTURES)
    train, test = covered(scenes, "train"), covered(scenes, "test")
    batch = next(iter(task.batches("test", 10)))
    np.testing.assert_allclose(batch.targets[:, 0], (test - train.mean()) / train.std(), rtol=1e-5, atol=1e-6)
    output = torch.randn(10, 1)
    values = output[:, 0].double().numpy() * train.std() + train.mean()
    mae, rmse, r2 = task.metrics
    assert (mae.unit, rmse.unit, r2.unit) == ("%", "%", "1")
    assert not mae.higher_is_better
    assert mae.value(observed(mae, output, batch)) == pytest.approx(np.abs(values - test).mean(), rel=1e-5)
    assert rmse.value(observed(rmse, output, batch)) == pytest.approx(np.sqrt(((values - test) ** 2).mean()), rel=1e-5)
    expected = 1 - ((values - test) ** 2).sum() / ((test - test.mean()) ** 2).sum()
    assert r2.value(observed(r2, output, batch)) == pytest.approx(expected, rel=1e-5)
    assert task.facts()["target_mean"] == [pytest.approx(train.mean())]
    assert task.facts()["target_std"] == [pytest.approx(train.std())]
    assert task.output_kind == VALUES
    assert task.model_defaults()["num_classes"] == 1
    torch.testing.assert_close(task.loss(output, batch), ((output - batch.targets) ** 2).mean())


def test_without_standardizing_targets_stay_as_they_are(scenes):
    task = Regression(path=str(scenes), standardize=False, **PICTURES)
    batch = next(iter(task.batches("test", 10)))
    np.testing.assert_allclose(batch.targets[:, 0], covered(scenes, "test"), rtol=1e-6)
    output = batch.targets + 2
    assert task.metrics[0].value(observed(task.metrics[0], output, batch)) == pytest.approx(2, rel=1e-5)


def test_a_metric_of_your_own_sees_the_unit(scenes):
    def off_by(outputs, targets):
        return (outputs - targets).abs()[:, 0]

    task = Regression(path=str(scenes), metrics=[off_by, "mae"], **PICTURES)
    batch, output = next(iter(task.batches("test", 10))), torch.randn(10, 1)
    own, mae = (metric.value(observed(metric, output, batch)) for metric in task.metrics)
    assert own == pytest.approx(mae)


@pytest.fixture
def diabetes(tmp_path):
    """Real numbers, as they come with scikit-learn (Efron et al., 2004)."""
    data = load_diabetes(as_frame=True, scaled=False).frame
    for split, rows in (("train", data[:300]), ("validation", data[300:340]), ("test", data[340:])):
        rows.to_csv(tmp_path / f"{split}.csv", index=False)
    return tmp_path, data


def test_numbers_are_standardized_by_the_train_split(diabetes):
    folder, data = diabetes
    task = Regression(path=str(folder), input_columns=["age", "bmi", "bp"])
    batch = next(iter(task.batches("test", 16)))
    columns = data[["age", "bmi", "bp"]]
    expected = (columns[340:356] - columns[:300].mean()) / columns[:300].std(ddof=0)
    np.testing.assert_allclose(batch.inputs[0], expected, rtol=1e-4, atol=1e-5)
    assert task.model_defaults() == {"num_classes": 1, "inputs": ["numbers"], "input_shape": [3]}
    seen = torch.cat([b.index for b in task.batches("train", 64, training=True, seed=0)])
    assert sorted(seen.tolist()) == list(range(300))


def test_several_targets_each_have_their_scale(diabetes):
    folder, data = diabetes
    task = Regression(path=str(folder), input_columns=["age"], target_columns=["bmi", "target"])
    batch = next(iter(task.batches("test", 16)))
    r2 = task.metrics[2]
    assert r2.value(observed(r2, batch.targets, batch)) == pytest.approx(1)
    assert task.facts()["target_mean"] == pytest.approx(data[["bmi", "target"]][:300].mean().tolist())
    assert task.model_defaults()["num_classes"] == 2
    with pytest.raises(UserError, match=r"the model gives \[2, 1\] for targets \[2, 2\]"):
        task.mismatch(torch.zeros(2, 1), 2)


BAD = {
    "a text": ({"covered": "much"}, r"task\.target_columns: train: row 3 of 'covered' is 'much', not a finite number"),
    "NaN": ({"covered": "nan"}, r"row 3 of 'covered' is 'nan', not a finite number"),
    "infinite": ({"covered": "inf"}, r"row 3 of 'covered' is 'inf', not a finite number"),
    "an empty cell": ({"covered": ""}, r"row 3 of 'covered' is empty, not a finite number"),
    "a number too large": ({"covered": "1e300"}, r"task\.target_columns: 'covered' has numbers too large"),
    "a file that is not there": ({"file": "gone.png"}, r"task\.file_column: train: row 3 of 'file' names .*gone\.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cells_are_told_of_before_anything_is_trained(scenes, case):
    cells, message = BAD[case]
    edit(scenes / "train.csv", 3, **cells)
    with pytest.raises(UserError, match=message):
        Regression(path=str(scenes), **PICTURES).model_defaults()


def test_a_target_that_never_varies_is_told_of(diabetes):
    folder, data = diabetes
    data[:300].assign(target=3.0).to_csv(folder / "train.csv", index=False)
    with pytest.raises(UserError, match=r"task\.target_columns: 'target' is 3 in every train row"):
        Regression(path=str(folder), input_columns=["age"]).model_defaults()


def test_wrong_options_are_told_of_at_once(scenes):
    for options, message in (
        ({"target_columns": []}, r"target_columns: no column is named"),
        ({"target_columns": ["disc"], "input_columns": ["disc"]}, r"input_columns: 'disc' is a target"),
        ({"path": "/not/there"}, r"path: no folder /not/there"),
        ({"loss": "huberr"}, r"loss: no loss 'huberr'"),
    ):
        with pytest.raises(UserError, match=message):
            Regression(**{"path": str(scenes)} | options)
    with pytest.raises(UserError, match=r"task\.target_columns: train has no column 'target'"):
        Regression(path=str(scenes)).model_defaults()
