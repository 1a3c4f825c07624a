"""The field's benchmarks: published splits of pictures that the user has."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metadraw.data.image_folder import ImageFolder
from metadraw.data.labelled import labelled
from metadraw.data.picture_files import PictureFile
from metadraw.errors import InputError

_FOLDER = Path(__file__).with_name("published")
#: By name of a split, ``published/<name>.csv``: where its pictures come from.
WHERE = {
    "mini_imagenet": "600 pictures of each of 100 classes of ImageNet, whose terms forbid to hand "
    "them on: https://image-net.org",
    "tiered_imagenet": "608 classes of ImageNet, whose terms forbid to hand them on: "
    "https://image-net.org",
    "cifar_fs": "CIFAR-100, binary version, unpacked: https://www.cs.toronto.edu/~kriz/cifar.html",
    "fc100": "CIFAR-100, binary version, unpacked: https://www.cs.toronto.edu/~kriz/cifar.html",
    "cub": "CUB_200_2011/images, whose pictures are not free: "
    "https://www.vision.caltech.edu/datasets/cub_200_2011",
}
#: Class names that differ between forms of a data set.
_SPELT = {"cra": "crab"}  # Hugging Face's CIFAR-100


class Published(ImageFolder):
    """Episodes of a benchmark, with its published classes of each split.

    Args:
        split: one of `WHERE`.
        path: the pictures, in any form that `labelled` reads.
        **images: see `ImageFolder`; with ``train_classes`` and so on, other classes and splits.

    Raises:
        InputError: an unknown split, or no path; see also `ImageFolder`.
    """

    def __init__(self, *, split: str, path: str | Path | None, **images: Any) -> None:
        if split not in WHERE:
            raise InputError(f"data.split={split}: must be one of {', '.join(WHERE)}")
        if path is None:
            raise InputError(f"data.path=FOLDER is missing: {split} needs {WHERE[split]}")
        super().__init__(path=path, **images)
        self.split = self.source = split
        with (_FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            self.split_of = {row["class"]: row["split"] for row in csv.DictReader(file)}

    def find(self) -> dict[str, list[PictureFile]]:
        """The pictures of each class of the benchmark; see `ImageFolder.find`."""
        files = {_SPELT.get(name, name): found for name, found in labelled(self.path).items()}
        if self.named:
            return files
        lacking = [name for name in self.split_of if name not in files]
        if lacking:
            raise InputError(
                f"data.path={self.path} lacks {len(lacking)} of the {len(self.split_of)} classes "
                f"of {self.split}: {', '.join(lacking[:3])}{' ...' * (len(lacking) > 3)}"
            )
        return {name: files[name] for name in sorted(self.split_of)}

    def divide(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """The published classes of each split."""
        return {
            split: [name for name in classes if self.split_of[name] == split]
            for split in ("train", "val", "test")
        }
