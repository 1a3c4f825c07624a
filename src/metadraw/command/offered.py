"""What ``--help`` offers: the config groups of a command and their choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf


def offered() -> str:
    """One line for each group in the command's defaults, with its choices."""
    job = HydraConfig.get()
    folders = [Path(one.path) for one in job.runtime.config_sources if one.schema == "file"]
    groups = dict(_groups(str(job.job.config_name), folders))
    return "".join(
        f"{group}: {', '.join(_choices(group, default, folders))}\n"
        for group, default in sorted(groups.items())
        if group != "hydra"
    )


def _groups(config: str, folders: Sequence[Path]) -> Iterator[tuple[str, str | None]]:
    """Each group in a config's defaults with its choice, including those of base configs."""
    for entry in _read(config, folders).get("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_":
                yield from _groups(entry, folders)
        else:
            for group, default in entry.items():
                yield group.split()[-1].split("@")[0].lstrip("/"), default


def _choices(group: str, default: str | None, folders: Sequence[Path]) -> list[str]:
    """The default, and the choices that make objects.

    If a group needs a choice, its other files are base configs.
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
            config: Any = OmegaConf.to_container(OmegaConf.load(path))
            return config or {}
    return {}


OmegaConf.register_new_resolver("offered", offered, replace=True)
