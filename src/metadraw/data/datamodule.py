"""N-way k-shot episodes of classes: class splits, augmentation, and the images in memory."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metadraw.data import cache
from metadraw.data.augmentation import ORIENTATIONS, Affine
from metadraw.data.bitmap import to_bitmap
from metadraw.data.drawings import Drawings
from metadraw.data.episode import Episode, Examples
from metadraw.data.figures import draw_episode
from metadraw.data.mapped import MappedImages
from metadraw.data.sampling import EpisodeSampler
from metadraw.data.splits import Names, chosen_classes, group_of, named_splits, split_classes
from metadraw.data.tasks import Count, TaskDataModule, check_split, count, most, switch, whole
from metadraw.errors import InputError, check_seed, is_number, is_whole


class EpisodeDataModule(TaskDataModule):
    """Batches of N-way k-shot episodes from any drawings; a data set implements `load`.

    Args:
        ways: N, classes per task, at least 2; or its minimum and maximum, between which N is drawn.
        train_ways: N in meta-training, ``ways`` if `None`; for algorithms that learn any number of
            ways.
        vary: what numbers are drawn for, if they are ranges: ``batch``, ``task`` or ``class``, see
            `EpisodeSampler`.
        unlabelled: U, further drawings of each class, without labels.
        distractors: classes beside a task's that have U unlabelled drawings, too.
        rotation: meta-training drawings are rotated at random by up to this many degrees.
        zoom: their size changes at random by up to this share.
        shear: they are sheared at random by up to this many degrees.
        split_seed: which classes are for meta-training, -validation and -test, unless they are
            named.
        new_classes: ``rotations`` (x 4) or ``rotations_mirrors`` (x 8) makes each orientation of a
            meta-training class a separate class (Santoro et al. 2016, "Meta-learning with
            memory-augmented neural networks"); ``none`` adds none.
        shift: meta-training drawings are shifted at random by up to this many pixels in each
            direction.
        mirror: meta-training drawings are mirrored left-right at random.
        train_samples_per_class: how many drawings of each class meta-training uses, the first ones;
            all if `None`.
        image_size: height and width of a drawing in pixels.
        image_channels: 1 for grey, 3 for RGB.
        classes: the classes to use, as a list of names or the path of a text file with one name per
            line; all if `None`.
        exclude_classes: classes to leave out, in the same form.
        train_classes: those for meta-training, in the same form; give all three splits or none.
        val_classes: those for meta-validation.
        test_classes: those for meta-test.
        within_groups: all classes of a task are of one group, which is what precedes the last ``/``
            of their names, such as an alphabet. Groups of fewer classes than ``ways`` are not used.
        **tasks: see `TaskDataModule`.

    Raises:
        InputError: an impossible value, here or, if that depends on the drawings, in `setup`.
    """

    #: Whether 255 is ink, which figures show in black, rather than light.
    ink = True
    drawings: Drawings
    splits: dict[str, list[str]]

    def __init__(
        self,
        *,
        ways: Count,
        train_ways: Count | None = None,
        vary: str = "batch",
        unlabelled: int = 0,
        distractors: int = 0,
        rotation: float = 0.0,
        zoom: float = 0.0,
        shear: float = 0.0,
        split_seed: int,
        new_classes: str,
        shift: int,
        mirror: bool,
        train_samples_per_class: int | None,
        image_size: int = 28,
        image_channels: int = 1,
        classes: Names | None = None,
        exclude_classes: Names | None = None,
        train_classes: Names | None = None,
        val_classes: Names | None = None,
        test_classes: Names | None = None,
        within_groups: bool = False,
        **tasks: Any,
    ) -> None:
        super().__init__(**tasks)
        self.ways = count(2, ways=ways)
        self.train_ways = self.ways if train_ways is None else count(2, train_ways=train_ways)
        if vary not in ("batch", "task", "class"):
            raise InputError(f"data.vary={vary}: must be batch, task or class")
        whole(0, unlabelled=unlabelled, distractors=distractors)
        if distractors and not unlabelled:
            raise InputError(
                f"data.distractors={distractors}: with data.unlabelled=0 they have no drawings: "
                "must be 0, or data.unlabelled at least 1"
            )
        self.vary, self.unlabelled, self.distractors = vary, unlabelled, distractors
        for key, value, largest in (
            ("rotation", rotation, 180),
            ("zoom", zoom, 0.9),
            ("shear", shear, 60),
        ):
            if not is_number(value) or not 0 <= value <= largest:
                raise InputError(f"data.{key}={value}: must be a number in 0..{largest}")
        # Known if all tasks have the same number of ways.
        self.chance = 1 / self.ways if isinstance(self.ways, int) else None
        whole(0, shift=shift)
        whole(1, image_size=image_size, image_channels=image_channels)
        sizes = (self.train_ways, *self.sizes_of("train"))
        ranges = [size for size in sizes if not isinstance(size, int)]
        batch = self.tasks_of("train")
        if ranges and vary == "batch" and self.train_tasks is not None and self.train_tasks % batch:
            raise InputError(
                f"data.train_tasks={self.train_tasks}: with a range of ways or shots, which are "
                "drawn for every batch, must be a multiple of "
                f"{self.key('tasks_per_batch', 'train')}={batch}"
            )
        needed = most(self.train_shots) + most(self.train_queries) + unlabelled
        if new_classes not in tuple(ORIENTATIONS):
            raise InputError(
                f"data.new_classes={new_classes}: must be one of {', '.join(ORIENTATIONS)}"
            )
        switch(mirror=mirror)
        self.within_groups = switch(within_groups=within_groups)
        if mirror and new_classes == "rotations_mirrors":
            raise InputError(
                "data.mirror=true with data.new_classes=rotations_mirrors: mirrored drawings are "
                "another class there: use data.mirror=false or data.new_classes=rotations"
            )
        if train_samples_per_class is not None and not is_whole(train_samples_per_class, needed):
            raise InputError(
                f"data.train_samples_per_class={train_samples_per_class}: must be null for all, or "
                f"a whole number of at least {self.key('shots', 'train')} + "
                f"{self.key('queries', 'train')}{' + data.unlabelled' if unlabelled else ''} = "
                f"{needed}"
            )
        if shift >= image_size:
            raise InputError(
                f"data.shift={shift}: must be below {image_size}, the side of a drawing in pixels"
            )
        named = {"train": train_classes, "val": val_classes, "test": test_classes}
        self.named = {split: names for split, names in named.items() if names is not None}
        if 0 < len(self.named) < len(named):
            lacking = ", ".join(f"data.{s}_classes" for s in named if s not in self.named)
            raise InputError(f"{lacking}: missing: name the classes of all three splits or of none")
        self.classes, self.exclude_classes = classes, exclude_classes
        self.image_size, self.image_channels = image_size, image_channels
        self.train_samples = train_samples_per_class
        self.split_seed = check_seed("data.split_seed", split_seed)
        self.new_classes = new_classes
        # Results are measured on unchanged drawings.
        self.orientations = {"train": ORIENTATIONS[new_classes], "val": 1, "test": 1, "all": 1}
        self.shift = {"train": shift, "val": 0, "test": 0, "all": 0}
        self.mirror = {"train": mirror, "val": False, "test": False, "all": False}
        self.affine = Affine(float(rotation), float(zoom), float(shear))
        self._images: Tensor | MappedImages | None = None
        self._placed: dict[torch.device, Tensor | MappedImages] = {}
        self._chosen: list[str] | None = None

    @abstractmethod
    def load(self) -> Drawings:
        """The drawings, downloaded and cached if needed.

        Raises:
            InputError: they cannot be loaded, or are not as expected.
        """

    def divide(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """Divide the classes into ``train``, ``val`` and ``test``, if the user names none of these.

        Raises:
            InputError: this cannot be done with these classes.
        """
        return split_classes(classes, self.split_seed)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.image_channels, self.image_size, self.image_size

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert any picture to an image of this data set, ``uint8 [C, H, W]``."""
        return to_bitmap(image)[None]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The origin of the drawings."""
        return self.drawings.provenance

    @property
    def examples_of_a_task(self) -> int:
        """The maximum number of drawings of a meta-test task."""
        without_labels = (most(self.ways) + self.distractors) * self.unlabelled
        return most(self.ways) * super().examples_of_a_task + without_labels

    def example(self, tasks: int) -> Episode:
        """Tasks of noise, with the maximum numbers of ways, shots and queries."""
        ways = most(self.ways)
        padded = self.vary != "batch" and not all(
            isinstance(size, int) for size in (self.ways, self.shots, self.queries)
        )

        def examples(classes: int, each: int) -> Examples:
            y = torch.arange(classes).repeat_interleave(each).expand(tasks, -1)
            extra = {"weight": torch.ones(y.shape), "ways": torch.full_like(y, ways)}
            x = torch.rand(*y.shape, *self.image_shape)
            return Examples(x, y.where(y < ways, -1), extra if padded else {})

        support, query = (examples(ways, most(each)) for each in (self.shots, self.queries))
        sets = {}
        if self.unlabelled:
            sets = {"unlabelled": examples(ways + self.distractors, self.unlabelled)}
        # Class 0 only, because all data have it.
        about = {"classes": torch.zeros(tasks, ways, dtype=torch.int64)}
        return Episode(support, query, torch.arange(tasks), sets, about)

    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """Draw support and query set by class, with the predictions after adaptation."""
        draw_episode(task, self.drawings.classes, path, after, ink=self.ink)

    def setup(self, stage: str | None = None) -> None:
        """Load the drawings, choose and split their classes, and check them.

        Raises:
            InputError: drawings of another size, too few of a class, or wrong class names.
        """
        if self._images is None:
            self.use(self._restricted(self.load()))

    def use(self, drawings: Drawings) -> None:
        """Split the classes of these drawings, check and keep them; see `setup`."""
        for shape in {images.shape[1:] for images in drawings.images}:
            channels, height, width = shape if len(shape) == 3 else (1, *shape)
            if (channels, height, width) != (self.image_channels, self.image_size, self.image_size):
                raise InputError(
                    f"data.image_size={self.image_size}, data.image_channels="
                    f"{self.image_channels}: the drawings are {height} x {width} pixels with "
                    f"{channels} channel{'s' if channels > 1 else ''}"
                )
        counts = [len(images) for images in drawings.images]
        if self.train_samples is not None and self.train_samples > max(counts):
            raise InputError(
                f"data.train_samples_per_class={self.train_samples}: no class has more than "
                f"{max(counts)} drawings (data.samples_per_class)"
            )
        if self.named:
            self.splits = named_splits(self.named, drawings.classes)
            # Checksums of the names, however given, identify runs with the same tasks.
            checksums = {
                f"{split}_classes": hashlib.sha256("\n".join(names).encode()).hexdigest()
                for split, names in self.splits.items()
            }
            drawings = replace(drawings, provenance={**drawings.provenance, **checksums})
        else:
            self.splits = self.divide(drawings.classes)
        self._counts = torch.tensor(counts)
        if cache.is_mapped(drawings.images):
            self.drawings = drawings
            self._images = MappedImages(drawings.images, self.image_shape)
        else:  # one array, and a view of it for each class
            images = np.concatenate(list(drawings.images))
            self.drawings = replace(drawings, images=np.split(images, np.cumsum(counts)[:-1]))
            self._images = torch.from_numpy(images).view(-1, *self.image_shape)

    def chosen(self, known: Sequence[str]) -> list[str]:
        """The class names of a data set that this module uses, in their order.

        Raises:
            InputError: wrong names, see `chosen_classes`, or all classes left out.
        """
        if self._chosen is not None:  # by `load`, which then leaves out the others itself
            return self._chosen
        if self.classes is not None:
            known = chosen_classes("classes", self.classes, known)
        if self.exclude_classes is not None:
            left_out = set(chosen_classes("exclude_classes", self.exclude_classes, known))
            known = [name for name in known if name not in left_out]
            if not known:
                raise InputError(f"data.exclude_classes={self.exclude_classes}: leaves no class")
        self._chosen = list(known)
        return self._chosen

    def _restricted(self, drawings: Drawings) -> Drawings:
        """The drawings of the chosen classes, with their checksum."""
        classes = tuple(self.chosen(drawings.classes))
        if classes == tuple(drawings.classes):
            return drawings
        number = {name: position for position, name in enumerate(drawings.classes)}
        images = [drawings.images[number[name]] for name in classes]
        return Drawings(images, classes, cache.provenance(images, drawings.provenance))

    @property
    def class_count(self) -> int:  # type: ignore[override]
        """The number of classes in ``about["classes"]`` over all splits, numbered from 0.

        The classes of the drawings, times the orientations of ``new_classes``.
        """
        self.setup()
        return len(self.drawings.classes) * self.orientations["train"]

    def episodes(self, split: str, device: torch.device | str = "cpu") -> EpisodeSampler:
        """The sampler of one split: ``data.episodes("test")(torch.arange(25))``.

        Args:
            split: ``train``, ``val``, ``test`` or ``all``, every class whatever its split.
            device: holds the drawings and makes the episodes.

        Raises:
            InputError: an unknown split, too few classes in it, or too few drawings of a class.
        """
        check_split(split)
        self.setup()
        assert self._images is not None
        names = list(self.drawings.classes) if split == "all" else self.splits[split]
        ways = self.train_ways if split == "train" else self.ways
        groups = None
        if self.within_groups:
            names, groups = self._in_large_groups(names, split)
        available = len(names) * self.orientations[split]
        shots, queries = self.sizes_of(split)
        taken, keys = self._classes_of_a_task(split)
        if taken > available:
            raise InputError(f"{keys}: the meta-{split} split has only {available} classes")
        # Kept, so that the drawings are copied to an accelerator once and all splits share them.
        device = torch.device(device)
        if device not in self._placed:
            self._placed[device] = self._images.to(device)
        number = {name: position for position, name in enumerate(self.drawings.classes)}
        classes = torch.tensor([number[name] for name in names])
        fewest = int(self._counts[classes].argmin())
        smallest = int(self._counts[classes[fewest]])
        needed = most(shots) + most(queries) + self.unlabelled
        if smallest < needed:
            more = f" + data.unlabelled={self.unlabelled}" if self.unlabelled else ""
            raise InputError(
                f"{self.key('shots', split)}={most(shots)} + {self.key('queries', split)}="
                f"{most(queries)}{more} = {needed} drawings of a class, but there are {smallest} "
                f"of {names[fewest]}: ask for fewer, add some (data.samples_per_class), or leave "
                "such classes out with data.exclude_classes"
            )
        return EpisodeSampler(
            self._placed[device],
            self._counts,
            classes,
            split=split,
            ways=ways,
            shots=shots,
            queries=queries,
            seed=self.seeds[split],
            groups=groups,
            vary=self.vary,
            tasks_per_batch=self.tasks_of(split),
            unlabelled=self.unlabelled,
            distractors=self.distractors,
            samples=self.train_samples if split == "train" else None,
            orientations=self.orientations[split],
            shift=self.shift[split],
            mirror=self.mirror[split],
            affine=self.affine if split == "train" else None,
        )

    def _classes_of_a_task(self, split: str) -> tuple[int, str]:
        """How many classes a task takes at most, distractors included, and the keys that say so."""
        ways = most(self.train_ways if split == "train" else self.ways)
        more = f" + data.distractors={self.distractors}" if self.distractors else ""
        return ways + self.distractors, f"{self.key('ways', split)}={ways}{more}"

    def _in_large_groups(self, names: list[str], split: str) -> tuple[list[str], Tensor]:
        """The classes of groups that are large enough for a task, and the number of each's group.

        Raises:
            InputError: there are no groups, or all are smaller.
        """
        sizes = Counter(map(group_of, names))
        if "" in sizes:
            raise InputError(
                f"data.within_groups=true: the class {next(n for n in names if not group_of(n))} "
                "is of no group, which is what precedes the / in a name: must be false"
            )
        taken, keys = self._classes_of_a_task(split)
        large = {group for group, size in sizes.items() if size * self.orientations[split] >= taken}
        if not large:
            raise InputError(
                f"{keys}: with data.within_groups=true, no group of the meta-{split} split has so "
                f"many classes: the largest has {max(sizes.values())}"
            )
        names = [name for name in names if group_of(name) in large]
        number = {group: place for place, group in enumerate(sorted(large))}
        return names, torch.tensor([number[group_of(name)] for name in names])
