"""Tasks of a CSV file: outcomes of people or places, with a protected group."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metadraw.data.episode import Episode
from metadraw.data.hashing import draw, fold, mix, uniform
from metadraw.data.outcomes import OutcomeTasks, tasks_of
from metadraw.data.splits import split_classes
from metadraw.data.tasks import TaskSampler, check_split
from metadraw.errors import InputError, check_seed, to_path


class Table(OutcomeTasks):
    """Each value of one column of a CSV file, such as a region, is a task; its rows are examples.

    Like the states of Communities and Crime in Slack et al. 2020 ("Fairness Warnings and
    Fair-MAML"). Tasks are split 60 / 20 / 20 % into meta-training, -validation and -test. Features
    are scaled by mean and standard deviation over the rows of meta-training.

    Args:
        path: the file, whose first line names the columns.
        features: the columns that are inputs, numbers; if `None`, all that have no other use.
        target: the column of the outcome.
        positive: its value where the outcome is positive.
        protected: the column of the protected attribute; never an input.
        group: its value for the protected group.
        task: the column that says which task a row belongs to.
        split_seed: which tasks are for meta-training, -validation and -test.
        **tasks: see `OutcomeTasks`.

    Raises:
        InputError: columns that are no names; see also `OutcomeTasks`. In `setup`: no such file, a
            missing column or value, a feature that is no number, or too few tasks.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        features: Sequence[str] | None,
        target: str,
        positive: str | float,
        protected: str,
        group: str | float,
        task: str,
        split_seed: int,
        **tasks: Any,
    ) -> None:
        super().__init__(**tasks)
        if isinstance(features, str) or not isinstance(features, Sequence | None):
            raise InputError(
                f"data.features={features}: must be a list of columns, or null for all"
            )
        check_seed("data.split_seed", split_seed)
        self.path, self.split_seed = to_path("data.path", path), split_seed
        self.features = None if features is None else [str(name) for name in features]
        self.columns = {"target": str(target), "protected": str(protected), "task": str(task)}
        if len(set(self.columns.values())) < len(self.columns):
            shown = ", ".join(f"data.{key}={name}" for key, name in self.columns.items())
            raise InputError(f"{shown}: must be three different columns")
        self.values = {"target": ("positive", positive), "protected": ("group", group)}
        self._width: int | None = None
        self.splits: dict[str, list[str]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the file, split its tasks, and check them; see the class."""
        if self.splits:
            return
        rows, names = self._read()
        x = self._numbers(rows, names)
        tasks = [row[self.columns["task"]] for row in rows]
        known = sorted(set(tasks))
        self.splits = split_classes(known, self.split_seed)
        if not all(self.splits.values()):
            self.splits = {}
            raise InputError(
                f"data.task={self.columns['task']}: {self.path} has {len(known)} tasks: must be at "
                "least 3, for meta-training, -validation and -test"
            )
        # Sorted by task, so that each has consecutive rows.
        number = np.array([known.index(each) for each in tasks])
        order = np.argsort(number, kind="stable")
        in_training = np.isin(number, [known.index(each) for each in self.splits["train"]])
        mean, deviation = x[in_training].mean(axis=0), x[in_training].std(axis=0)
        scaled = (x - mean) / np.where(deviation > 0, deviation, 1)
        self.names = known
        self.x = torch.from_numpy(scaled[order].astype(np.float32))
        self.y, self.protected = (
            torch.from_numpy(self._flags(rows, key)[order]) for key in ("target", "protected")
        )
        self.counts = torch.from_numpy(np.bincount(number))
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _read(self) -> tuple[list[dict[str, str]], list[str]]:
        """The rows of the file, and the columns that are features."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, restval=None)
                rows, head = list(reader), list(reader.fieldnames or [])
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"data.path={self.path}: not a readable CSV file ({error})") from error
        used = list(self.columns.values())
        chosen = self.features if self.features is not None else [n for n in head if n not in used]
        given = {**{f"data.{key}": name for key, name in self.columns.items()}}
        for key, name in [*given.items(), *(("data.features", name) for name in chosen)]:
            if name not in head:
                close = get_close_matches(name, head, n=1, cutoff=0)
                hint = f"; the closest column to it is {close[0]}" if close else ""
                raise InputError(f"{key}={name}: {self.path} has no such column{hint}")
        if shared := [name for name in chosen if name in used]:
            raise InputError(f"data.features: {shared[0]} is target, protected attribute or task")
        if not chosen:
            raise InputError(f"data.features: {self.path} has no column left for them")
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise InputError(f"{self.path}: row {line} has not {len(head)} cells")
        return rows, chosen

    def _numbers(self, rows: list[dict[str, str]], names: list[str]) -> np.ndarray:
        """Features, float64 ``[rows, F]``."""
        found = np.empty((len(rows), len(names)))
        for line, row in enumerate(rows):
            for place, name in enumerate(names):
                try:
                    found[line, place] = float(row[name])
                except ValueError:
                    found[line, place] = np.nan
                if not np.isfinite(found[line, place]):
                    raise InputError(
                        f"data.features: {self.path}, row {line + 2}: {name} is {row[name]!r}: "
                        "must be a number"
                    )
        return found

    def _flags(self, rows: list[dict[str, str]], key: str) -> np.ndarray:
        """Whether a column of each row has the value that counts, ``[rows]``: int64 or bool."""
        column, (setting, wanted) = self.columns[key], self.values[key]
        cells = [row[column] for row in rows]
        found = np.array([_same(cell, str(wanted)) for cell in cells])
        if found.all() or not found.any():
            how, others = "every" if found.all() else "no", ", ".join(sorted(set(cells))[:3])
            raise InputError(
                f"data.{setting}={wanted}: {how} row has this value of {column}: must be that of "
                f"some rows (it has {others})"
            )
        return found.astype(np.int64) if key == "target" else found

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The file, its checksum and the choice of columns."""
        self.setup()
        chosen = {key: value for key, (_, value) in self.values.items()}
        return {
            "source": self.path.name,
            "columns": {**self.columns, "features": self.features},
            "values": chosen,
            "sha256": self.sha256,
        }

    def episodes(self, split: str, device: torch.device | str = "cpu") -> TableSampler:
        """See `TaskDataModule.episodes`."""
        check_split(split)
        self.setup()
        shots, queries = self.fixed_sizes(split)
        names = self.names if split == "all" else self.splits[split]
        chosen = torch.tensor([self.names.index(name) for name in names])
        smallest = int(self.counts[chosen].argmin())
        if (rows := int(self.counts[chosen[smallest]])) < shots + queries:
            raise InputError(
                f"{self.key('shots', split)}={shots} + {self.key('queries', split)}={queries} = "
                f"{shots + queries} rows of a task, but there are {rows} of {names[smallest]}: ask "
                "for fewer, or leave such tasks out of the file"
            )
        return TableSampler(self, split, device, chosen)


class TableSampler(TaskSampler):
    """Task i of a split, see `TaskSampler`: one of the split's, any rows of it.

    Args:
        data: which is set up.
        split: see `TaskSampler`.
        device: likewise.
        chosen: ``[M]`` int64, the split's tasks.
    """

    def __init__(self, data: Table, split: str, device: torch.device | str, chosen: Tensor) -> None:
        super().__init__(data, split, device)
        self.chosen = chosen.to(device)
        self.x, self.y, self.protected, self.counts = (
            each.to(device) for each in (data.x, data.y, data.protected, data.counts)
        )
        self.first = self.counts.cumsum(dim=0) - self.counts

    def __call__(self, number: Tensor) -> Episode:
        """The tasks with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            T tasks, float32 x ``[T, K, F]`` and ``[T, Q, F]``; ``about`` has ``task``, ``[T]``, the
            position of its value among all, sorted.
        """
        number = number.to(self.device)
        state = fold(self._state, number)
        task = self.chosen[(uniform(mix(state)) * len(self.chosen)).long()]
        rows = self.first[task, None] + draw(state, self.counts[task], self.shots + self.queries)
        x, y, protected = (each[rows] for each in (self.x, self.y, self.protected))
        return tasks_of(x, y, protected, self.shots, number, task=task)


def _same(cell: str, wanted: str) -> bool:
    """Whether a cell has a value, as text or as a number."""
    try:
        return float(cell) == float(wanted)
    except ValueError:
        return cell.strip() == wanted
