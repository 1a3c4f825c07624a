"""What a run of some config measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from metadraw.objectives import Metric
from metadraw.objectives.classification import Classification


def measured(config: Mapping[str, Any]) -> Mapping[str, Metric]:
    """The metrics of a run by name, the loss first.

    Args:
        config: of the run; without an objective, as before there were any, it is classification.
    """
    objective = config.get("objective") or {}
    try:
        kind: Any = get_class(objective["_target_"])
        metrics: Mapping[str, Metric] = kind.measured
    except Exception:  # of another project, which need not be installed
        return Classification.measured
    return metrics


def monitored(config: Mapping[str, Any]) -> Metric:
    """The metric that a run is judged by."""
    metrics = measured(config)
    name = (config.get("objective") or {}).get("monitor", "acc")
    return metrics[name] if name in metrics else metrics["loss"]
