"""The contents of pictures, read from matplotlib's objects before they become pixels."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from metadraw.data.figures import draw_confusion, draw_episode, draw_predictions
from metadraw.models.conv4 import Conv4
from metadraw.results.figures import (
    Curve,
    draw_curves,
    draw_learned,
    draw_sweep,
    layers_in_words,
)
from metadraw.training.curves import Curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved; the files are written, too."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(figure):
    """All text of a figure except tick labels: titles, axis labels and legends."""
    found = [text.get_text() for text in figure.texts]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        if axes.get_legend():
            found += [text.get_text() for text in axes.get_legend().get_texts()]
    return found


def off_the_lines(figure):
    """No legend covers a panel."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    boxes = [axes.get_window_extent(renderer) for axes in figure.axes]
    assert legends
    return not any(
        legend.get_window_extent(renderer).overlaps(box) for legend in legends for box in boxes
    )


ROWS = [
    {"epoch": e, "val/acc": acc, "val/acc_ci95": 0.02, "val/loss": 1.0, "train/acc": 0.5}
    for e, acc in enumerate((0.4, 0.6, 0.5), start=1)
]


def test_curves_have_band_chance_and_best_epoch(drawn, tmp_path):
    draw_curves(ROWS, tmp_path / "curves.png", chance=0.2, best=2)
    accuracy, loss = drawn[0].axes
    (band,) = accuracy.collections
    y = band.get_paths()[0].vertices[:, 1]
    assert (y.min(), y.max()) == pytest.approx((0.38, 0.62))
    assert {"chance (20%)", "best epoch (2)", "95 % interval over tasks"} <= {*texts(drawn[0])}
    for axes in (accuracy, loss):
        assert any(set(line.get_xdata()) == {2} for line in axes.lines)
    assert off_the_lines(drawn[0])


def test_curves_of_one_epoch_and_of_epochs_without_validation(drawn, tmp_path):
    draw_curves(ROWS[:1], tmp_path / "one.png")
    assert "95 % interval over tasks" in texts(drawn[0])
    draw_curves([{"epoch": 1, "train/acc": 0.1}, *ROWS[1:]], tmp_path / "two.png")
    draw_curves([{"epoch": 1, "train/acc": 0.1}], tmp_path / "three.png")
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("monitor", "mode", "epoch"),
    [
        ("val/acc", "max", 2),
        ("val/loss", "min", 3),
        ("val/other", "max", None),
        (None, "max", None),
    ],
)
def test_the_best_epoch_is_by_what_the_checkpoint_goes_by(monitor, mode, epoch, tmp_path):
    curves = Curves(tmp_path)
    values = {"val/acc": (0.4, 0.6, 0.6), "val/loss": (1.0, 0.9, 0.8)}
    curves.rows = [
        {"epoch": e + 1.0, **{name: by_epoch[e] for name, by_epoch in values.items()}}
        for e in range(3)
    ]
    assert curves._best_epoch(ModelCheckpoint(monitor=monitor, mode=mode)) == epoch
    assert curves._best_epoch(None) is None


POINTS = [(1.0, 0.3, 1.5), (2.0, 0.5, 1.0)]


def test_the_published_curve_is_drawn_once_in_grey(tmp_path):
    curves = [Curve("maml", [POINTS], POINTS), Curve("anil", [POINTS, POINTS[:1]], POINTS)]
    figure = draw_sweep(curves, "5-way")
    for axes in figure.axes:
        assert sum(to_hex(line.get_color()) == "#808080" for line in axes.lines) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "published",
        "maml",
        "anil (2 seeds)",
    ]
    figure.savefig(tmp_path / "figure.png")
    assert off_the_lines(figure)


def test_published_curves_of_several_settings_are_named(tmp_path):
    other = [(1.0, 0.6, 1.0), (2.0, 0.7, 0.9)]
    figure = draw_sweep([Curve("1-shot", [POINTS], POINTS), Curve("5-shot", [], other)], "")
    assert {text.get_text() for text in figure.axes[0].texts} == {"1-shot", "5-shot"}


def test_names_of_published_curves_that_end_together_do_not_cover_each_other():
    curves = [
        Curve(f"{shots}-shot", [POINTS], [*POINTS, (3.0, 0.5 + shots / 10_000, 1.0)])
        for shots in (1, 5, 10)
    ]
    figure = draw_sweep(curves, "")
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 3
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_seeds_are_a_mean_and_a_band():
    runs = [[(1.0, 0.2, 1.0), (2.0, 0.4, 1.0)], [(1.0, 0.4, 1.0), (2.0, 0.4, 1.0), (3.0, 0.9, 1.0)]]
    axes = draw_sweep([Curve("maml", runs)], "").axes[0]
    (line,) = axes.lines
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.4, 0.9])
    (band,) = axes.collections
    # The standard deviation of 0.2 and 0.4 is 0.1 times the square root of 2.
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.3 - 0.1 * 2**0.5)


class Named(nn.Module):
    """A network with named modules, and a parameter that belongs to none of them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.encoder = nn.ModuleList([nn.LSTM(3, 3), nn.Conv1d(3, 3, 1)])
        self.head = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            Conv4(),
            {
                "1.0.weight": ("block 2 convolution", "weight"),
                "3.1": ("block 4 batch norm", ""),
            },
        ),
        (
            nn.ModuleDict({"head": nn.Linear(4, 5)}),
            {"head.bias": ("head", "bias")},
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 5)),
            {"1.weight": ("linear layer 1", "weight"), "3.weight": ("linear layer 2", "weight")},
        ),
        (
            Named(),
            {
                "scale": ("named", "scale"),
                "encoder.0.weight_ih_l0": ("encoder LSTM", "weight ih l0"),
                "encoder.1.bias": ("encoder convolution", "bias"),
                "head.weight": ("head", "weight"),
            },
        ),
        (
            nn.Sequential(nn.Sequential(nn.Sequential(nn.GroupNorm(1, 2)), nn.LayerNorm(2))),
            {"0.0.0": ("block 1.1 group norm", ""), "0.1.weight": ("block 1 layer norm", "weight")},
        ),
    ],
)
def test_layers_in_words(network, expected):
    words = layers_in_words(network)
    assert expected.items() <= words.items()
    named = [words[name] for name, _ in network.named_parameters()]
    assert len(set(named)) == len(named)


def test_learned_layers_are_named_and_told_apart(drawn, tmp_path):
    """26 layers with a weight and a bias: 52 distinguishable lines."""
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(26)))
    names = [name for name, _ in network.named_parameters()]
    rows = [{"epoch": 1.0, **{f"inner_lr/{name}/{step}": 0.1 for name in names for step in (0, 1)}}]
    draw_learned(rows, tmp_path / "learned.png", layers_in_words(network))
    (axes,) = drawn[0].axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 52
    assert axes.get_title() == "inner learning rate"
    assert list(axes.lines[0].get_xdata()) == [1, 2]  # steps, counted from 1
    assert {"linear layer 1 weight", "linear layer 26 bias"} <= {*texts(drawn[0])}
    assert off_the_lines(drawn[0])


def test_an_episode_says_what_is_not_shown_and_marks_by_more_than_colour(
    drawn, make_sampler, tmp_path
):
    task = make_sampler(shots=4, queries=2)(torch.arange(1)).task(0)
    logits = torch.full((10, 5), -10.0)
    logits[:, 0] = 10.0  # every query drawing is predicted as the first class
    draw_episode(task, [f"class {n}" for n in range(12)], tmp_path / "episode.png", logits)
    words = texts(drawn[0])
    assert "support set\n(3 of 4)" in words
    assert "query set" in words
    assert sum(text.startswith("✓ class") for text in words) == 2
    assert sum(text.startswith("✗ class") for text in words) == 8


def test_predictions_are_marked_where_the_class_is_known(drawn, tmp_path):
    pictures = torch.rand(5, 1, 28, 28)
    answers = [("cat", 0.9, "cat"), ("cat", 0.6, "dog"), ("dog", 0.5, "")]
    classes = ["cat"] * 4 + ["dog"]
    draw_predictions(pictures, classes, pictures[:3], answers, tmp_path / "p.png", ink=True)
    words = texts(drawn[0])
    assert {"✓ cat 90%", "✗ cat 60%", "dog 50%", "cat\n(3 of 4)", "dog"} <= {*words}


def test_confusion_counts_right_and_wrong(drawn, tmp_path):
    names = ["cat", "a name of more than thirty letters", "cost: $x^$"]
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    draw_confusion(counts, names, tmp_path / "confusion.png")
    [axes] = drawn[0].axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}
    assert (axes.get_title(), axes.get_ylabel()) == ("accuracy 78.6% (11 of 14)", "actual")
    colours = axes.images[0].get_array()
    assert colours[..., 3].tolist() == pytest.approx(
        np.array([[0.48, 0.12, 0], [0, 0, 0], [0.15, 0, 0.45]])
    )
    assert len({tuple(colours[i, i, :3]) for i in range(3)}) == 1
    assert tuple(colours[0, 0, :3]) != tuple(colours[0, 1, :3])


@pytest.mark.parametrize("ways", [2, 20])
def test_names_of_a_confusion_matrix_are_readable(ways, drawn, tmp_path):
    names = [f"{number} is The Great Wall of China" for number in range(ways)]
    draw_confusion(torch.eye(ways), names, tmp_path / "confusion.png")
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    [axes] = drawn[0].axes
    across, down = axes.get_xticklabels(), axes.get_yticklabels()
    for labels in (across, down):
        assert [label.get_text() for label in labels] == names
        for label in labels:
            box = label.get_window_extent(canvas.get_renderer())
            assert min(box.x0, box.y0) >= 0, "cut off"
    rows = [label.get_window_extent(canvas.get_renderer()) for label in down]
    assert not any(one.overlaps(other) for one, other in pairwise(rows))
    # At an angle, lines need as much room from column to column as their height.
    columns = [label.get_transform().transform(label.get_position()) for label in across]
    apart = min(right[0] - left[0] for left, right in pairwise(columns)) / 2**0.5
    assert apart > rows[0].height


def test_long_names_are_broken_into_lines(drawn, tmp_path):
    pictures, name = torch.rand(2, 1, 28, 28), "The Great Wall of China"
    draw_predictions(
        pictures, [name, "cat"], pictures[:1], [(name, 0.5, "cat")], tmp_path / "p.png", ink=True
    )
    assert {"The Great Wall of\nChina", "✗ The Great Wall\nof China 50%"} <= {*texts(drawn[0])}


def test_a_dollar_sign_starts_no_formula(drawn, tmp_path):
    pictures, name = torch.rand(2, 1, 28, 28), "cost: $x^$"
    answers = [(name, 0.5, "cat")]
    draw_predictions(pictures, [name, "cat"], pictures[:1], answers, tmp_path / "p.png", ink=True)
