"""metadraw: few-shot meta-learning on Quick, Draw!, in two lines.

>>> cfg = metadraw.compose("algorithm=fomaml", "data.shots=5")
>>> data, learner = metadraw.build(cfg)
"""

from metadraw.classifier import Classifier, FewShot
from metadraw.data.episode import Episode
from metadraw.errors import DivergedError, InputError
from metadraw.factory import build, compose, load

__all__ = [
    "Classifier",
    "DivergedError",
    "Episode",
    "FewShot",
    "InputError",
    "build",
    "compose",
    "load",
]
