"""Reads the run folders of a sweep, finished or not."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml  # a dependency of Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metadraw.errors import InputError


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: value by key, as typed.
        folder: of the run, `None` if it has not begun.
        config: its resolved config, empty if it has not begun.
        curves: a mapping per epoch, as in ``metrics.csv``.
        results: the contents of ``results.json``, `None` if it is not finished.
        error: the error that ended its latest try, `None` if there was none.
    """

    overrides: dict[str, str]
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    curves: tuple[dict[str, float], ...] = ()
    results: dict[str, Any] | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The overrides as typed."""
        return " ".join(f"{key}={value}" for key, value in self.overrides.items())

    @property
    def status(self) -> str:
        """``finished``, ``12 of 50 epochs``, ``failed: why`` or ``not begun``."""
        if self.results is not None:
            return "finished"
        if self.error is not None:
            return f"failed: {self.error}"
        if self.folder is None:
            return "not begun"
        return f"{len(self.curves)} of {self.config['trainer']['max_epochs']} epochs"


def read_sweep(folder: Path) -> list[Job]:
    """All jobs of a sweep in the order in which it runs them, even if it is still running.

    Args:
        folder: of a sweep, or any folder with run folders in it.

    Raises:
        InputError: no run has begun there, or a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    # train.py writes the first at its beginning, eval.py only the second.
    by_folder = {
        path.parent: path
        for name in ("results.json", "config.yaml")
        for path in sorted(folder.glob(f"*/{name}"))
    }
    begun = [_read(f) for f in sorted(by_folder, key=lambda f: by_folder[f].stat().st_mtime)]
    failed = [
        _read(path.parent)
        for path in sorted(folder.glob("*/error.txt"))
        if path.parent not in by_folder
    ]
    if not begun and not failed:
        raise InputError(f"{folder} has no run folders: give the folder of a sweep")
    jobs = begun + failed
    planned = {job.name: job for job in map(Job, _planned(folder))}
    return list((planned | {job.name: job for job in jobs}).values())


def _read(folder: Path) -> Job:
    path = folder / "config.yaml"
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        path = folder / ".hydra" / "overrides.yaml"
        typed = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
        path, curves = folder / "metrics.csv", []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    curves.append({key: float(value) for key, value in row.items() if value})
        path = folder / "results.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        config = config or (results or {}).get("config", {})
        path = folder / "error.txt"
        error = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    except (OSError, ValueError, TypeError, yaml.YAMLError, csv.Error) as problem:
        raise InputError(f"{path}: damaged ({' '.join(str(problem).split())})") from problem
    return Job(_by_key(typed), folder, config, tuple(curves), results, error)


def _planned(folder: Path) -> list[dict[str, str]]:
    """The overrides of each job that Hydra's basic sweeper makes from the command."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return []
    typed = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") or []
    choices: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(list(typed)):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            return []  # a search: its jobs are not known in advance
        else:
            choices.append([f"{key}={override.get_value_element_as_str()}"])
    return [_by_key(one) for one in product(*choices)]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}
