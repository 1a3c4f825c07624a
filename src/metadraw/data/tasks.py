"""The LightningDataModule of any kind of task: loaders of batches, the same on every machine."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from metadraw.data.episode import Episode
from metadraw.data.hashing import start
from metadraw.errors import InputError, check_seed, check_switch, check_whole, is_number

#: ``all``: everything, for data that nothing was trained on. It comes last, because a split's
#: position is part of the hash.
SPLITS = ("train", "val", "test", "all")
#: A number, or the minimum and maximum of one that is drawn for every batch.
Count: TypeAlias = int | Sequence[int]


class Sampler(Protocol):
    """Episode i of a split, as a pure function of (seed, split, i)."""

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers, ``[T]`` int64, as a batch of T tasks."""
        ...


class EpisodeBatches(Dataset[Episode]):
    """Batch b of a split as a map-style dataset: any order, any worker, the same tasks.

    Batch b holds the episodes ``b*T .. b*T+T-1``. With several ranks, each gets its part of them:
    together they see every task once. If the number of tasks is limited, the first follows the
    last.
    """

    def __init__(
        self,
        sampler: Sampler,
        tasks: int,
        rank: int = 0,
        ranks: int = 1,
        limit: int | None = None,
    ) -> None:
        self.sampler, self.tasks, self.limit = sampler, tasks, limit
        self.first, self.last = tasks * rank // ranks, tasks * (rank + 1) // ranks

    def __getitem__(self, batch: int) -> Episode:
        start = batch * self.tasks
        numbers = torch.arange(start + self.first, start + self.last)
        return self.sampler(numbers if self.limit is None else numbers % self.limit)


class EpochOrder(SequentialSampler):
    """Batch numbers of one epoch: epoch e has ``e*B .. e*B+B-1``.

    A run that is resumed at epoch e therefore sees the same tasks as an uninterrupted one.
    Lightning's ``set_epoch`` does not help: it starts at 0 again in a resumed run. As a
    `SequentialSampler`, this keeps its order with ``trainer.overfit_batches``.

    Args:
        batches: B.
        epoch: returns the current epoch, counted from 0.
    """

    def __init__(self, batches: int, epoch: Callable[[], int]) -> None:
        self.batches, self.epoch = batches, epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[int]:
        # A generator, which reads the epoch with the first batch: Lightning makes the iterator of a
        # resumed run before it knows the epoch.
        start = self.epoch() * self.batches
        yield from range(start, start + self.batches)


class TaskDataModule(L.LightningDataModule, ABC):
    """Batches of tasks; a kind of task implements `episodes`, `provenance` and `picture`.

    Args:
        shots: K, support examples (per class, if there are classes); or its minimum and maximum,
            drawn for every batch.
        queries: Q, query examples, likewise.
        tasks_per_batch: T, tasks per outer step, over all ranks together.
        train_batches: meta-training batches per epoch.
        train_shots: K in meta-training, ``shots`` if `None`.
        train_queries: Q in meta-training, ``queries`` if `None`.
        train_tasks_per_batch: T in meta-training, ``tasks_per_batch`` if `None`.
        train_tasks: how many tasks meta-training repeats, the first ones; new tasks in every step
            if `None`.
        val_batches: meta-validation batches after each epoch, the same every time.
        test_batches: meta-test batches.
        seed: of the meta-training episodes.
        eval_seed: of the meta-validation and meta-test episodes: runs that differ in anything else,
            even in ``seed``, are compared on the same tasks.

    Raises:
        InputError: an impossible number.
    """

    #: Whether shots and queries may be ranges; if not, see `fixed_sizes`.
    ranges = True
    #: The split that ``trainer.test`` reads; eval.py sets it.
    test_split = "test"
    #: The monitored metric of random guessing, if known.
    chance: float | None = None
    #: The number of classes in all splits together; 0 if tasks have none.
    class_count: int = 0

    def __init__(
        self,
        *,
        shots: Count,
        queries: Count,
        tasks_per_batch: int,
        train_batches: int,
        val_batches: int,
        test_batches: int,
        seed: int,
        eval_seed: int,
        train_shots: Count | None = None,
        train_queries: Count | None = None,
        train_tasks_per_batch: int | None = None,
        train_tasks: int | None = None,
    ) -> None:
        super().__init__()
        self.shots, self.queries = count(shots=shots), count(queries=queries)
        self.train_shots = self.shots if train_shots is None else count(train_shots=train_shots)
        self.train_queries = (
            self.queries if train_queries is None else count(train_queries=train_queries)
        )
        whole(
            1,
            tasks_per_batch=tasks_per_batch,
            train_batches=train_batches,
            val_batches=val_batches,
            test_batches=test_batches,
        )
        if train_tasks_per_batch is not None:
            whole(1, train_tasks_per_batch=train_tasks_per_batch)
        if train_tasks is not None:
            whole(1, train_tasks=train_tasks)
        self.train_tasks = train_tasks
        self.tasks_per_batch = tasks_per_batch
        self.train_tasks_per_batch = train_tasks_per_batch or tasks_per_batch
        self.batches = {"train": train_batches, "val": val_batches, "test": test_batches}
        check_seed("data.seed", seed)
        check_seed("data.eval_seed", eval_seed)
        self.seeds = {"train": seed, "val": eval_seed, "test": eval_seed, "all": eval_seed}
        for split in () if self.ranges else ("test", "train"):
            self.fixed_sizes(split)

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, Any]:
        """The origin of the tasks, as recorded in results, with checksums of the data."""

    @abstractmethod
    def episodes(self, split: str, device: torch.device | str = "cpu") -> Sampler:
        """The sampler of one split: ``data.episodes("test")(torch.arange(25))``.

        Args:
            split: one of `SPLITS`.
            device: where episodes are made.

        Raises:
            InputError: an unknown split, or one without enough data for such tasks.
        """

    @property
    def examples_of_a_task(self) -> int:
        """The maximum number of support and query examples of a meta-test task."""
        return most(self.shots) + most(self.queries)

    def example(self, tasks: int) -> Episode:
        """Tasks with this data set's shapes, before it is set up; real ones by default."""
        return self.episodes("train")(torch.arange(tasks))

    @abstractmethod
    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """Draw a task with the outputs for its query set, before and after adaptation."""

    def groups(self, split: str, number: Tensor) -> list[str] | None:
        """The group of each episode of a split, such as its domain, for results by group.

        Args:
            split: one of `SPLITS`.
            number: ``[T]`` int64, the episodes' numbers.

        Returns:
            T names, or `None` if tasks have no groups.
        """
        return None

    def prepare_data(self) -> None:
        """Download, in one process per machine, if needed."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the data of the tasks, and check them."""

    def loader(self, split: str, batches: int) -> DataLoader[Episode]:
        """A loader of this rank's part of ``batches`` batches of a split, made on its device.

        Raises:
            InputError: more ranks than tasks in a batch.
        """
        device, rank, ranks = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            rank, ranks = self.trainer.global_rank, self.trainer.world_size
        tasks = self.tasks_of(split)
        if ranks > tasks:
            raise InputError(
                f"{self.key('tasks_per_batch', split)}={tasks} cannot be divided among {ranks} "
                f"processes: it must be at least {ranks}"
            )
        limit = self.train_tasks if split == "train" else None
        dataset = EpisodeBatches(self.episodes(split, device), tasks, rank, ranks, limit)

        def epoch() -> int:
            trainer = self.trainer
            if split != "train" or trainer is None or getattr(trainer, "overfit_batches", False):
                return 0  # the same tasks every time
            return trainer.current_epoch

        # batch_size=None: an item of the dataset already is a batch.
        return DataLoader(dataset, batch_size=None, sampler=EpochOrder(batches, epoch))

    def tasks_of(self, split: str) -> int:
        """T, the tasks of a batch of this split."""
        return self.train_tasks_per_batch if split == "train" else self.tasks_per_batch

    def sizes_of(self, split: str) -> tuple[int | tuple[int, int], int | tuple[int, int]]:
        """Shots and queries of a split's tasks."""
        if split == "train":
            return self.train_shots, self.train_queries
        return self.shots, self.queries

    def fixed_sizes(self, split: str) -> tuple[int, int]:
        """Shots and queries of a split's tasks, of a kind whose sizes are not drawn.

        Raises:
            InputError: a range.
        """
        fixed = []
        for name, number in zip(("shots", "queries"), self.sizes_of(split), strict=True):
            if not isinstance(number, int):
                key = self.key(name, split)
                raise InputError(f"{key}={list(number)}: must be one whole number")
            fixed.append(number)
        return fixed[0], fixed[1]

    def key(self, name: str, split: str) -> str:
        """The config key of a size in a split: ``data.shots``, or ``data.train_shots``."""
        own = split == "train" and getattr(self, f"train_{name}") != getattr(self, name)
        return f"data.train_{name}" if own else f"data.{name}"

    def train_dataloader(self) -> DataLoader[Episode]:
        """Meta-training: new episodes every epoch."""
        return self.loader("train", self.batches["train"])

    def val_dataloader(self) -> DataLoader[Episode]:
        """Meta-validation: the same episodes every epoch and run."""
        return self.loader("val", self.batches["val"])

    def test_dataloader(self) -> DataLoader[Episode]:
        """Meta-test: the same episodes every run."""
        return self.loader(self.test_split, self.batches["test"])


class TaskSampler(ABC):
    """Task i of a split, as a pure function of (seed, split, i), where all have the same size.

    More shots or queries only add to a task.

    Args:
        data: provides seeds, shots and queries.
        split: one of `SPLITS`, part of the hash.
        device: where tasks are made.
        *more: further parts of the hash.

    Raises:
        InputError: an unknown split.
    """

    def __init__(
        self, data: TaskDataModule, split: str, device: torch.device | str, *more: int
    ) -> None:
        check_split(split)
        self.data, self.device = data, torch.device(device)
        self.shots, self.queries = data.fixed_sizes(split)
        self._state = start(data.seeds[split], SPLITS.index(split), *more).to(self.device)

    @abstractmethod
    def __call__(self, number: Tensor) -> Episode:
        """The tasks with these numbers, ``[T]`` int64, each at least 0."""


def family(source: str, **settings: Any) -> dict[str, Any]:
    """The provenance of tasks that are made from random numbers: settings, with a checksum."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()
    return {"source": f"{source} (synthetic)", **settings, "sha256": digest}


def whole(minimum: int, **settings: int) -> None:
    """Check that settings of ``data`` are whole numbers.

    Raises:
        InputError: one is not, or is below the least.
    """
    for key, value in settings.items():
        check_whole(f"data.{key}", value, minimum)


def count(minimum: int = 1, **setting: Count) -> int | tuple[int, int]:
    """Return the value of the one setting given: a number, or the minimum and maximum of one.

    Raises:
        InputError: it is neither.
    """
    ((key, value),) = setting.items()
    if type(value) is int:
        whole(minimum, **{key: value})
        return value
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    whole_ends = len(ends) == 2 and all(type(end) is int for end in ends)
    if not (whole_ends and minimum <= ends[0] <= ends[1]):
        raise InputError(
            f"data.{key}={value}: must be a whole number of at least {minimum}, or the minimum "
            f"and maximum of a range, e.g. data.{key}=[{minimum},{5 * minimum}]"
        )
    return ends[0], ends[1]


def interval(**setting: Sequence[float]) -> tuple[float, float]:
    """Return the two numbers of the one setting given.

    Raises:
        InputError: it is not two numbers in ascending order.
    """
    ((key, value),) = setting.items()
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not (len(ends) == 2 and all(is_number(end) for end in ends) and ends[0] <= ends[1]):
        raise InputError(f"data.{key}={value}: must be two numbers, minimum and maximum")
    return float(ends[0]), float(ends[1])


def switch(**setting: bool) -> bool:
    """Return the value of the one setting given.

    Raises:
        InputError: it is neither true nor false.
    """
    ((key, value),) = setting.items()
    return check_switch(f"data.{key}", value)


def least(number: int | tuple[int, int]) -> int:
    """The number, or the minimum of a range."""
    return number if isinstance(number, int) else number[0]


def most(number: int | tuple[int, int]) -> int:
    """The number, or the maximum of a range."""
    return number if isinstance(number, int) else number[1]


def check_split(split: str) -> None:
    """Check that a split exists.

    Raises:
        InputError: it does not.
    """
    if split not in SPLITS:
        raise InputError(f"split={split}: must be one of {', '.join(SPLITS)}")
