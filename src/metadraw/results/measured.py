"""The metrics that a run measures, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from metadraw.objectives import Metric, Objective
from metadraw.objectives.classification import Classification


def objective_of(config: Mapping[str, Any]) -> type[Objective]:
    """The kind of objective of a run.

    Args:
        config: of the run; older ones have no objective, and are classification.
    """
    objective = config.get("objective") or {}
    try:
        kind = get_class(objective["_target_"])
    except Exception:  # another project's objective may not be installed
        return Classification
    return kind if issubclass(kind, Objective) else Classification


def measured(config: Mapping[str, Any]) -> Mapping[str, Metric]:
    """The metrics of a run by name, the loss first."""
    return objective_of(config).measured


def monitored(config: Mapping[str, Any]) -> Metric:
    """The metric that a run monitors."""
    metrics = measured(config)
    name = (config.get("objective") or {}).get("monitor", "acc")
    return metrics[name] if name in metrics else metrics["loss"]
