"""The shipped configs, composed as a command composes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from metadraw.command import keys
from metadraw.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]
#: In the package if it is installed, else at the top of the checkout.
CONFIGS = next(p for p in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if p.is_dir())


def compose(*overrides: str, config: str = "train") -> DictConfig:
    """The config that ``python train.py *overrides`` would run with.

    Args:
        *overrides: as on the command line, e.g. ``"algorithm=fomaml"``, ``"data.shots=5"``.
        config: ``train`` or ``eval``.

    Raises:
        InputError: a key that nothing reads.
    """
    with _own_hydra(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra_compose(config, list(overrides), return_hydra_config=True)
        known = keys.known(config)
    with open_dict(cfg):
        choices = cfg.pop("hydra").runtime.choices
        if OmegaConf.is_interpolation(cfg, "algorithm_name"):  # as a command resolves it
            cfg.algorithm_name = choices["algorithm"]
    keys.check(cfg, known)
    return cfg


def given(node: DictConfig) -> dict[str, Any]:
    """The keys that the user has set: those that are not null."""
    return {str(key): value for key, value in node.items() if value is not None}


def check_path(cfg: DictConfig, key: str, what: str) -> None:
    """Check that the user has given a path.

    Args:
        cfg: the config.
        key: of the path.
        what: what should be there, such as ``a checkpoint``.

    Raises:
        InputError: it is missing, null or no text.
    """
    if OmegaConf.is_missing(cfg, key):
        raise InputError(f"{key} is missing: expected {key}=PATH of {what}")
    if not isinstance(cfg[key], str):
        value = "null" if cfg[key] is None else cfg[key]
        raise InputError(f"{key}={value}: expected {key}=PATH of {what}")


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Within this context, a command's Hydra is set aside: there may be only one."""
    instance = GlobalHydra.instance()
    of_command, instance.hydra = instance.hydra, None
    try:
        yield
    finally:
        instance.hydra = of_command
