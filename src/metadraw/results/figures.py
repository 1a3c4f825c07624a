"""Figures of runs: their curves, and what else they learned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import nn

from metadraw.objectives import Metric
from metadraw.objectives.classification import Classification

_TRAIN, _VAL = "#4c78a8", "#e4572e"
_STYLES, _MARKERS = ("-", "--", ":", "-."), "os^Dv*"
_SHOWN = (Classification.measured["acc"], Classification.measured["loss"])


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    metrics: Sequence[Metric] = _SHOWN,
    *,
    chance: float | None = None,
    best: float | None = None,
) -> None:
    """Metrics per epoch, one panel each, after adaptation (solid) and before it (dashed).

    The band around the first metric in meta-validation is its 95 % interval over tasks.

    Args:
        rows: one mapping per epoch, as in ``metrics.csv``.
        path: the picture to write.
        metrics: those to show, the monitored one first; by default accuracy and loss.
        chance: the first metric of random guessing.
        best: the epoch of the best checkpoint.
    """
    figure, panels = _panels(len(metrics), 4)
    monitored, first = metrics[0].name, panels[0]
    for axes, metric in zip(panels, metrics, strict=True):
        name = metric.name
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
        axes.set(xlabel="epoch", ylabel=metric.title)
        if metric.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        _frame(axes)
    value, half = f"val/{monitored}", f"val/{monitored}_ci95"
    interval = [
        (row["epoch"], row[value] - row[half], row[value] + row[half])
        for row in rows
        if {value, half} <= row.keys()
    ]
    if interval:
        epochs, low, high = zip(*interval, strict=True)
        label = "95 % interval over tasks"
        if len(interval) == 1:  # a band has no width
            first.errorbar(
                epochs,
                [(low[0] + high[0]) / 2],
                [(high[0] - low[0]) / 2],
                color=_VAL,
                capsize=3,
                label=label,
            )
        else:
            first.fill_between(epochs, low, high, color=_VAL, alpha=0.2, linewidth=0, label=label)
    if chance is not None:
        first.axhline(
            chance, color="black", linestyle=":", linewidth=1, label=f"chance ({chance:.0%})"
        )
    figure.legend(*first.get_legend_handles_labels(), **_below(4 if len(metrics) > 1 else 3))
    figure.savefig(path, dpi=150)


#: For each epoch, its number and the metrics shown.
Points = Sequence[tuple[float, ...]]


@dataclass(frozen=True)
class Curve:
    """Runs that differ in their seed only, as `draw_sweep` shows them.

    Attributes:
        label: its text in the legend.
        runs: the points of each run.
        published: those of the published run with these settings, empty if there is none.
    """

    label: str
    runs: Sequence[Points]
    published: Points = ()


def draw_sweep(curves: Sequence[Curve], title: str, metrics: Sequence[Metric] = _SHOWN) -> Figure:
    """Meta-validation metrics per epoch: mean and spread over seeds.

    Published curves are grey; if there are several, each is named at its end.

    Args:
        curves: one per setting.
        title: of the whole figure.
        metrics: those of the curves' points; by default accuracy and loss.
    """
    figure, panels = _panels(len(metrics), 4.2)
    # Runs with different settings may share a published curve.
    published = {tuple(curve.published): curve.label for curve in curves if curve.published}
    several_seeds = any(len(curve.runs) > 1 for curve in curves)
    for position, (axes, metric) in enumerate(zip(panels, metrics, strict=True), 1):
        ends: list[tuple[float, float, str]] = []
        for points, label in published.items():
            x, y = [point[0] for point in points], [point[position] for point in points]
            axes.plot(x, y, "--", color="grey", linewidth=1.2, label="published")
            ends.append((y[-1], x[-1], label))
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
        if len(ends) > 1:
            _name_ends(axes, ends)
        axes.set(xlabel="epoch", ylabel=f"meta-validation {metric.title}")
        if metric.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        _frame(axes)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    legend = "bands: ± a standard deviation over seeds" if several_seeds else None
    figure.legend(handles.values(), handles.keys(), title=legend, title_fontsize=8, **_below(5))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _name_ends(axes: Axes, ends: Iterable[tuple[float, float, str]]) -> None:
    """Name curves where they end, by height, place and name; names do not cover each other."""
    low, high = axes.get_ylim()
    free = low
    for y, x, name in sorted(ends):
        at = max(y, free)
        axes.annotate(
            name, (x, at), (3, 0), textcoords="offset points", color="grey", fontsize=7, va="center"
        )
        free = at + (high - low) / 25  # the height of a name


def draw_grid(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    form: str = ".1f",
    differences: float | None = None,
) -> None:
    """A heat map with the value in each cell.

    Args:
        axes: to draw on.
        values: a list for each row.
        rows: their names.
        columns: theirs.
        form: how values are written, see `format`.
        differences: the size at which differences have their full colour, by sign; `None` if the
            values are no differences.
    """
    flat = [value for row in values for value in row]
    if differences is None:
        colours, middle, far = "Blues", max(flat), max(flat) - min(flat)
    else:
        colours, middle, far = "RdBu", 0.0, 2 * differences
    far = far or 1.0
    # Half of the colours at most, so that black can be read on all of them.
    axes.imshow(values, cmap=colours, aspect="auto", vmin=middle - far, vmax=middle + far)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x, y, format(value, form), ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_learned(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    layers: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """What an algorithm learned besides the network: one panel per quantity, one line per layer.

    Quantities with a step are shown per inner step after the last epoch, others per epoch.

    Args:
        rows: one mapping per epoch, as in ``metrics.csv``; names are ``quantity/layer`` or
            ``quantity/layer/step``.
        path: the picture to write, if there is such a quantity.
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


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; a single one is wider."""
    figure = Figure(figsize=(4.5 * count if count > 1 else 6, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _frame(axes: Axes) -> None:
    """A minimal frame, and whole epochs or steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _below(columns: int) -> dict[str, Any]:
    """A legend below the panels, off the lines."""
    return {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 8}
