"""From folders of pictures to predictions: adapts a checkpoint to a user's own classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from metadraw.command.config import check_path
from metadraw.data.figures import draw_confusion, draw_predictions
from metadraw.data.pictures import SUFFIXES
from metadraw.errors import InputError
from metadraw.files import write_csv
from metadraw.use import choosing
from metadraw.use.classifier import Classifier, FewShot

log = logging.getLogger(__name__)
_MOST_SHOWN = 20


def adapt(cfg: DictConfig) -> Classifier:
    """Learn the classes in ``cfg.support``, and classify the pictures in ``cfg.query``.

    The run folder then holds ``predictions.csv``, ``predictions.png`` and ``classifier.pt``, which
    `Classifier.load` reads. If a query picture is in a folder with the name of a class, it also
    holds ``confusion.png``, and the log the accuracy. With ``cfg.pool``, pictures without labels,
    it holds ``suggestions.csv``: which of them to label next. The query may then be left out.

    Returns:
        The classifier.

    Raises:
        InputError: something is missing or not a picture, or cannot be learned by the checkpoint.
    """
    wanted = {
        "ckpt_path": "a checkpoint",
        "support": "a folder with one sub-folder of pictures for each class",
        "query": "a picture or a folder of pictures",
        "pool": "a folder of pictures without labels",
    }
    unwanted = "pool" if cfg.pool is None else "query" if OmegaConf.is_missing(cfg, "query") else ""
    for key, what in wanted.items():
        if key != unwanted:
            check_path(cfg, key, what)
    choosing.check(cfg.suggest, cfg.strategy, 0)
    support = {
        folder.name: [str(path) for path in pictures_in(folder)]
        for folder in _folders(Path(cfg.support))
    }
    query, pool = (
        None if key == unwanted else pictures_in(Path(cfg[key])) for key in ("query", "pool")
    )
    classifier = FewShot(cfg.ckpt_path).adapt(support, steps=cfg.steps)
    folder = Path(cfg.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    classifier.save(folder / "classifier.pt")
    written = []
    if query is not None:
        written.append(_classify(classifier, query, Path(cfg.query), folder))
    if pool is not None:
        _suggest(classifier, pool, cfg, folder)
        written.append("suggestions")
    log.info("%s and the classifier: %s", ", ".join(written), folder)
    return classifier


def _classify(classifier: Classifier, files: list[Path], query: Path, folder: Path) -> str:
    """Write and log what the pictures are; returns what was written, in words."""
    chances, none = classifier.answer(files)
    best, labels = chances.max(dim=1)
    predicted = [classifier.classes[label] for label in labels.tolist()]
    # A picture in a folder with the name of a class is of that class.
    actual = [file.parent.name if file.parent.name in classifier.classes else "" for file in files]
    names = _names(files, query)
    found = list(zip(names, actual, predicted, best.tolist(), none.tolist(), strict=True))
    head = ["file", "class", "predicted", "probability", "none of these", *classifier.classes]
    rows = [head]
    for (name, right, guess, chance, unlike), row in zip(found, chances.tolist(), strict=True):
        cells = [name, right, guess, f"{chance:.6f}", "yes" if unlike else ""]
        rows.append([*cells, *(f"{value:.6f}" for value in row)])
    write_csv(folder / "predictions.csv", rows)
    shown = classifier.meta_learner.prepare(files[:_MOST_SHOWN])
    draw_predictions(
        classifier.support_x,
        [classifier.classes[label] for label in classifier.support_y.tolist()],
        shown,
        list(zip(predicted, best.tolist(), actual, strict=True))[:_MOST_SHOWN],
        folder / "predictions.png",
        classifier.meta_learner.data.ink,
    )

    width = max(len(name) for name in names)
    for name, right, guess, chance, unlike in found:
        note = f"  (is {right})" if right and right != guess else ""
        note += "  (like none of these)" if unlike else ""
        log.info("%-*s  %s %.0f %%%s", width, name, guess, 100 * chance, note)
    written = "predictions, their picture"
    (folder / "confusion.png").unlink(missing_ok=True)  # of an earlier query set
    if any(actual):
        counts = confusion(actual, predicted, classifier.classes)
        draw_confusion(counts, classifier.classes, folder / "confusion.png")
        hits, known = int(counts.trace()), int(counts.sum())
        log.info("accuracy %.1f %% (%d of %d)", 100 * hits / known, hits, known)
        written += ", the confusion matrix"
    return written


def _suggest(classifier: Classifier, pool: list[Path], cfg: DictConfig, folder: Path) -> None:
    """Write and log which pictures of a pool to label next, with what they seem to be."""
    chosen = [pool[at] for at in classifier.suggest(pool, cfg.suggest, cfg.strategy)]
    best, labels = classifier.probabilities(chosen).max(dim=1)
    guesses = [classifier.classes[label] for label in labels.tolist()]
    names = _names(chosen, Path(cfg.pool))
    rows = [
        [name, guess, f"{chance:.6f}"]
        for name, guess, chance in zip(names, guesses, best.tolist(), strict=True)
    ]
    write_csv(folder / "suggestions.csv", [["file", "predicted", "probability"], *rows])
    log.info("label next, most useful first (%s):", cfg.strategy)
    width = max(len(name) for name in names)
    for name, guess, chance in zip(names, guesses, best.tolist(), strict=True):
        log.info("%-*s  perhaps %s %.0f %%", width, name, guess, 100 * chance)


def _names(files: Sequence[Path], given: Path) -> list[str]:
    """Files as a user knows them: by their paths in the folder that was given."""
    return [file.name if file == given else str(file.relative_to(given)) for file in files]


def confusion(actual: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Tensor:
    """How often pictures of each class are predicted to be of each class.

    Args:
        actual: the class of each picture, or "" if it is unknown, which not all may be: such a
            picture is not counted.
        predicted: the predicted class of each.
        classes: N names.

    Returns:
        ``[N, N]`` int64: actual classes down, predicted ones across.
    """
    number = {name: i for i, name in enumerate(classes)}
    known = [pair for pair in zip(predicted, actual, strict=True) if pair[1]]
    guesses, right = torch.tensor([[number[name] for name in pair] for pair in known]).T
    counts: Tensor = multiclass_confusion_matrix(guesses, right, len(classes))
    return counts


def pictures_in(path: Path) -> list[Path]:
    """The picture at a path, or all pictures in a folder and its sub-folders, sorted.

    Raises:
        InputError: there is no such path, or no picture in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    pictures = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not pictures:
        raise InputError(f"{path}: there is no picture in this folder")
    return pictures


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"support={path}: expected a folder with one sub-folder per class")
    folders = [f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")]
    if len(folders) < 2:
        raise InputError(
            f"support={path}: has {len(folders)} sub-folders; expected one per class, at least 2"
        )
    return sorted(folders)
