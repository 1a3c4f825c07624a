"""Translates configs of older versions of metadraw."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

#: Targets in configs of runs, at their old and new paths.
_MOVED = {
    f"metadraw.{name}.": f"metadraw.training.{name}."
    for name in ("checkpoints", "console", "curves", "learner", "loggers")
}


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with current keys; a current one is unchanged.

    Args:
        config: from ``config.yaml``, ``results.json`` or a checkpoint.
    """
    now = _moved(deepcopy(dict(config)))
    data, model = now.get("data"), now.get("model")
    if isinstance(model, dict) and str(model.get("_target_")).startswith("metadraw.models."):
        model.pop("ways", None)  # networks return features, and the objective has the ways
    if "objective" not in now and isinstance(data, dict) and "ways" in data:
        now["objective"] = {
            "_target_": "metadraw.objectives.classification.Classification",
            "ways": data["ways"],
            "monitor": "acc",
            "mode": "max",
        }
    return now


def modernise(checkpoint: dict[str, Any]) -> None:
    """Translate a checkpoint of an older version in place; leave a current one unchanged.

    Without objectives, the head was the last layer of the network, the sixth of `Conv4`. The time
    so far was only in the rows of `Curves`.
    """
    states = checkpoint.get("callbacks", {})
    if "EpochLines" in states and "seconds" not in states["EpochLines"]:
        rows = states.get("Curves", {}).get("rows", [])
        states["EpochLines"]["seconds"] = sum(row.get("seconds", 0.0) for row in rows)
    config = checkpoint["metadraw_config"]
    if "objective" not in config:
        checkpoint["metadraw_config"] = modern(config)
        checkpoint["state_dict"] = {
            name.replace("algorithm.network.5.", "algorithm.head."): value
            for name, value in checkpoint["state_dict"].items()
        }


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each) for key, each in value.items()}
    if isinstance(value, str):
        for old, new in _MOVED.items():
            if value.startswith(old):
                return new + value.removeprefix(old)
    return value
