"""Metrics and a loss of your own, on the patients of own_data.py."""

# --8<-- [start:metric]
import torch
from torch import Tensor


def within_half(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for a patient whose prediction is off by at most 0.5, else 0: one number an example, ``(N,)``."""
    return ((outputs[:, 0] - targets).abs() <= 0.5).float()


# --8<-- [end:metric]
# --8<-- [start:loss]
def cautious(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean square error, in which predictions that are too low count twice: one number."""
    errors = outputs[:, 0] - targets
    return torch.where(errors < 0, 2 * errors**2, errors**2).mean()


# --8<-- [end:loss]
# --8<-- [start:named]
from optkit.metrics.functions import MeanScore  # noqa: E402

miss = MeanScore(lambda outputs, targets: (outputs[:, 0] - targets).abs(), "miss", unit="grade", higher_is_better=False)
# --8<-- [end:named]


def main():
    """Makes the files, and looks at the task."""
    # --8<-- [start:task]
    import own_data

    from optkit.tasks import LoaderTask

    own_data.make_files()
    data = {"train": own_data.Patients("train.csv"), "test": own_data.Patients("test.csv")}
    task = LoaderTask(**data, loss=cautious, metrics=[miss, within_half], output_kind="values")

    batch = next(task.batches("train", batch_size=32))
    output = torch.full((32, 1), 1.5)
    print(task.loss(output, batch))
    for metric in task.metrics:
        print(metric.name, metric.interval(metric.observe(output, batch)))
    # --8<-- [end:task]
    # --8<-- [start:wrong]
    from optkit.core.errors import UserError

    def of_the_batch(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    task = LoaderTask(**data, loss=cautious, metrics=of_the_batch, output_kind="values")
    try:
        task.mismatch(output[:2], 2)
    except UserError as error:
        print(error)
    # --8<-- [end:wrong]


if __name__ == "__main__":
    main()
