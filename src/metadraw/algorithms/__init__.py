"""Meta-learning algorithms, one file each: how a task is learned, and the outer loss."""

from metadraw.algorithms.base import Algorithm, Outcome, State

__all__ = ["Algorithm", "Outcome", "State"]
