"""metadraw: few-shot meta-learning on Quick, Draw!, in two lines.

>>> cfg = metadraw.compose("algorithm=fomaml", "data.shots=5")
>>> data, learner = metadraw.build(cfg)
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

# These register the resolvers that configs call.
import metadraw.command.names
import metadraw.command.offered  # noqa: F401
from metadraw.errors import DivergedError, InputError

if TYPE_CHECKING:
    from metadraw.command.config import compose
    from metadraw.data.episode import Episode
    from metadraw.training.factory import build, load
    from metadraw.use.classifier import Classifier, FewShot

__all__ = [
    "Classifier",
    "DivergedError",
    "Episode",
    "FewShot",
    "InputError",
    "__version__",
    "build",
    "compose",
    "load",
]

try:
    __version__ = version("metadraw")
except PackageNotFoundError:  # from a checkout's src folder, not installed
    __version__ = "unknown"

_MODULES = {
    "Classifier": "use.classifier",
    "FewShot": "use.classifier",
    "Episode": "data.episode",
    "build": "training.factory",
    "compose": "command.config",
    "load": "training.factory",
}


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch and Lightning on first use: their import takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
