"""The pictures of a run: its curves, what else it learned, and an episode with predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from metadraw.data.episode import Episode

_TRAIN, _VAL, _RIGHT, _WRONG = "#4c78a8", "#e4572e", "#2e7d32", "#c0392b"


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


@dataclass(frozen=True)
class Line:
    """A validation curve of `draw_sweep`.

    Attributes:
        label: its text in the legend, none for none.
        colour_of: lines with the same text have the same colour.
        points: epoch, accuracy and loss.
        faint: a published curve, behind the others.
    """

    label: str | None
    colour_of: str
    points: Sequence[tuple[float, float, float]]
    faint: bool = False


def draw_sweep(lines: Sequence[Line], title: str) -> Figure:
    """Meta-validation accuracy and loss by epoch, of several runs.

    Args:
        lines: the curves; published ones are faint and dashed.
        title: of the whole figure.
    """
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(x.colour_of for x in lines))}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for position, (axes, name) in enumerate(
        zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True), start=1
    ):
        for line in lines:
            axes.plot(
                [point[0] for point in line.points],
                [point[position] for point in line.points],
                "--" if line.faint else "-",
                color=colours[line.colour_of],
                alpha=0.35 if line.faint else 1.0,
                linewidth=1.2 if line.faint else 1.6,
                zorder=1 if line.faint else 2,
                label=line.label,
            )
        if any(line.faint for line in lines):
            axes.plot([], [], "--", color="grey", alpha=0.6, linewidth=1.2, label="published")
        axes.set(xlabel="epoch", ylabel=f"meta-validation {name}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def draw_learned(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """What an algorithm learned besides the network, a panel a quantity, a line a layer.

    By inner step after the last epoch where it goes by the step, else by epoch.

    Args:
        rows: one mapping an epoch, as in ``metrics.csv``; names are ``quantity/layer`` or
            ``quantity/layer/step``.
        path: the picture to write; nothing is written where nothing was learned.
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    labels = {}
    for name in rows[-1]:
        quantity, _, rest = name.partition("/")
        if rest and quantity not in ("train", "val"):
            layer, _, step = rest.partition("/")
            points = lines.setdefault(quantity, {}).setdefault(layer, [])
            labels[quantity] = "inner step" if step else "epoch"
            if step:
                points.append((int(step), rows[-1][name]))
            else:
                points += [(row["epoch"], row[name]) for row in rows]
    if not lines:
        return
    columns = min(3, len(lines))
    rows_of_panels = -(-len(lines) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows_of_panels), layout="constrained")
    panels = figure.subplots(rows_of_panels, columns, squeeze=False).flat
    for (quantity, layers), axes in zip(lines.items(), panels, strict=False):
        shades = colormaps["viridis"].resampled(len(layers))  # from the first layer to the last
        for position, (layer, points) in enumerate(layers.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o-", color=shades(position), markersize=3, label=layer)
        axes.set(title=quantity.replace("_", " "), xlabel=labels[quantity])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    for axes in panels:  # the rest of the last row
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def draw_episode(
    episode: Episode,
    classes: Sequence[str],
    path: Path,
    logits: Tensor | None = None,
    ink: bool = True,
) -> None:
    """One column a class: its support drawings, below them its query drawings.

    Args:
        episode: one task; at most three support and three query drawings a class are shown.
        classes: the data's class names, indexed by ``episode.classes`` in any orientation.
        path: the picture to write.
        logits: ``[N*Q, N]`` query logits: the class predicted, with its probability, is written
            below each query drawing, green where it is right and red where it is not.
        ink: 1 is ink, shown in black; else 1 is light.
    """
    names = [classes[number % len(classes)] for number in episode.classes.tolist()]
    ways = len(names)

    def by_class(values: Tensor) -> Tensor:
        """[N*K, ...] -> [at most 3, N, ...]."""
        return values.detach().float().cpu().unflatten(0, (ways, -1)).transpose(0, 1)[:3]

    support, query = by_class(episode.support_x), by_class(episode.query_x)
    rows = len(support) + len(query)
    figure = Figure(figsize=(1.5 * ways + 0.6, 1.75 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, ways, squeeze=False)
    for row, pictures in enumerate([*support, *query]):
        for axes, picture in zip(grid[row], pictures, strict=True):
            _show(axes, picture, ink)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=10)
    grid[0][0].set_ylabel("support set")
    grid[len(support)][0].set_ylabel("query set")
    if logits is not None:
        for row, predictions in enumerate(by_class(logits.softmax(dim=-1)), start=len(support)):
            for label, (axes, chances) in enumerate(zip(grid[row], predictions, strict=True)):
                guess = int(chances.argmax())
                colour = _RIGHT if guess == label else _WRONG
                axes.set_xlabel(f"{names[guess]} {chances[guess]:.0%}", fontsize=9, color=colour)
    figure.savefig(path, dpi=110)


def draw_predictions(
    support: Tensor,
    classes: Sequence[str],
    query: Tensor,
    predictions: Sequence[tuple[str, float, str]],
    path: Path,
    ink: bool,
) -> None:
    """Examples above, a column a class, and below them pictures with what they were taken for.

    Args:
        support: ``[B, C, H, W]`` in 0..1; at most three of each class are shown.
        classes: the class of each, B names.
        query: ``[Q, C, H, W]`` in 0..1.
        predictions: of each its predicted class, that one's probability, and the right class or "".
        path: the picture to write.
        ink: whether 1 is ink, which is shown in black.
    """
    by_class: dict[str, list[Tensor]] = {name: [] for name in classes}
    for picture, name in zip(support, classes, strict=True):
        by_class[name].append(picture)
    columns = max(5, min(len(by_class), 10))
    blocks = -(-len(by_class) // columns)
    shots = min(3, max(len(pictures) for pictures in by_class.values()))
    above, below = blocks * shots, -(-len(query) // columns)
    figure = Figure(
        figsize=(1.4 * columns + 0.6, 1.65 * (above + below) + 0.2), layout="constrained"
    )
    grid = figure.subplots(above + below, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for position, (name, pictures) in enumerate(by_class.items()):
        row, column = shots * (position // columns), position % columns
        grid[row][column].set_title(name, fontsize=10)
        for shot, picture in enumerate(pictures[:shots]):
            _show(grid[row + shot][column], picture, ink)
    for position, (picture, (guess, chance, right)) in enumerate(
        zip(query, predictions, strict=True)
    ):
        axes = grid[above + position // columns][position % columns]
        _show(axes, picture, ink)
        colour = "black" if not right else _RIGHT if guess == right else _WRONG
        axes.set_xlabel(f"{guess} {chance:.0%}", fontsize=9, color=colour)
    grid[0][0].set_ylabel("examples")
    grid[above][0].set_ylabel("predictions")
    figure.savefig(path, dpi=110)


def _show(axes: Any, picture: Tensor, ink: bool) -> None:
    """An image ``[C, H, W]``, grey or RGB."""
    axes.set_axis_on()
    shown = (1 - picture if ink else picture).permute(1, 2, 0).numpy()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")
