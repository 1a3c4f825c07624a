"""Objectives: the loss and metrics of one task."""

from metadraw.objectives.base import Metric, Objective

__all__ = ["Metric", "Objective"]
