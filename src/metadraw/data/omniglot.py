"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015, MIT)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metadraw.data import cache
from metadraw.data.download import download
from metadraw.data.drawings import Drawings
from metadraw.data.image_folder import ImageFolder
from metadraw.data.picture_files import PictureFile, picture_files
from metadraw.data.splits import group_of, split_classes, split_groups
from metadraw.errors import InputError, check_url

#: Its authors' archives, with the MD5 by which torchvision checks them.
ARCHIVES = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
#: The alphabets of its authors' evaluation set; the others are their background set.
EVALUATION = (
    *("Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic"),
    *("Gurmukhi", "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian"),
    *("Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar"),
    *("Tibetan", "ULOG"),
)
#: The split of Vinyals et al. 2016 ("Matching networks for one shot learning"), with the validation
#: set that Snell et al. 2017 published: five alphabets of the background set, and as meta-test the
#: last 423 characters of the evaluation set, from the last four of Gurmukhi on.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = "Gurmukhi/character42"

SOURCES = ("github", "path")
SPLITS = ("published", "vinyals", "alphabets", "characters")


class Omniglot(ImageFolder):
    """Episodes of handwritten characters; a class is called ``Greek/character01``.

    An alphabet is a group of classes, see ``within_groups``.

    Args:
        source: ``github`` downloads both of its authors' archives; ``path`` reads a user's.
        path: with ``source="path"`` only: a folder with such archives, or with folders
            ``ALPHABET/CHARACTER`` of drawings at any depth, or one archive. A drawing that is in
            two of them counts once.
        base_url: where ``github`` finds the archives.
        split: ``published``: its authors' evaluation set is for meta-test, and of their background
            set a fifth of the alphabets, chosen by ``split_seed``, for meta-validation;
            ``vinyals``: as in most papers on few-shot learning; ``alphabets`` divides all alphabets
            and ``characters`` all characters by ``split_seed``.
        prepare: see `ImageFolder`; the files have dark ink on white, so ``inverted`` makes them
            light on black, as they are in papers.
        **images: see `ImageFolder`.

    Raises:
        InputError: an impossible option; see also `ImageFolder`.
    """

    source = "omniglot"

    def __init__(
        self,
        *,
        source: str,
        path: str | Path | None,
        base_url: str,
        split: str,
        prepare: str = "inverted",
        **images: Any,
    ) -> None:
        if source not in SOURCES:
            raise InputError(f"data.source={source}: must be one of {', '.join(SOURCES)}")
        if (path is None) == (source == "path"):
            raise InputError(
                "data.source=path needs data.path=FOLDER with images_background.zip and "
                "images_evaluation.zip, or what is in them"
                if path is None
                else f"data.path={path} needs data.source=path, not data.source={source}"
            )
        check_url("data.base_url", base_url)
        if split not in SPLITS:
            raise InputError(f"data.split={split}: must be one of {', '.join(SPLITS)}")
        super().__init__(path=path or "", prepare=prepare, **images)
        self.base_url = None if source == "path" else base_url.rstrip("/")
        self.split = split
        if self.base_url is not None:
            self.path = self.cache_dir / "omniglot"

    def load(self) -> Drawings:
        """All characters, downloaded first if they are not in the cache; see `ImageFolder.load`."""
        if self.base_url is not None and not all((self.path / name).is_file() for name in ARCHIVES):
            with cache.told(self.cache_dir), cache.lock(self.cache_dir / "omniglot.lock"):
                for name, md5 in ARCHIVES.items():
                    download(f"{self.base_url}/{name}", self.path / name, md5)
        drawings = super().load()
        location = self.base_url or str(self.path)
        return replace(drawings, provenance={**drawings.provenance, "location": location})

    def find(self) -> dict[str, list[PictureFile]]:
        """The drawings of each character; see `ImageFolder.find`."""
        if not self.path.exists():
            raise InputError(f"data.path={self.path}: there is no such folder or archive")
        archives = sorted(self.path.glob("*.zip")) if self.path.is_dir() else []
        files: dict[str, dict[str, PictureFile]] = {}
        for place in (self.path, *archives):
            for file in picture_files(place):
                if len(file.path) < 3:
                    raise InputError(f"{file}: expected {place}/ALPHABET/CHARACTER/DRAWING.png")
                *_, alphabet, character, name = file.path
                same = files.setdefault(f"{alphabet}/{character}", {}).setdefault(name, file)
                if same is not file and same.read() != file.read():
                    raise InputError(
                        f"{file} is another drawing than {same}, of the same name: remove one"
                    )
        if not files:
            raise InputError(
                f"data.path={self.path} holds no drawings; expected archives or folders of "
                "ALPHABET/CHARACTER/DRAWING.png"
            )
        return {name: [files[name][f] for f in sorted(files[name])] for name in sorted(files)}

    def divide(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """See ``split``."""
        if self.split == "characters":
            return split_classes(classes, self.split_seed)
        if self.split == "alphabets":
            return split_groups(classes, self.split_seed)
        evaluation = [name for name in classes if group_of(name) in EVALUATION]
        if not evaluation:
            raise InputError(
                f"data.split={self.split}: there is no alphabet of the evaluation set: must be "
                "alphabets or characters"
            )
        if self.split == "vinyals":
            return _split(classes, VINYALS_VAL, [n for n in evaluation if n >= VINYALS_TEST])
        background = [name for name in classes if name not in set(evaluation)]
        validates = split_groups(background, self.split_seed)["val"]
        return _split(classes, {group_of(name) for name in validates}, evaluation)


def _split(
    classes: Sequence[str], val: Collection[str], test: Sequence[str]
) -> dict[str, list[str]]:
    """Some alphabets for meta-validation, some classes for meta-test, the others for training."""
    tests = set(test)
    validates = [name for name in classes if group_of(name) in val]
    rest = [name for name in classes if name not in tests | set(validates)]
    return {"train": rest, "val": validates, "test": list(test)}
