"""A trained meta-learner in use: it learns new classes from a few examples.

>>> meta_learner = metadraw.FewShot("RUN/checkpoints/best.ckpt")
>>> classifier = meta_learner.adapt({"cat": ["a.png", "b.png"], "dog": ["c.jpg"]})
>>> classifier.predict(["new.png"])
['dog']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from metadraw.algorithms import State
from metadraw.command.config import CONFIGS, compose
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.episode import Episode, Examples
from metadraw.data.pictures import FORMATS
from metadraw.errors import InputError, check_whole
from metadraw.training.factory import read_checkpoint, trained
from metadraw.training.learner import MetaLearner
from metadraw.use import choosing
from metadraw.use.calibration import Calibration

#: A file, a PIL image, an array ``[H, W]`` or ``[H, W, C]``, or a tensor ``[H, W]`` or
#: ``[C, H, W]``; uint8 in 0..255 or float in 0..1.
Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor

_VERSION = 1


class FewShot:
    """A checkpoint that adapts to any classes, each given by a few examples.

    Pictures are converted to the format of the training data (`EpisodeDataModule.prepare`); an
    array or tensor of the right size is used unchanged. Each is classified independently: batch
    norm uses the statistics of the examples, or running ones if the run used these.

    Args:
        checkpoint: of a metadraw run.

    Raises:
        InputError: no such checkpoint.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        saved = read_checkpoint(checkpoint)
        self.checkpoint, self.config = str(checkpoint), saved["metadraw_config"]
        self.state = saved["state_dict"]
        self.calibration = Calibration(**saved.get("metadraw_calibration", {}))
        self.data, self.learner = _restore(saved, self.checkpoint)

    @property
    def ways(self) -> tuple[int, int] | None:
        """The minimum and maximum number of classes that it can learn, `None` if any will do."""
        trained = self.data.ways
        if self.learner.algorithm.any_ways:
            return None
        return (trained, trained) if isinstance(trained, int) else trained

    def adapt(
        self, examples: Mapping[str, Sequence[Picture]], steps: int | None = None
    ) -> Classifier:
        """Learn classes from examples.

        Args:
            examples: a few pictures of each class, by its name; their numbers may differ.
            steps: adaptation steps, the algorithm's ``eval_inner_steps`` if `None`.

        Raises:
            InputError: fewer than two classes, a class without a picture, a picture that cannot be
                read, an impossible number of steps, or a number of classes that the algorithm
                cannot learn.
        """
        if steps is not None:
            check_whole("steps", steps, 0)
        classes = tuple(str(name) for name in examples)
        if len(classes) < 2:
            raise InputError(f"examples of {len(classes)} classes: at least 2 are needed")
        for name, pictures in examples.items():
            if isinstance(pictures, str | Path | Image.Image) or not len(pictures):
                raise InputError(f"class {name!r}: a list of at least one picture is needed")
        self.check_ways(len(classes))
        learner = self.learner
        steps = learner.algorithm.eval_inner_steps if steps is None else steps
        support_x = self.prepare([p for pictures in examples.values() for p in pictures])
        counts = torch.tensor([len(pictures) for pictures in examples.values()])
        support_y = torch.arange(len(classes)).repeat_interleave(counts)
        task = _task(support_x, support_y, support_x[:0], len(classes))
        path = learner.adapt_path(task, steps)
        about = {
            "checkpoint": self.checkpoint,
            "algorithm": type(learner.algorithm).__name__,
            "examples": dict(zip(classes, counts.tolist(), strict=True)),
            "steps": steps if learner.algorithm.inner else 0,
        }
        return Classifier(
            classes, about, self, support_x, support_y, _kept(path[0]), _kept(path[-1])
        )

    def prepare(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures as the network expects them, float32 ``[B, C, H, W]`` in 0..1.

        Raises:
            InputError: one that is not a picture or cannot be read.
        """
        return torch.stack([self._prepare(picture) for picture in pictures])

    def _prepare(self, picture: Picture) -> Tensor:
        if isinstance(picture, np.ndarray | Tensor):
            array = _as_array(picture)
            channels_first = np.moveaxis(array, -1, 0)
            if channels_first.shape == self.data.image_shape:
                return torch.from_numpy(channels_first.copy()).float() / 255
            picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        elif not isinstance(picture, str | Path | Image.Image):
            raise InputError(
                f"{type(picture).__name__}: expected a file, PIL image, array or tensor"
            )
        try:
            # A file is prepared exactly as in a folder of images.
            if isinstance(picture, Image.Image):
                prepared = self.data.prepare(picture)
            else:
                with Image.open(picture, formats=FORMATS) as image:
                    prepared = self.data.prepare(image)
        except FileNotFoundError as error:
            raise InputError(f"{picture}: there is no such file") from error
        except Exception as error:  # a damaged image raises nearly anything
            name = "a picture" if isinstance(picture, Image.Image) else picture
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{name}: not a readable image ({reason})") from error
        return torch.from_numpy(prepared).float() / 255

    def check_ways(self, ways: int) -> None:
        """Check that it can learn so many classes.

        Raises:
            InputError: it cannot.
        """
        least, largest = self.ways or (ways, ways)
        if not least <= ways <= largest:
            raise InputError(
                f"{ways} classes: {type(self.learner.algorithm).__name__} was trained with "
                f"{least if least == largest else f'{least} to {largest}'} and can learn no other "
                f"number; these algorithms can: {', '.join(_any_ways())}"
            )


class Answer(NamedTuple):
    """What a classifier says of B pictures."""

    probabilities: Tensor  # [B, N]
    none: Tensor  # [B] bool, whether a picture is like none of the classes


@dataclass(frozen=True)
class Classifier:
    """The result of `FewShot.adapt`.

    Attributes:
        classes: N names.
        about: how it was adapted: checkpoint, algorithm, examples per class, steps.
        meta_learner: the one that made it.
        support_x: its examples, ``[B, C, H, W]``.
        support_y: their labels, ``[B]`` int64.
        before: the state before adaptation.
        after: the adapted state.
    """

    classes: tuple[str, ...]
    about: dict[str, Any]
    meta_learner: FewShot = field(repr=False)
    support_x: Tensor = field(repr=False)
    support_y: Tensor = field(repr=False)
    before: State = field(repr=False)
    after: State = field(repr=False)

    def probabilities(self, pictures: Sequence[Picture], adapted: bool = True) -> Tensor:
        """Each class's probability for each picture, ``[B, N]``.

        Args:
            pictures: B of them; each result is independent of the others.
            adapted: in the adapted state, or for comparison in the state before.

        Raises:
            InputError: a picture that cannot be read.
        """
        return self.answer(pictures, adapted).probabilities

    def predict(self, pictures: Sequence[Picture]) -> list[str]:
        """The most probable class of each picture.

        Raises:
            InputError: a picture that cannot be read.
        """
        best = self.probabilities(pictures).argmax(dim=1).tolist()
        return [self.classes[label] for label in best]

    def none_of_these(self, pictures: Sequence[Picture]) -> list[bool]:
        """Whether each picture is like none of the classes; never, if not calibrated.

        Raises:
            InputError: a picture that cannot be read.
        """
        return self.answer(pictures).none.tolist()

    def answer(self, pictures: Sequence[Picture], adapted: bool = True) -> Answer:
        """Probabilities, and whether each picture is like none of the classes, in one pass.

        Args:
            pictures: see `probabilities`.
            adapted: see `probabilities`.

        Raises:
            InputError: a picture that cannot be read.
        """
        if not len(pictures):
            return Answer(torch.empty(0, len(self.classes)), torch.empty(0, dtype=torch.bool))
        task = self._task(self.meta_learner.prepare(pictures))
        logits = self.meta_learner.learner.answer(self.after if adapted else self.before, task)
        temperature, threshold = self._calibrated()
        return Answer((logits / temperature).softmax(dim=1), logits.amax(dim=1) < threshold)

    def suggest(
        self, pool: Sequence[Picture], n: int, strategy: str = "facility_location", seed: int = 0
    ) -> list[int]:
        """Which pictures of a pool to label next, as examples for another `FewShot.adapt`.

        Args:
            pool: unlabelled pictures.
            n: how many to choose; all, in their order, if there are fewer.
            strategy: one of `metadraw.use.choosing.STRATEGIES`.
            seed: of the strategies that choose at random.

        Returns:
            Their positions in the pool, the most useful one first.

        Raises:
            InputError: an unknown strategy, an impossible number, or a picture that cannot be read.
        """
        choosing.check(n, strategy, seed)
        if not len(pool):
            return []
        x, learner = self.meta_learner.prepare(pool), self.meta_learner.learner
        task = self._task(torch.cat([self.support_x, x]))
        logits, features = learner.answer(self.after, task), learner.features(self.after, task)
        known = len(self.support_x)
        chances = (logits[known:] / self._calibrated()[0]).softmax(dim=1)
        seen = choosing.Pool(chances, features[known:], features[:known], seed)
        return choosing.choose(seen, n, strategy)

    def weakest(self) -> str:
        """The class that another example would help most, see `choosing.weakest_class`."""
        label = choosing.weakest_class(self._held_out, self.support_y, len(self.classes))
        return self.classes[label]

    def _held_out(self, kept: Tensor) -> Tensor:
        """The probabilities ``[B, N]`` of all examples after learning from ``kept``, ``[B]``."""
        learner = self.meta_learner.learner
        support_y = self.support_y[kept]
        task = _task(self.support_x[kept], support_y, self.support_x, len(self.classes))
        temperature, _ = self.meta_learner.calibration.at(_inverse_shots(support_y))
        state = learner.adapt(task, self.about["steps"])
        return (learner.answer(state, task) / temperature).softmax(dim=1)

    def _task(self, x: Tensor) -> Episode:
        """Its examples, and prepared pictures to classify."""
        return _task(self.support_x, self.support_y, x, len(self.classes))

    def _calibrated(self) -> tuple[float, float]:
        """Temperature and threshold, see `Calibration.at`."""
        return self.meta_learner.calibration.at(_inverse_shots(self.support_y))

    def save(self, path: str | Path) -> None:
        """Write everything that `load` needs into one file; its only pictures are the examples."""
        torch.save(
            {
                "metadraw_classifier": _VERSION,
                "metadraw_config": self.meta_learner.config,
                "state_dict": self.meta_learner.state,
                "metadraw_calibration": self.meta_learner.calibration._asdict(),
                "classes": list(self.classes),
                "about": self.about,
                "support_x": self.support_x,
                "support_y": self.support_y,
                "before": self.before,
                "after": self.after,
            },
            path,
        )

    @staticmethod
    def load(path: str | Path) -> Classifier:
        """A classifier that was saved, read without running any code in the file.

        Raises:
            InputError: no such file, or one of another kind.
        """
        saved = read_checkpoint(path)
        if saved.get("metadraw_classifier") != _VERSION:
            raise InputError(f"{path}: a checkpoint, not a classifier that was adapted and saved")
        meta_learner = FewShot(path)
        meta_learner.checkpoint = saved["about"]["checkpoint"]
        parts = (saved[key] for key in ("support_x", "support_y", "before", "after"))
        return Classifier(tuple(saved["classes"]), saved["about"], meta_learner, *parts)


def _restore(saved: dict[str, Any], path: str) -> tuple[EpisodeDataModule, MetaLearner]:
    """A data module, whose drawings are not loaded, and the trained learner."""
    cfg = OmegaConf.create(saved["metadraw_config"])
    if cfg.learner.query_statistics != "running":  # by which pictures come one by one, too
        cfg.learner.query_statistics = "support"
    if cfg.data.get("samples_per_class") == "all":  # a few real drawings to show need no 39 GB
        cfg.data.samples_per_class = 100
    data = instantiate(cfg.data)
    if not isinstance(data, EpisodeDataModule):
        raise InputError(f"{path}: was trained on tasks without classes ({type(data).__name__})")
    return data, trained(saved, path, cfg, data).float().eval()


def _task(support_x: Tensor, support_y: Tensor, query_x: Tensor, ways: int) -> Episode:
    """Examples to learn from, and pictures of unknown classes to classify."""
    unknown = torch.zeros(0, dtype=torch.int64)
    support, query = Examples(support_x, support_y), Examples(query_x, unknown)
    return Episode(support, query, torch.tensor(0), about={"classes": torch.arange(ways)})


def _inverse_shots(support_y: Tensor) -> float:
    """1 / k, the mean over the classes of labels ``[B]``."""
    return support_y.bincount().double().reciprocal().mean().item()


def _any_ways() -> list[str]:
    """The shipped algorithms that can learn any number of classes."""
    choices = [path.stem for path in sorted((CONFIGS / "algorithm").glob("*.yaml"))]
    targets = {name: get_class(compose(f"algorithm={name}").algorithm._target_) for name in choices}
    return [name for name, kind in targets.items() if getattr(kind, "any_ways", False)]


def _kept(state: State) -> State:
    """A state without its graph, and without sharing memory with the meta-parameters."""
    return {name: value.detach().clone() for name, value in state.items()}


def _as_array(picture: np.ndarray | Tensor) -> np.ndarray:
    """Pixels as ``uint8 [H, W, C]``."""
    if isinstance(picture, Tensor):
        array = picture.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = picture
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"a picture of shape {tuple(picture.shape)}: expected an array [H, W] or [H, W, C], or "
            "a tensor [H, W] or [C, H, W], with 1, 3 or 4 channels"
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError("a picture of floats that are not all in 0..1")
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"a picture of {array.dtype}: expected uint8 in 0..255 or float in 0..1")
    return array
