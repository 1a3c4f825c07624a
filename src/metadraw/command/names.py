"""Names of runs and sweeps, made from the command line: the same command finds its folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

_LONGEST = 120


def name_of(overrides: Sequence[str]) -> str:
    """A folder's name: ``["algorithm=maml,anil", "data.shots=5"]`` -> ``algorithm-maml+anil__...``.

    Neither a shell nor Hydra requires quotes for it.

    Args:
        overrides: as on the command line; none give ``defaults``. ``sweep=`` is left out.
    """
    kept = [o.replace("=", "-").replace(",", "+") for o in overrides if not o.startswith("sweep=")]
    parts = [re.sub(r"[^\w.+-]+", "_", override) for override in kept]
    name = "__".join(parts) or "defaults"
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}__{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def name_of_sweep(overrides: Sequence[str], choices: Mapping[str, str]) -> str:
    """`name_of`, with the sweeper of a search: without it, the same command has other jobs.

    Args:
        overrides: as on the command line.
        choices: the choice of each config group, including Hydra's.
    """
    sweeper = choices.get("hydra/sweeper", "basic")
    return name_of(overrides if sweeper == "basic" else [*overrides, f"sweeper={sweeper}"])


def of_run() -> str | None:
    """The overrides of this run, for a tracker to show; `None` outside a command."""
    if not HydraConfig.initialized():
        return None
    return " ".join(HydraConfig.get().overrides.task) or None


def of_sweep() -> str | None:
    """The name of the sweep that this run is a job of, or `None`."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def chosen(group: str) -> str | None:
    """The choice of a config group in this command; `None` outside a command."""
    if not HydraConfig.initialized():
        return None
    return HydraConfig.get().runtime.choices.get(group)


def made(folder: str) -> str:
    """Create a folder for a file that another library writes, and return its name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


OmegaConf.register_new_resolver("made", made, replace=True)
OmegaConf.register_new_resolver("chosen", chosen, replace=True)
OmegaConf.register_new_resolver("name_of_run", of_run, replace=True)
OmegaConf.register_new_resolver("name_of_sweep", of_sweep, replace=True)
# Cached, because Hydra resolves it again in each job, whose overrides are not the sweep's.
OmegaConf.register_new_resolver("sweep_name", name_of_sweep, use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_name", name_of, replace=True)
