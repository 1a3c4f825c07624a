"""Pictures by class, from the forms in which data sets are handed on."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metadraw.data.picture_files import PictureFile, picture_files
from metadraw.errors import InputError

#: Of files that may run any code while they are read.
PICKLES = (".pkl", ".pickle", ".pk", ".pt", ".pth")
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_CIFAR = 2 + 3 * 32 * 32  # bytes of a record: superclass, class, three planes of 32 x 32 pixels
_CIFAR_NAMES = "fine_label_names.txt"
#: The columns of a table of files, by their names in the header.
_FILE, _LABEL = ("filename", "image_name"), ("label", "class_name")
_IMAGES, _LABELS = ("image", "img"), ("fine_label", "label")  # of parquet files


def labelled(place: Path) -> dict[str, list[PictureFile]]:
    """The pictures of each class in a folder or zip archive, both sorted by name.

    Its form is found out: parquet files; the binary version of CIFAR-100 (``train.bin``); tables
    of files and labels, such as ``train.csv`` of mini-ImageNet, with the files anywhere below;
    else folders of pictures at any depth, named by class.

    Args:
        place: the folder or archive.

    Raises:
        InputError: no such place, or nothing in it that can be read.
    """
    if not place.exists():
        raise InputError(f"data.path={place}: there is no such folder or archive")
    names = [file.name for file in place.iterdir()] if place.is_dir() else [place.name]
    if (place / _CIFAR_NAMES).is_file():
        found = _cifar(place)
    elif any(name.endswith(".parquet") for name in names):
        found = _parquet(sorted(place.glob("*.parquet")) if place.is_dir() else [place])
    elif place.is_dir() or place.suffix == ".zip":
        found = _files(place)
    else:
        found = iter(())
    classes: dict[str, list[PictureFile]] = defaultdict(list)
    for label, file in found:
        classes[label].append(file)
    if not classes:
        raise InputError(_nothing(place, names))
    return {label: sorted(classes[label], key=lambda file: file.path) for label in sorted(classes)}


def _nothing(place: Path, names: Sequence[str]) -> str:
    """Why there is nothing to read."""
    for name in names:
        if name.lower().endswith(PICKLES):
            return (
                f"data.path={place}: {name} is a pickle, which may run any code: give folders of "
                "pictures, a zip archive, parquet files, or the binary version of CIFAR-100"
            )
        if name.lower().endswith(ARCHIVES):
            return f"data.path={place}: {name} is a tar archive: unpack it, and give its folder"
    return f"data.path={place} holds no pictures in folders named by class"


def _files(place: Path) -> Iterator[tuple[str, PictureFile]]:
    """Files by the labels of a table, or by the folders that they are in."""
    files = picture_files(place)
    tables = [t for s in ("train", "val", "test") if (t := place / f"{s}.csv").is_file()]
    if not tables:
        yield from ((file.path[-2], file) for file in files if len(file.path) > 1)
        return
    by_name = {file.path[-1]: file for file in files}
    for table in tables:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = [
                next((c for c in known if c in (rows.fieldnames or ())), None)
                for known in (_FILE, _LABEL)
            ]
            for row in rows:
                name, label = (row.get(column or "") for column in columns)
                if not name or not label:
                    raise InputError(f"{table}: expected the columns filename and label")
                if name not in by_name:
                    raise InputError(f"{table}: there is no file {name} in {place}")
                yield label, by_name[name]


def _cifar(place: Path) -> Iterator[tuple[str, PictureFile]]:
    """CIFAR-100 (Krizhevsky 2009), binary version: both its files together."""
    labels = (place / _CIFAR_NAMES).read_text(encoding="utf-8").split()
    for file in (place / "train.bin", place / "test.bin"):
        if not file.is_file() or file.stat().st_size % _CIFAR:
            raise InputError(f"{file}: missing, or not a file of records of {_CIFAR} bytes")
        records = np.memmap(file, np.uint8, "r").reshape(-1, _CIFAR)
        changed = file.stat().st_mtime_ns
        for row, label in enumerate(records[:, 1].tolist()):
            if label >= len(labels):
                raise InputError(f"{file}: record {row} has label {label} of {len(labels)}")
            planes = records[row, 2:].reshape(3, 32, 32)
            yield labels[label], _row(file, row, changed, partial(_encoded, planes))


def _parquet(files: Sequence[Path]) -> Iterator[tuple[str, PictureFile]]:
    """Rows with a picture and a label, as Hugging Face's data sets have; they stay in memory."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{files[0]}: reading parquet files needs pyarrow: pip install 'metadraw[parquet]'"
        ) from error
    for file in files:
        try:
            table = parquet.read_table(file)
        except Exception as error:  # a damaged file raises nearly anything
            reason = " ".join(str(error).split())
            raise InputError(f"{file} cannot be read as a parquet file: {reason}") from error
        image, label = (
            next((column for column in known if column in table.column_names), None)
            for known in (_IMAGES, _LABELS)
        )
        if image is None or label is None:
            raise InputError(
                f"{file} has the columns {', '.join(table.column_names)}: expected one of "
                f"{', '.join(_IMAGES)} and one of {', '.join(_LABELS)}"
            )
        described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described.get("info", {}).get("features", {}).get(label, {}).get("names")
        changed = file.stat().st_mtime_ns
        for row, number in enumerate(table.column(label).to_pylist()):
            read = partial(_cell, table.column(image), row)
            yield str(names[number] if names else number), _row(file, row, changed, read)


def _cell(column: Any, row: int) -> bytes:
    value = column[row].as_py()
    return bytes(value["bytes"] if isinstance(value, dict) else value)


def _row(file: Path, row: int, changed: int, read: Callable[[], bytes]) -> PictureFile:
    """A picture that is a row of a file, sorted by its number."""
    return PictureFile(str(file.parent), (file.name, f"{row:09}"), (row, changed), read)


def _encoded(planes: np.ndarray) -> bytes:
    """``uint8 [3, H, W]`` as a picture file, without loss."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(stream, "BMP")
    return stream.getvalue()
