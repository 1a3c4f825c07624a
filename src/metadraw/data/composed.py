"""Several data sets of classes in one: what domains and mixtures have in common."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf.errors import MissingMandatoryValue
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map

from metadraw.command import keys
from metadraw.data import cache
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings
from metadraw.data.episode import Episode
from metadraw.data.hashing import fold, start, uniform
from metadraw.data.tasks import SPLITS, Sampler
from metadraw.errors import InputError

#: What is folded into the state of an episode to choose parts: negative, because its sampler folds
#: the numbers of classes, from 0.
PART = torch.tensor(-2)


class Composed(EpisodeDataModule):
    """Tasks from several data sets, each a data module of its own.

    All tasks have the ways, shots, size and augmentation of this module; what a part's config says
    of these is not read.

    Args:
        parts: the config of each data set by name.
        **episodes: what `EpisodeDataModule` takes.

    Raises:
        InputError: no data set, or one that has no classes; see also `EpisodeDataModule`.
    """

    #: The key of ``data`` that holds the parts, for errors.
    key_of_parts: str
    #: Arguments of `EpisodeDataModule` that a part takes from its own config.
    own: tuple[str, ...] = ()

    def __init__(self, *, parts: Mapping[str, Any], **episodes: Any) -> None:
        super().__init__(**episodes)
        if not isinstance(parts, Mapping) or not parts:
            raise InputError(f"data.{self.key_of_parts}={parts}: must name at least one data set")
        shared = {key: value for key, value in episodes.items() if key not in self.own}
        settings = (keys.settings(_EPISODES) or set()) - set(self.own)
        self.parts: dict[str, EpisodeDataModule] = {}
        for name, config in parts.items():
            with self.naming(name):
                if not isinstance(config, Mapping) or "_target_" not in config:
                    raise InputError("must be a data set, such as data=quickdraw")
                mine = {key: value for key, value in config.items() if key not in settings}
                module = instantiate({**mine, **shared})
                if not isinstance(module, EpisodeDataModule):
                    raise InputError(f"{type(module).__name__} has no classes")
                self.parts[name] = module

    @contextmanager
    def naming(self, part: str) -> Iterator[None]:
        """Within this context, errors name the part."""
        where = f"data.{self.key_of_parts}.{part}"
        try:
            yield
        except MissingMandatoryValue as error:
            raise InputError(f"{where}.{error.key} is missing") from error
        except (InputError, InstantiationException) as error:
            cause = error.__cause__ if isinstance(error, InstantiationException) else error
            if not isinstance(cause, InputError):
                raise
            raise InputError(f"{where}: {cause}") from error

    @abstractmethod
    def compose(self) -> Drawings:
        """Set up all parts, and return the drawings that stand for all of them."""

    def load(self) -> Drawings:
        """The drawings that stand for all parts."""
        self.setup()
        return self.drawings

    def setup(self, stage: str | None = None) -> None:
        """Load the drawings of all parts, choose and split their classes, and check them.

        Raises:
            InputError: see `EpisodeDataModule.setup`.
        """
        if not hasattr(self, "drawings"):
            self.drawings = self.compose()

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert any picture as the first part does."""
        return self._first.prepare(image)

    @property
    def ink(self) -> bool:  # type: ignore[override]
        """Whether 255 is ink in all parts."""
        return all(part.ink for part in self.parts.values())

    @property
    def _first(self) -> EpisodeDataModule:
        return next(iter(self.parts.values()))

    def origin(self, **how: Any) -> dict[str, Any]:
        """The provenance of all parts, with one checksum of them and of how tasks are drawn."""
        of_parts = {name: dict(part.provenance) for name, part in self.parts.items()}
        checksums = {name: cache.checksum(each) for name, each in of_parts.items()}
        digest = hashlib.sha256(json.dumps([checksums, how]).encode()).hexdigest()
        return {
            "source": " and ".join(self.parts),
            self.key_of_parts: of_parts,
            **how,
            "sha256": digest,
        }


_EPISODES = f"{EpisodeDataModule.__module__}.{EpisodeDataModule.__qualname__}"


class OnePartEach:
    """Each task from one part: its episode of the same number.

    Args:
        samplers: of the parts, all on one device.
        shares: how likely each is, adding up to 1.
        split: one of `SPLITS`, part of the hash.
        seed: another seed gives other choices.
    """

    def __init__(
        self, samplers: Sequence[Sampler], shares: Sequence[float], split: str, seed: int
    ) -> None:
        self.samplers = samplers
        self._ends = torch.tensor(shares, dtype=torch.float64).cumsum(dim=0)[:-1]
        self._state = start(seed, SPLITS.index(split))

    def part_of(self, number: Tensor) -> Tensor:
        """The part, ``[T]``, of each episode with these numbers, on the CPU."""
        state = fold(fold(self._state, number.cpu()), PART)
        return torch.bucketize(uniform(state), self._ends, right=True)

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers; see `Sampler`."""
        parts = self.part_of(number)
        found, places = [], []
        for part in parts.unique().tolist():
            place = (parts == part).nonzero()[:, 0]
            found.append(self.samplers[part](number[place.to(number.device)]))
            places.append(place)
        order = torch.cat(places).argsort()
        return tree_map(lambda *rows: torch.cat(rows)[order.to(rows[0].device)], *found)
