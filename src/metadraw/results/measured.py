"""The metrics that a run measures, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from metadraw.objectives import Metric
from metadraw.objectives.classification import Classification


def measured(config: Mapping[str, Any]) -> Mapping[str, Metric]:
    """The metrics of a run by name, the loss first.

    Args:
        config: of the run; older ones have no objective, and are classification.
    """
    objective = config.get("objective") or {}
    try:
        kind: Any = get_class(objective["_target_"])
        metrics: Mapping[str, Metric] = kind.measured
    except Exception:  # another project's objective may not be installed
        return Classification.measured
    return metrics


def monitored(config: Mapping[str, Any]) -> Metric:
    """The metric that a run monitors."""
    metrics = measured(config)
    name = (config.get("objective") or {}).get("monitor", "acc")
    return metrics[name] if name in metrics else metrics["loss"]
