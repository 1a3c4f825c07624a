"""Refuses config keys that nothing reads, whatever their origin, and suggests another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from metadraw.errors import InputError

#: Groups of eval.py that change a checkpoint's config: checked when that is read.
_CHANGES = ("data", "algorithm", "learner")
#: Config groups whose choices change the rest of the config, but are not part of it.
_ONLY_GROUPS = ("experiment", "sweep")
#: How many arguments the program itself passes to a group's target, by position.
_PASSED = {"algorithm": 3, "learner": 3, "optimizer": 1, "scheduler": 1}


def check_job(cfg: DictConfig) -> None:
    """`check` for the job that Hydra is running."""
    check(cfg, known(HydraConfig.get().job.config_name))


@cache
def known(config_name: str | None) -> frozenset[str] | None:
    """The keys, with dots, of a config without overrides; `None` if it needs one."""
    try:
        return frozenset(_paths(compose(config_name)))
    except HydraException:
        return None


def check(cfg: DictConfig, known: frozenset[str] | None = None) -> None:
    """Check that something reads every key.

    Next to a ``_target_``, a key must be an argument of the target. Elsewhere it must be known, or
    hold an object, such as another callback, or be a callback that is off.

    Args:
        cfg: the composed config.
        known: the keys that it has without overrides; `None` skips the second check.

    Raises:
        InputError: nothing reads a key.
    """
    _check_arguments(cfg, "", cfg, known or frozenset())
    if known is None:
        return
    for key in map(str, cfg):
        if key not in known:
            raise unknown(key, cfg)
        group = _mapping(cfg, key)
        if group is None or "_target_" in group or key in _CHANGES:
            continue
        for name in map(str, group):
            part = _mapping(group, name)
            is_object = part is not None and "_target_" in part
            is_off = key == "callbacks" and OmegaConf.select(group, name) is None
            if not (is_object or is_off) and f"{key}.{name}" not in known:
                raise unknown(f"{key}.{name}", cfg)


def unknown(key: str, cfg: DictConfig) -> InputError:
    """The error for a key that does not exist.

    Args:
        key: with dots.
        cfg: the whole config, with this key or without.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    beside = {str(k) for k in node} if isinstance(node, DictConfig) else set()
    addable = (settings(node["_target_"], parent) if "_target_" in beside else None) or set()
    prefix = f"{parent}." if parent else ""
    meant = {other: f"{prefix}{other}" for other in (*beside, *(() if parent else _ONLY_GROUPS))}
    meant |= {other: f"+{prefix}{other}" for other in addable - beside}
    if name in beside:  # the key itself
        del meant[name]
    # The same name in another group, else a similar one in the same.
    close = [path for path in _paths(cfg) if path.endswith(f".{name}") and path != key]
    if name in addable - beside:
        close.insert(0, meant[name])
    close += [meant[other] for other in get_close_matches(name, sorted(meant), 1)]
    hint = f"did you mean {close[0]}?" if close else "--help shows every key"
    return InputError(f"{key}: there is no such key: {hint}")


def _check_arguments(node: DictConfig, path: str, cfg: DictConfig, known: frozenset[str]) -> None:
    taken = settings(node["_target_"], path) if "_target_" in node else None
    for key in map(str, node):
        full = f"{path}.{key}" if path else key
        # null in eval.py means unchanged, whatever data set is chosen.
        unchanged = full in known and node._get_node(key)._is_none()  # type: ignore[union-attr]
        if taken is not None and not (key in taken or key.startswith("_") or unchanged):
            raise unknown(full, cfg)
        if (part := _mapping(node, key)) is not None:
            _check_arguments(part, full, cfg, known)


@cache
def settings(target: str, group: str = "") -> set[str] | None:
    """The names of the arguments that a config can give a class or function; `None` for any.

    A class passes its ``**kwargs`` to its next base or, if it declares an attribute of that name,
    to the attribute's type: ``**inner`` with ``inner: InnerLoop``.

    Args:
        target: the class or function.
        group: of the config, for those that the program passes more, such as the network.
    """
    try:
        callee: Any = get_object(target)
        calls = (
            [vars(base)["__init__"] for base in callee.__mro__ if "__init__" in vars(base)]
            if isinstance(callee, type)
            else [callee]
        )
        attributes = get_type_hints(callee) if isinstance(callee, type) else {}
        positional: list[str] = []
        named: set[str] = set()
        for call in calls:
            parameters = inspect.signature(call).parameters.values()
            positional += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            named |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
            if rest in attributes:
                named |= set(inspect.signature(attributes[rest]).parameters)
            if rest is None or rest in attributes:
                break
        else:
            return None
        given = [name for name in dict.fromkeys(positional) if name != "self"]
        return named | set(given[_PASSED.get(group, 0) :])
    except Exception:  # no such target, which instantiation reports, or no signature
        return None


def _mapping(node: DictConfig, key: Any) -> DictConfig | None:
    """The value of a key if it is a mapping, not an interpolation; else `None`."""
    value = node._get_node(key)
    plain = isinstance(value, DictConfig) and not (
        value._is_none() or value._is_missing() or value._is_interpolation()
    )
    return value if plain else None  # type: ignore[return-value]


def _paths(cfg: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        full = f"{path}.{key}" if path else key
        if full != "hydra":
            yield full
            if (part := _mapping(cfg, key)) is not None:
                yield from _paths(part, full)
