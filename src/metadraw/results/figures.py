"""The pictures of a run: its curves, what else it learned, and an episode with predictions."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from metadraw.data.episode import Episode

_TRAIN, _VAL, _RIGHT, _WRONG = "#4c78a8", "#e4572e", "#2e7d32", "#c0392b"
_STYLES, _MARKERS = ("-", "--", ":", "-."), "os^Dv*"
_MOST_SHOWN = 3  # drawings of a class


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    *,
    chance: float | None = None,
    best: float | None = None,
) -> None:
    """Accuracy and loss by epoch, after adaptation (solid) and before it (dashed).

    The band around the meta-validation accuracy is its 95 % interval over tasks.

    Args:
        rows: one mapping an epoch, as in ``metrics.csv``.
        path: the picture to write.
        chance: the accuracy of guessing, in 0..1.
        best: the epoch of the best checkpoint.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for axes, name in ((accuracy, "acc"), (loss, "loss")):
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
        if best is not None:
            axes.axvline(best, color="grey", linewidth=1, label=f"best epoch ({best:.0f})")
        _frame(axes)
    interval = [
        (row["epoch"], row["val/acc"] - row["val/acc_ci95"], row["val/acc"] + row["val/acc_ci95"])
        for row in rows
        if {"val/acc", "val/acc_ci95"} <= row.keys()
    ]
    if interval:
        epochs, low, high = zip(*interval, strict=True)
        label = "95 % interval over tasks"
        if len(interval) == 1:  # a band has no width
            accuracy.errorbar(
                epochs,
                [(low[0] + high[0]) / 2],
                [(high[0] - low[0]) / 2],
                color=_VAL,
                capsize=3,
                label=label,
            )
        else:
            accuracy.fill_between(
                epochs, low, high, color=_VAL, alpha=0.2, linewidth=0, label=label
            )
    if chance is not None:
        accuracy.axhline(
            chance, color="black", linestyle=":", linewidth=1, label=f"chance ({chance:.0%})"
        )
    accuracy.set(xlabel="epoch", ylabel="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(xlabel="epoch", ylabel="loss (nats)")
    figure.legend(*accuracy.get_legend_handles_labels(), **_below(4))
    figure.savefig(path, dpi=150)


#: Epoch, accuracy and loss of each epoch.
Points = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Curve:
    """Runs that differ in their seed alone, as `draw_sweep` shows them.

    Attributes:
        label: its text in the legend.
        runs: the points of each run.
        published: those of the published run with these settings, empty if there is none.
    """

    label: str
    runs: Sequence[Points]
    published: Points = ()


def draw_sweep(curves: Sequence[Curve], title: str) -> Figure:
    """Meta-validation accuracy and loss by epoch: mean and spread over seeds.

    Published curves are grey; if there are several, each is named at its end.

    Args:
        curves: one a setting.
        title: of the whole figure.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    # Runs with different settings of their own may share a published one.
    published = {tuple(curve.published): curve.label for curve in curves if curve.published}
    several_seeds = any(len(curve.runs) > 1 for curve in curves)
    for position, (axes, name) in enumerate(zip(panels, ("accuracy", "loss"), strict=True), 1):
        for points, label in published.items():
            x, y = [point[0] for point in points], [point[position] for point in points]
            axes.plot(x, y, "--", color="grey", linewidth=1.2, label="published")
            if len(published) > 1:
                axes.annotate(
                    label, (x[-1], y[-1]), (3, 0), textcoords="offset points", color="grey",
                    fontsize=7, va="center",
                )  # fmt: skip
        for number, curve in enumerate(curves):
            style, colour = _STYLES[number // 10 % len(_STYLES)], f"C{number % 10}"
            by_epoch: dict[float, list[float]] = {}
            for run in curve.runs:
                for point in run:
                    by_epoch.setdefault(point[0], []).append(point[position])
            epochs = sorted(by_epoch)
            means = [fmean(by_epoch[epoch]) for epoch in epochs]
            seeds = f" ({len(curve.runs)} seeds)" if len(curve.runs) > 1 else ""
            marker = "o" if len(epochs) < 30 else ""
            axes.plot(
                epochs, means, style, color=colour, marker=marker, markersize=3,
                label=f"{curve.label}{seeds}",
            )  # fmt: skip
            spread = [stdev(v) if len(v) > 1 else 0.0 for v in map(by_epoch.get, epochs) if v]
            if any(spread):
                axes.fill_between(
                    epochs,
                    [mean - sd for mean, sd in zip(means, spread, strict=True)],
                    [mean + sd for mean, sd in zip(means, spread, strict=True)],
                    color=colour,
                    alpha=0.2,
                    linewidth=0,
                )
        axes.set(xlabel="epoch", ylabel=f"meta-validation {name}")
        _frame(axes)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    legend = "bands: ± a standard deviation over seeds" if several_seeds else None
    figure.legend(handles.values(), handles.keys(), title=legend, title_fontsize=8, **_below(5))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def draw_learned(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    layers: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """What an algorithm learned besides the network, a panel a quantity, a line a layer.

    By inner step after the last epoch where it goes by the step, else by epoch.

    Args:
        rows: one mapping an epoch, as in ``metrics.csv``; names are ``quantity/layer`` or
            ``quantity/layer/step``.
        path: the picture to write; nothing is written where nothing was learned.
        layers: words for the layers' names, see `layers_in_words`.
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
                points.append((int(step) + 1, rows[-1][name]))
            else:
                points += [(row["epoch"], row[name]) for row in rows if name in row]
    if not lines:
        return
    words = {"all": ("all layers", ""), **(layers or {})}
    columns = min(2, len(lines))
    rows_of_panels = -(-len(lines) // columns)
    longest = max(map(len, lines.values()))
    height = max(3.6, 0.19 * longest + 0.6)
    figure = Figure(figsize=(6.6 * columns, height * rows_of_panels), layout="constrained")
    panels = figure.subplots(rows_of_panels, columns, squeeze=False).flat
    for (quantity, by_layer), axes in zip(lines.items(), panels, strict=False):
        modules: dict[str, int] = {}  # a colour each
        parts: dict[str, int] = {}  # weight, bias, ...: a line style each
        for layer, points in by_layer.items():
            module, part = words.get(layer, (layer, ""))
            number = modules.setdefault(module, len(modules))
            axes.plot(
                *zip(*points, strict=True),
                _STYLES[parts.setdefault(part, len(parts)) % len(_STYLES)],
                color=f"C{number % 10}",
                marker=_MARKERS[number // 10 % len(_MARKERS)],
                markersize=4,
                label=f"{module} {part}".strip(),
            )
        title = quantity.replace("_lr", "_learning_rate").replace("_", " ")
        axes.set(title=title, xlabel=labels[quantity])
        _frame(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    for axes in panels:  # the rest of the last row
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def layers_in_words(network: nn.Module) -> dict[str, tuple[str, str]]:
    """Words for the names of a network's modules and parameters.

    Returns:
        By name, what the module is and which part of it: ``0.0.weight`` of `Conv4` is
        ``("block 1 convolution", "weight")``, ``0.0`` itself ``("block 1 convolution", "")``.
    """
    layers = {
        name: (_place(name, module), [*module._parameters, *module._buffers])
        for name, module in network.named_modules()
        if module._parameters or module._buffers
    }
    same = Counter(text for text, _ in layers.values())
    seen: Counter[str] = Counter()
    words = {}
    for name, (text, parts) in layers.items():
        seen[text] += 1
        module_words = f"{text} {seen[text]}" if same[text] > 1 else text
        words[name] = (module_words, "")
        for part in parts:
            words[f"{name}.{part}".lstrip(".")] = (module_words, part.replace("_", " "))
    return words


def _place(name: str, module: nn.Module) -> str:
    """``0.0`` -> ``block 1 convolution``: where a module is, and what it is."""
    *parents, last = name.split(".")
    words: list[str] = []
    for parent in parents:
        if not parent.isdigit():
            words.append(parent.replace("_", " "))
        elif not words:
            words.append(f"block {int(parent) + 1}")
        else:
            joint = "." if words[-1][-1].isdigit() else " "
            words[-1] += f"{joint}{int(parent) + 1}"
    if last and not last.isdigit():
        return " ".join([*words, last.replace("_", " ")])
    kind = re.sub(r"^Task|\dd$", "", type(module).__name__)
    known = {"Conv": "convolution", "Linear": "linear layer"}
    camel = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", kind)
    text = " ".join(word if word.isupper() else word.lower() for word in camel)
    return " ".join([*words, known.get(kind, text)])


def _frame(axes: Axes) -> None:
    """A frame with as little ink as can be, and whole epochs or steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _below(columns: int) -> dict[str, Any]:
    """A legend below the panels, off the lines."""
    return {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 8}


def draw_episode(
    episode: Episode,
    classes: Sequence[str],
    path: Path,
    logits: Tensor | None = None,
    ink: bool = True,
) -> None:
    """One column a class: its support drawings, below them its query drawings.

    Args:
        episode: one task; at most three support and three query drawings a class are shown, and it
            says of how many.
        classes: the data's class names, indexed by ``episode.classes`` in any orientation.
        path: the picture to write.
        logits: ``[N*Q, N]`` query logits: the class predicted, with its probability, is written
            below each query drawing, with a green tick where it is right and a red cross where not.
        ink: 1 is ink, shown in black; else 1 is light.
    """
    names = [classes[number % len(classes)] for number in episode.classes.tolist()]
    ways = len(names)

    def by_class(values: Tensor) -> Tensor:
        """[N*K, ...] -> [at most 3, N, ...]."""
        return values.detach().float().cpu().unflatten(0, (ways, -1)).transpose(0, 1)[:_MOST_SHOWN]

    support, query = by_class(episode.support_x), by_class(episode.query_x)
    rows = len(support) + len(query)
    figure = Figure(figsize=(1.5 * ways + 0.6, 1.75 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, ways, squeeze=False)
    for row, pictures in enumerate([*support, *query]):
        for axes, picture in zip(grid[row], pictures, strict=True):
            _show(axes, picture, ink)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(_lines(name), fontsize=10)
    for first, name, images, shown in (
        (0, "support set", episode.support_x, support),
        (len(support), "query set", episode.query_x, query),
    ):
        grid[first][0].set_ylabel(f"{name}{_of(len(shown), len(images) // ways)}")
    if logits is not None:
        for row, predictions in enumerate(by_class(logits.softmax(dim=-1)), start=len(support)):
            for label, (axes, chances) in enumerate(zip(grid[row], predictions, strict=True)):
                guess = int(chances.argmax())
                _answer(axes, names[guess], float(chances[guess]), names[label])
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
        support: ``[B, C, H, W]`` in 0..1; at most three of each class are shown, and it says of
            how many.
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


def _of(shown: int, all_of_them: int) -> str:
    return f"\n({shown} of {all_of_them})" if shown < all_of_them else ""


def _lines(text: str) -> str:
    """As many lines as a column is narrow for."""
    return textwrap.fill(text, 17)


def _answer(axes: Axes, guess: str, chance: float, right: str) -> None:
    """Below a picture what it was taken for, with a tick or a cross if the right class is known."""
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
