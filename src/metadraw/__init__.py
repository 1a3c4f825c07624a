"""metadraw: few-shot meta-learning on Quick, Draw!, in two lines.

>>> cfg = metadraw.compose("algorithm=fomaml", "data.shots=5")
>>> data, learner = metadraw.build(cfg)
"""

from metadraw.data.episode import Episode
from metadraw.errors import DivergedError, InputError
from metadraw.factory import build, compose, load

__all__ = ["DivergedError", "Episode", "InputError", "build", "compose", "load"]
