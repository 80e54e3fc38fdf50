"""Data of your own as a task: 442 patients in CSV files, and one number to predict."""

# --8<-- [start:data]
import numpy as np
import torch
from torch.utils.data import Dataset


class Patients(Dataset):
    """The rows of a CSV file, the last column of which is the target."""

    def __init__(self, file):
        rows = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32)
        self.inputs, self.targets = torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, -1])

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, place):
        return self.inputs[place], self.targets[place]


# --8<-- [end:data]
# --8<-- [start:files]
def make_files():
    """Writes train.csv and test.csv: ten measurements of a patient, and the illness a year later, in hundreds."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    rows = np.column_stack([data.data / data.data.std(0), data.target / 100])
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    for name, part in (("train.csv", rows[:350]), ("test.csv", rows[350:])):
        np.savetxt(name, part, delimiter=",", header=",".join([*data.feature_names, "progression"]), comments="")


# --8<-- [end:files]


def main():
    """Makes the files, and looks at the task."""
    make_files()
    # --8<-- [start:task]
    from optkit.tasks import LoaderTask

    task = LoaderTask(train=Patients("train.csv"), test=Patients("test.csv"), loss="mse", metrics=["mae", "r2"])
    print(task.facts())
    batch = next(task.batches("train", batch_size=32, training=True, seed=0))
    print(batch.inputs[0].shape, batch.targets.shape)
    # --8<-- [end:task]


if __name__ == "__main__":
    main()
