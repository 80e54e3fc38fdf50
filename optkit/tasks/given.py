"""Splits as users give them - Datasets, loaders, other iterables, functions and dotted paths - as examples by place."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, first_line, own_code
from optkit.core.identity import identity
from optkit.core.instantiate import locate
from optkit.core.seeds import derive_seed
from optkit.core.task import Batch
from optkit.tasks.picking import Picking
from optkit.tasks.reading import in_batches, seeded

log = logging.getLogger(__name__)
HASHED = 1000  # examples of a split
FAST_S = 0.0005  # for an example
REPAIR = "repair the data, or leave it out"


@dataclass(frozen=True)
class FromDataset:
    """Examples of a Dataset, which is asked for them by place; random transforms draw from the seed alone.

    Attributes:
        data: has ``__len__`` and ``__getitem__``, perhaps ``__getitems__``.
        places: of the examples in it; None for all.
        collate: makes a batch of a list of examples.
        picking: takes inputs and targets from it.
        workers: processes that read it.
        seed: of random transforms.
    """

    data: Any
    picking: Picking
    collate: Callable[[list[Any]], Any]
    workers: int = 0
    places: NDArray[np.int64] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.data) if self.places is None else len(self.places)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        places = index if self.places is None else self.places[index].tolist()
        # by the first example and the epoch, so that a batch is the same whichever worker makes it
        with seeded(derive_seed(self.seed, "reading", index[0])):
            inputs, targets = self.picking(self._collated(places))
        if len(inputs[0]) != len(index):
            message = f"{len(inputs[0])} examples come of {len(index)}"
            raise UserError(message, key="task.collate", fix="the collate function must keep all examples")
        return Batch(inputs, targets, torch.tensor(index))

    def _collated(self, places: list[int]) -> Any:
        split = self.picking.split
        if hasattr(self.data, "__getitems__"):
            with own_code(f"{split} examples {_listed(places)} cannot be read", f"task.{split}", REPAIR):
                rows = self.data.__getitems__(places)
        else:
            rows = [self._row(place) for place in places]
        with own_code(f"{split} examples {_listed(places)} cannot be made a batch", f"task.{split}", REPAIR):
            return self.collate(rows)

    def _row(self, place: int) -> Any:
        split = self.picking.split
        with own_code(f"{split} example {place} cannot be read", f"task.{split}", REPAIR):
            return self.data[place]

    def subset(self, index: NDArray[np.int64]) -> FromDataset:
        return replace(self, places=index if self.places is None else self.places[index])

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        return in_batches(replace(self, seed=seed or 0), batch_size, seed, self.workers)

    def digest(self) -> tuple[str, str]:
        """A hash of the examples, or of a sample, and what it is of."""
        stated = stated_fingerprint(self.data)
        if stated is not None:
            places = "all" if self.places is None else hashlib.sha256(self.places.tobytes()).hexdigest()
            return hash_of([stated, places]), "the data set's own fingerprint"
        sample = self.sample()
        found = hash_of([len(self), *sample.batches(32, None)])
        return found, "all examples" if len(sample) == len(self) else f"{len(sample)} of {len(self)} examples"

    def sample(self) -> FromDataset:
        """All examples of a short split, and `HASHED` spread over a long one."""
        return self.subset(spread(len(self), HASHED))

    def targets(self) -> Iterator[Any]:
        """Those of the `sample`, in batches."""
        return (batch.targets for batch in self.sample().batches(32, None))


@dataclass(frozen=True)
class InMemory:
    """Examples that were read once.

    Attributes:
        whole: all of them, as one batch.
    """

    whole: Batch
    workers: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        found = self.whole.subset(torch.tensor(index))
        return replace(found, index=torch.tensor(index))

    def subset(self, index: NDArray[np.int64]) -> InMemory:
        import torch

        found = self.whole.subset(torch.from_numpy(index))
        return InMemory(replace(found, index=torch.arange(len(index))))

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        return in_batches(self, batch_size, seed)

    def digest(self) -> tuple[str, str]:
        return hash_of([len(self), self.whole.inputs, self.whole.targets]), "all examples"

    def targets(self) -> Iterator[Any]:
        """Those of all examples, as one batch."""
        yield self.whole.targets


Given = FromDataset | InMemory


def as_examples(
    given: Any,
    picking: Picking,
    collate: Callable[[list[Any]], Any] | None,
    workers: int | None,
    most_bytes: float,
) -> Given:
    """A split as examples by place.

    Args:
        given: a Dataset, a DataLoader, any other iterable of batches that can be read twice, a function that gives one,
            or the dotted path of any of these.
        picking: takes inputs and targets from a batch.
        collate: makes a batch of a list of examples; None takes the loader's, or torch's.
        workers: processes that read a Dataset; None takes the loader's number, or what fits the machine.
        most_bytes: that an iterable of batches, which is read once and kept, may take.

    Raises:
        UserError: it is something else, or larger.
    """
    import torch
    from torch.utils import data as torch_data

    key = f"task.{picking.split}"
    if isinstance(given, str):
        given = locate(given, key)
    if isinstance(given, type) or (not _is_data(given) and callable(given)):
        name, module = getattr(given, "__name__", type(given).__name__), str(getattr(given, "__module__", ""))
        is_ours = module.startswith("optkit.")
        with nullcontext() if is_ours else own_code(f"'{name}' fails", key, "it is called without arguments"):
            given = given()
    if isinstance(given, torch_data.DataLoader):
        if given.batch_sampler is not None and not isinstance(given.dataset, torch_data.IterableDataset):
            check_order(given, key)
            workers = given.num_workers if workers is None else workers
            if collate is None and given.collate_fn is not torch_data.default_collate:
                collate = given.collate_fn
            return as_examples(given.dataset, picking, collate, workers, most_bytes)
    elif isinstance(given, torch_data.IterableDataset):
        given = torch_data.DataLoader(given, 256, collate_fn=collate)
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (list, tuple)):
        tensors = held_tensors(given) if collate is None else None
        if tensors is not None:
            inputs, targets = picking(tensors)
            return _check_some(InMemory(Batch(inputs, targets, torch.arange(len(inputs[0])))), key)
        own = torch_data.default_collate if collate is None else collate
        examples = FromDataset(given, picking, own, workers or 0)
        _check_some(examples, key)
        return examples if workers is not None else replace(examples, workers=workers_for(examples))
    if not hasattr(given, "__iter__"):
        if hasattr(given, "__getitem__"):
            fix = "a Dataset says how many examples it has: __len__"
            raise UserError(f"a {type(given).__name__} has no length", key=key, value=str(given), fix=fix)
        fix = "give a Dataset, a DataLoader, any iterable of batches, or a function that returns one"
        raise UserError(f"a {type(given).__name__} is no data", key=key, value=str(given), fix=fix)
    return _check_some(read_once(given, picking, most_bytes), key)


def _is_data(given: Any) -> bool:
    return hasattr(given, "__iter__") or hasattr(given, "__getitem__")


def _check_some(examples: Given, key: str) -> Given:
    if not len(examples):
        raise UserError("there are no examples", key=key, fix="give data with at least one")
    return examples


def workers_for(examples: FromDataset) -> int:
    """None for examples that are read faster than a worker hands them over, else `default_workers`."""
    places = spread(len(examples), 8).tolist()
    examples.__getitems__(places)  # what is read for the first time may take longer
    started = time.perf_counter()
    examples.__getitems__(places)
    return default_workers() if (time.perf_counter() - started) / len(places) > FAST_S else 0


def default_workers() -> int:
    """As many processes as this one may use cores; they read while it trains."""
    from optkit.core.cores import default_threads

    return default_threads().count


def check_order(loader: Any, key: str) -> None:
    """Raises UserError for a DataLoader with a sampler of its own, which a task cannot follow."""
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

    for sampler, known in (
        (loader.batch_sampler, (BatchSampler,)),
        (loader.sampler, (RandomSampler, SequentialSampler)),
    ):
        if type(sampler) not in known:
            message = f"the loader's {type(sampler).__name__} would not be used"
            fix = "give the Dataset, or repeat its examples in the Dataset as the sampler would"
            raise UserError(message, key=key, fix=fix)


def held_tensors(data: Any) -> tuple[Any, ...] | None:
    """The tensors of a ``TensorDataset``, also within ``Subset``; None of another."""
    from torch.utils.data import Subset, TensorDataset

    if type(data) is TensorDataset:
        return data.tensors
    if type(data) is Subset and (tensors := held_tensors(data.dataset)) is not None:
        return tuple(tensor[list(data.indices)] for tensor in tensors)
    return None


def read_once(given: Any, picking: Picking, most_bytes: float) -> InMemory:
    """All batches of an iterable.

    Raises:
        UserError: it can be read only once, it has no batches, they differ in shape, or they take too much memory.
    """
    import torch

    key = f"task.{picking.split}"
    if iter(given) is given:
        fix = "give a list, a loader, or an object whose __iter__ begins anew"
        raise UserError(f"a {type(given).__name__} can be read only once", key=key, fix=fix)
    found, taken = [], 0
    for batch in _read(given, key):
        inputs, targets = picking(batch)
        found.append((inputs, targets))
        taken += sum(x.numel() * x.element_size() for x in inputs)
        if taken > most_bytes:
            message = f"the batches are more than {most_bytes / 1e9:.1f} GB, and are kept in memory"
            fix = "give a Dataset, which is read example by example, or raise task.memory_share"
            raise UserError(message, key=key, fix=fix)
    if not found:
        raise UserError("there are no batches", key=key, fix="give data with at least one")
    try:
        inputs = tuple(torch.cat(parts) for parts in zip(*(inputs for inputs, _ in found), strict=True))
        targets = joined([targets for _, targets in found])
    except (RuntimeError, ValueError, TypeError) as error:
        fix = "give a Dataset, and collate=... if its examples differ in shape"
        raise UserError(f"the batches differ in shape: {first_line(error)}", key=key, fix=fix) from error
    return InMemory(Batch(inputs, targets, torch.arange(len(inputs[0]))))


def _read(batches: Any, key: str) -> Iterator[Any]:
    number, iterator = 0, iter(batches)
    while True:
        with own_code(f"batch {number} cannot be read", key, REPAIR):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch
        number += 1


def joined(parts: Sequence[Any]) -> Any:
    """The targets of several batches, one after the other."""
    import torch

    first = parts[0]
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(joined(members) for members in zip(*parts, strict=True))
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    return [entry for part in parts for entry in part]


def spread(total: int, limit: int) -> NDArray[np.int64]:
    """Up to ``limit`` places spread evenly over ``total``."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).astype(np.int64))


def stated_fingerprint(data: Any) -> str | None:
    """What a data set says of its own content: its ``fingerprint``, or that of a table of `datasets`."""
    from optkit.core.compat.datasets import fingerprint

    if type(data).__module__.startswith("datasets."):
        return fingerprint(data)
    own = getattr(data, "fingerprint", None)
    found = own() if callable(own) else own
    return None if found is None else str(found)


def code_of_data(data: Any) -> list[Any]:
    """What stands for the code of a Dataset, of those that it is made of, and of their transforms."""
    if data is None:
        return []
    transforms = [getattr(data, name, None) for name in ("transform", "target_transform", "transforms")]
    within = [getattr(data, "dataset", None), *(getattr(data, "datasets", None) or ())]
    return [identity(type(data)), *map(identity, transforms), *(code_of_data(inner) for inner in within)]


def hash_of(value: Any) -> str:
    """SHA-256, hex, of tensors, numbers and texts in batches, lists, tuples and dicts.

    Raises:
        UserError: something else is among them.
    """
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    import torch

    if isinstance(value, Batch):
        value = [value.inputs, value.targets]
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} names".encode())
        for name, part in value.items():
            digest.update(repr(name).encode())
            _update(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} parts".encode())
        for part in value:
            _update(digest, part)
    elif isinstance(value, (bool, int, float, str, bytes, type(None))):
        digest.update(f"{type(value).__name__} {value!r}".encode())
    else:
        message = f"a {type(value).__name__} among the targets cannot be hashed"
        raise UserError(message, key="task.fingerprint", fix="state one: fingerprint=... that changes with the data")


def _listed(places: list[int]) -> str:
    return ", ".join(map(str, places[:3])) + (", ..." if len(places) > 3 else "")
