"""Pictures of tasks: drawings with predictions, confusion matrices, and curves with fits."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from metadraw.data.episode import Episode, Examples

_BEFORE, _AFTER, _RIGHT, _WRONG = "#4c78a8", "#e4572e", "#2e7d32", "#c0392b"
_EMPTY = "#cfe0ee"  # unknown pixels
_MOST_SHOWN = 3  # drawings of a class
_LONGEST = 30  # characters of a name beside a matrix


def draw_episode(
    episode: Episode,
    classes: Sequence[str],
    path: Path,
    logits: Tensor | None = None,
    ink: bool = True,
) -> None:
    """One column per class: its support drawings, and its query drawings below.

    Args:
        episode: one task; at most three support and three query drawings per class are shown, with
            the total of the class that has most; padding is not.
        classes: the data's class names, indexed by ``about["classes"]`` in any orientation.
        path: the picture to write.
        logits: ``[N*Q, N]`` query logits: the predicted class and its probability are written below
            each query drawing, with a green tick if it is right and a red cross if not.
        ink: whether 1 is ink, shown in black, rather than light.
    """
    names = [classes[number % len(classes)] for number in episode.about["classes"].tolist()]
    ways = int(episode.support.extra["ways"][0]) if "ways" in episode.support.extra else len(names)
    # For each class, the rows of its examples.
    support, query = (_rows(examples, ways) for examples in (episode.support, episode.query))
    above, below = (min(max(map(len, rows)), _MOST_SHOWN) for rows in (support, query))
    figure = Figure(figsize=(1.5 * ways + 0.6, 1.75 * (above + below) + 0.2), layout="constrained")
    grid = figure.subplots(above + below, ways, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name in zip(grid[0], names, strict=False):
        axes.set_title(_lines(name), fontsize=10)
    for first, name, examples, rows, shown in (
        (0, "support set", episode.support, support, above),
        (above, "query set", episode.query, query, below),
    ):
        for label, of_class in enumerate(rows):
            for place, row in enumerate(of_class[:shown], start=first):
                axes = grid[place][label]
                _show(axes, examples.x[row].detach().float().cpu(), ink)
                if logits is not None and examples is episode.query:
                    chances = logits[row].detach().float().softmax(dim=-1)
                    guess = int(chances.argmax())
                    _answer(axes, names[guess], float(chances[guess]), names[label])
        grid[first][0].set_ylabel(f"{name}{_of(shown, max(map(len, rows)))}")
    figure.savefig(path, dpi=110)


def _rows(examples: Examples, ways: int) -> list[list[int]]:
    """For each class, the rows of its examples, without padding."""
    there = torch.ones_like(examples.y) if examples.weight is None else examples.weight > 0
    return [((examples.y == label) * there).nonzero()[:, 0].tolist() for label in range(ways)]


def draw_predictions(
    support: Tensor,
    classes: Sequence[str],
    query: Tensor,
    predictions: Sequence[tuple[str, float, str]],
    path: Path,
    ink: bool,
) -> None:
    """Examples above, one column per class, and below them pictures with their predictions.

    Args:
        support: ``[B, C, H, W]`` in 0..1; at most three of each class are shown, with their total.
        classes: the class of each, B names.
        query: ``[Q, C, H, W]`` in 0..1.
        predictions: for each, the predicted class, its probability, and the true class or "".
        path: the picture to write.
        ink: whether 1 is ink, shown in black, rather than light.
    """
    by_class: dict[str, list[Tensor]] = {name: [] for name in classes}
    for picture, name in zip(support, classes, strict=True):
        by_class[name].append(picture)
    columns = max(5, min(len(by_class), 10))
    blocks = -(-len(by_class) // columns)
    shots = min(_MOST_SHOWN, max(len(pictures) for pictures in by_class.values()))
    above, below = blocks * shots, -(-len(query) // columns)
    figure = Figure(
        figsize=(1.4 * columns + 0.6, 1.65 * (above + below) + 0.2), layout="constrained"
    )
    grid = figure.subplots(above + below, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for position, (name, pictures) in enumerate(by_class.items()):
        row, column = shots * (position // columns), position % columns
        of = _of(min(shots, len(pictures)), len(pictures))
        grid[row][column].set_title(f"{_lines(name)}{of}", fontsize=10)
        for shot, picture in enumerate(pictures[:shots]):
            _show(grid[row + shot][column], picture, ink)
    for position, (picture, (guess, chance, right)) in enumerate(
        zip(query, predictions, strict=True)
    ):
        axes = grid[above + position // columns][position % columns]
        _show(axes, picture, ink)
        _answer(axes, guess, chance, right)
    grid[0][0].set_ylabel("examples")
    grid[above][0].set_ylabel("predictions")
    figure.savefig(path, dpi=110)


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path) -> None:
    """A confusion matrix: the counts, green where they are right and red where not.

    The more of its row a cell has, the stronger is its colour.

    Args:
        counts: ``[N, N]`` whole numbers: actual classes down, predicted ones across; at least one
            is not 0.
        classes: N names; the end of a long one is left out.
        path: the picture to write.
    """
    table = counts.detach().cpu().numpy()
    ways, right, known = len(table), int(table.trace()), int(table.sum())
    colours = np.full((ways, ways, 4), to_rgba(_WRONG))
    colours[np.eye(ways, dtype=bool)] = to_rgba(_RIGHT)
    # Never so dark that a black number could not be read.
    colours[..., 3] = 0.6 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in classes]
    side, beside = max(0.42 * ways, 2.4), 0.08 * max(map(len, short))
    figure = Figure(figsize=(side + beside + 0.6, side + beside + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(colours)
    for (row, column), count in np.ndenumerate(table):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=9)
    names = [_plain(name) for name in short]
    axes.set_xticks(range(ways), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(ways), names, fontsize=9)
    axes.set_xticks(np.arange(ways - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(ways - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#e5e5e5")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#cccccc")
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title(f"accuracy {right / known:.1%} ({right} of {known})", fontsize=10)
    figure.savefig(path, dpi=110)


def _of(shown: int, all_of_them: int) -> str:
    return f"\n({shown} of {all_of_them})" if shown < all_of_them else ""


def _lines(text: str) -> str:
    """Wrap text to the width of a column."""
    return _plain(textwrap.fill(text, 17))


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _answer(axes: Axes, guess: str, chance: float, right: str) -> None:
    """Write the prediction below a picture, with a tick or cross if the true class is known."""
    mark, colour = ("✓ ", _RIGHT) if guess == right else ("✗ ", _WRONG)
    if not right:
        mark, colour = "", "black"
    axes.set_xlabel(_lines(f"{mark}{guess} {chance:.0%}"), fontsize=9, color=colour)


def _show(axes: Axes, picture: Tensor, ink: bool) -> None:
    """An image ``[C, H, W]``, grey or RGB."""
    axes.set_axis_on()
    shown = (1 - picture if ink else picture).permute(1, 2, 0).numpy()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")


def draw_fit(task: Episode, before: Tensor, after: Tensor, path: Path) -> None:
    """A function of one variable: its support set, its query set and the outputs for that.

    Args:
        task: one regression, x and y ``[B, 1]``.
        before: ``[Q, 1]``, outputs for the query set before adaptation.
        after: the same after it.
        path: the picture to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    order = task.query.x[:, 0].argsort().cpu()

    def line(values: Tensor, style: str, colour: str, label: str) -> None:
        points = (each.detach().float().cpu()[order, 0] for each in (task.query.x, values))
        axes.plot(*points, style, color=colour, label=label, markersize=5, fillstyle="none")

    line(task.query.y, "o", "black", f"query set ({len(order)})")
    line(before, "--", _BEFORE, "before adaptation")
    line(after, "-", _AFTER, "adapted")
    shown = (each.detach().float().cpu()[:, 0] for each in (task.support.x, task.support.y))
    axes.plot(*shown, "^", color="black", label=f"support set ({len(task.support.x)})")
    axes.set(xlabel="x", ylabel="y")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def draw_paths(rollouts: Mapping[str, Tensor], goal: Tensor, path: Path) -> None:
    """Paths through the plane, in one panel for each title.

    Args:
        rollouts: by title, ``[R, H, 3 + O]``, as `PolicyGradient.outputs` returns them; an
            observation begins with the position.
        goal: ``[2]``.
        path: the picture to write.
    """
    figure = Figure(figsize=(4 * len(rollouts), 4.2), layout="constrained")
    panels = figure.subplots(1, len(rollouts), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(panels, rollouts.items(), strict=True):
        show_paths(axes, found, goal)
        total = found[..., 1].sum(dim=1).mean().item()
        axes.set_title(f"{title}: mean return {total:.2f}", fontsize=10)
    figure.savefig(path, dpi=110)


def show_paths(axes: Axes, rollouts: Tensor, goal: Tensor) -> None:
    """The paths of rollouts from the origin, each until it ends, and their goal."""
    for rollout in rollouts.detach().float().cpu():
        steps = rollout[rollout[:, 2] > 0]
        axes.plot(steps[:, 3], steps[:, 4], color=_BEFORE, alpha=0.4, lw=0.8)
    axes.plot(0, 0, "o", color="black", markersize=5)
    axes.plot(*goal.cpu().tolist(), "*", color=_AFTER, markersize=14, zorder=3)
    ticks = (-1, -0.5, 0, 0.5, 1)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=ticks, yticks=ticks)
    axes.grid(alpha=0.3)


def draw_completion(
    rows: Sequence[tuple[Episode, Mapping[str, Tensor]]], size: int, path: Path, ink: bool = True
) -> None:
    """A row per task: its known pixels, completions by title, and the truth.

    Args:
        rows: tasks, x ``[B, 2]`` in -1..1 (column, row) and y ``[B, channels]``, with outputs
            ``[Q, channels]`` for their query pixels by title, the same titles for all.
        size: height and width in pixels.
        path: the picture to write.
        ink: whether 1 is ink, shown in black, rather than light.
    """
    columns = 2 + len(rows[0][1])
    figure = Figure(figsize=(1.7 * columns, 1.85 * len(rows)), layout="constrained")
    for line, (task, completions) in zip(
        figure.subplots(len(rows), columns, squeeze=False), rows, strict=True
    ):
        known = f"{len(task.support.x)} known pixels"
        shown = {known: task.support.y, **completions, "truth": task.query.y}
        for axes, (title, values) in zip(line, shown.items(), strict=True):
            x = task.support.x if title == known else task.query.x
            column, row = ((x.cpu() + 1) * size / 2).floor().long().unbind(-1)
            filled = values.detach().float().cpu().clamp(0, 1)
            picture = filled.new_full((size, size, 3), float("nan"))
            picture[row, column] = 1 - filled if ink else filled  # one channel is broadcast
            empty = picture.isnan()
            picture = picture.where(~empty, picture.new_tensor(to_rgba(_EMPTY)[:3]))
            axes.imshow(picture.numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#cccccc")
            if axes in figure.axes[:columns]:
                axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_outcomes(task: Episode, before: Tensor, after: Tensor, path: Path) -> None:
    """The probability of a positive outcome for each query example, by its group and outcome.

    Args:
        task: one task of two outcomes, with a protected group.
        before: ``[Q, 2]``, logits for the query set before adaptation.
        after: the same after it.
        path: the picture to write.
    """
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    chances = [each.detach().float().cpu().softmax(dim=1)[:, 1] for each in (before, after)]
    protected, y = task.query.extra["protected"].cpu(), task.query.y.cpu()
    names = []
    for row, (group, label) in enumerate([(True, 1), (True, 0), (False, 1), (False, 0)]):
        of = (protected == group) & (y == label)
        share = f"{(chances[1][of] > 0.5).float().mean():.0%} predicted positive"
        who, what = "protected" if group else "others", "positive" if label else "negative"
        names.append(f"{who}, {what}:\n{share if of.any() else 'no example'}")
        for values, colour, mark, lift in zip(
            chances, (_BEFORE, _AFTER), "|o", (0.2, 0), strict=True
        ):
            height = np.full(int(of.sum()), row - lift)
            axes.plot(values[of], height, mark, color=colour, alpha=0.5, markersize=6)
    axes.plot([], [], "|", color=_BEFORE, label="before adaptation")
    axes.plot([], [], "o", color=_AFTER, label="adapted")
    axes.axvline(0.5, color="0.7", zorder=0)
    axes.set(xlabel="probability of a positive outcome", xlim=(-0.02, 1.02))
    axes.set_yticks(range(4), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
