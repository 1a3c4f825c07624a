"""Meta-learning algorithms, one file each: how one task is learned, what is minimised outside."""

from metadraw.algorithms.base import Algorithm, Outcome, State

__all__ = ["Algorithm", "Outcome", "State"]
