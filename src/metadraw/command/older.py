"""Configs of older versions of metadraw, as this one would have written them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

#: Where older versions had what a config of a run calls.
_MOVED = {
    f"metadraw.{name}.": f"metadraw.training.{name}."
    for name in ("checkpoints", "console", "curves", "learner", "loggers")
}


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with today's keys; one of today as it is.

    Args:
        config: as ``config.yaml``, ``results.json`` or a checkpoint has it.
    """
    now = _moved(deepcopy(dict(config)))
    data, model = now.get("data"), now.get("model")
    if isinstance(model, dict) and str(model.get("_target_")).startswith("metadraw.models."):
        model.pop("ways", None)  # networks give features, and the objective has the outputs
    if "objective" not in now and isinstance(data, dict) and "ways" in data:
        now["objective"] = {
            "_target_": "metadraw.objectives.classification.Classification",
            "ways": data["ways"],
            "monitor": "acc",
            "mode": "max",
        }
    return now


def modern_name(parameter: str) -> str:
    """The name that a parameter in the ``state_dict`` of a run with `Conv4` has today."""
    return parameter.replace("algorithm.network.5.", "algorithm.head.")


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each) for key, each in value.items()}
    if isinstance(value, str):
        for old, new in _MOVED.items():
            if value.startswith(old):
                return new + value.removeprefix(old)
    return value
