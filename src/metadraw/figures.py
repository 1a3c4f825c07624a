"""The two pictures of a run: its curves, and an episode with predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from metadraw.data.episode import Episode

_TRAIN, _VAL, _WRONG = "#4c78a8", "#e4572e", "#c0392b"


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Accuracy and loss by epoch, after adaptation (solid) and before it (dashed).

    Args:
        rows: one mapping an epoch, as in ``metrics.csv``.
        path: the picture to write.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("acc", "loss"), ("accuracy", "loss"), strict=True
    ):
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            for key, style, when in (
                (f"{split}/{name}", "-", "adapted"),
                (f"{split}/{name}_before", "--", "before"),
            ):
                points = [(row["epoch"], row[key]) for row in rows if key in row]
                if points:
                    marker = "o" if len(points) < 30 else ""
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=colour,
                        marker=marker,
                        markersize=3,
                        label=f"meta-{split}, {when}",
                    )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def draw_episode(
    episode: Episode, classes: Sequence[str], path: Path, logits: Tensor | None = None
) -> None:
    """One row a class: its support drawings, then its query drawings with their predictions.

    Args:
        episode: one task.
        classes: the data's class names, indexed by ``episode.classes``.
        path: the picture to write.
        logits: ``[N*Q, N]`` query logits; without them only the drawings are shown.
    """
    names = [classes[number] for number in episode.classes.tolist()]
    ways = len(names)
    support = episode.support_x[:, 0].cpu().unflatten(0, (ways, -1))[:, :5]
    query = episode.query_x[:, 0].cpu().unflatten(0, (ways, -1))[:, :5]
    columns = support.shape[1] + query.shape[1]
    figure = Figure(figsize=(1.5 + 1.25 * columns, 1.35 * ways + 0.4), layout="constrained")
    widths = [support.shape[1] + 0.6, query.shape[1]]
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)[0]
    left.suptitle("support set", fontsize=10)
    right.suptitle("query set", fontsize=10)
    predicted = None
    if logits is not None:
        chosen = logits.argmax(dim=-1).cpu().unflatten(0, (ways, -1))
        chance = logits.float().softmax(dim=-1).amax(dim=-1).cpu().unflatten(0, (ways, -1))
        predicted = (chosen, chance)
    for part, pictures in ((left, support), (right, query)):
        grid = part.subplots(ways, pictures.shape[1], squeeze=False)
        for way in range(ways):
            for column in range(pictures.shape[1]):
                axes = grid[way][column]
                axes.imshow(1 - pictures[way, column], cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_color("#cccccc")
                if part is left and column == 0:
                    axes.set_ylabel(
                        names[way], rotation=0, ha="right", va="center", fontsize=9, wrap=True
                    )
                if part is right and predicted is not None:
                    guess = int(predicted[0][way, column])
                    axes.set_title(
                        f"{names[guess]} {predicted[1][way, column]:.0%}",
                        fontsize=8,
                        color="#2e7d32" if guess == way else _WRONG,
                    )
    figure.savefig(path, dpi=130)
