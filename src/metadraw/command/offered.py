"""What ``--help`` offers: the config groups of a command, and of each what can be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf


def offered() -> str:
    """A line for each group in the defaults of the command, with its choices."""
    job = HydraConfig.get()
    folders = [Path(one.path) for one in job.runtime.config_sources if one.schema == "file"]
    groups = dict(_groups(str(job.job.config_name), folders))
    return "".join(
        f"{group}: {', '.join(_choices(group, default, folders))}\n"
        for group, default in sorted(groups.items())
        if group != "hydra"
    )


def _groups(config: str, folders: Sequence[Path]) -> Iterator[tuple[str, str | None]]:
    """Each group of a config's defaults with the choice there, also of the configs it builds on."""
    for entry in _read(config, folders).get("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_":
                yield from _groups(entry, folders)
        else:
            for group, default in entry.items():
                yield group.split()[-1].split("@")[0].lstrip("/"), default


def _choices(group: str, default: str | None, folders: Sequence[Path]) -> list[str]:
    """The default and whatever makes objects.

    Where there has to be a choice, the other files are for these to build on.
    """
    names = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    making = [name for name in names if _makes_objects(group, name, folders)]
    if default is None or not making:
        return names
    return [name for name in names if name in making or name == default]


def _makes_objects(group: str, name: str, folders: Sequence[Path]) -> bool:
    config = _read(f"{group}/{name}", folders)
    if any("_target_" in part for part in (config, *config.values()) if isinstance(part, dict)):
        return True
    bases = [entry for entry in config.get("defaults", []) if isinstance(entry, str)]
    return any(_makes_objects(group, base, folders) for base in bases if base != "_self_")


def _read(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            found: Any = OmegaConf.to_container(OmegaConf.load(path))
            return found or {}
    return {}


OmegaConf.register_new_resolver("offered", offered, replace=True)
