"""Which drawings to label next: accuracy against the number of labels, for every strategy.

python benchmarks/labels.py data.source=npm

Each meta-test task has five classes, one labelled drawing of each, and a pool without labels. In
every round the shipped checkpoint learns from the labelled drawings, a strategy chooses five more
of the pool, and they get their labels. There are two pools: one with as many drawings of each
class, and one with 60, 30, 15, 8 and 4. A second study adds a drawing of one class at a time, as on
the page of demo.py. The network is frozen, so all features are computed once. Tables, figure and
CSV go to benchmarks/results/labels.{md,csv,png}; it takes a few minutes of one core.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    clear,
    interval,
    listed,
    markdown,
    percent,
    save,
)
from torch import Tensor, nn

import metadraw
from metadraw.algorithms.simple_shot import SimpleShot
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Episode, Examples
from metadraw.objectives.classification import Classification
from metadraw.training.learner import MetaLearner
from metadraw.use.choosing import STRATEGIES, Pool, choose, weakest_class
from metadraw.use.classifier import FewShot

OUT = RESULTS / "labels"
SHIPPED = ROOT / "checkpoints" / "best.ckpt"
WAYS, BATCH, MOST, QUERIES = 5, 5, 50, 30  # classes, labels a round, labels, queries a class
POOLS = {"balanced": (30,) * 5, "unbalanced": (60, 30, 15, 8, 4)}
SHOWN = (10, 15, 25, 50)  # labels, in the tables
#: Which class to draw another example of, and up to how many labels.
BY_CLASS, MOST_BY_CLASS = ("weakest", "fewest", "random"), 20


class Task(NamedTuple):
    """Features ``[.., F]`` of a task's drawings, with labels."""

    first: Tensor  # [WAYS, F], one of each class
    pool: Examples
    query: Examples


class Frozen:
    """The shipped checkpoint on features instead of drawings, with its calibration."""

    def __init__(self, few_shot: FewShot) -> None:
        trained = few_shot.learner.algorithm
        assert isinstance(trained, SimpleShot), "the shipped checkpoint has another algorithm"
        algorithm = SimpleShot(
            nn.Identity(),
            nn.Linear(len(trained.center), 1),
            Classification(ways=WAYS),
            temperature=trained.temperature,
            classes=1,
            label_smoothing=0.0,
            running_statistics=False,
        )
        algorithm.center.copy_(trained.center)
        self.learner = MetaLearner(algorithm, torch.optim.Adam).eval()
        self.calibration = few_shot.calibration

    def chances(self, support: Examples, x: Tensor) -> Tensor:
        """Probabilities ``[B, N]`` of features ``[B, F]``, as `Classifier` computes them."""
        task = Episode(
            support,
            Examples(x, support.y[:0]),
            torch.tensor(0),
            about={"classes": torch.arange(WAYS)},
        )
        logits = self.learner.answer(self.learner.adapt(task), task)
        inverse_shots = support.y.bincount().double().reciprocal().mean().item()
        return (logits / self.calibration.at(inverse_shots)[0]).softmax(dim=1)

    def accuracy(self, support: Examples, query: Examples) -> float:
        """The share of the query set that is classified correctly."""
        return (self.chances(support, query.x).argmax(dim=1) == query.y).double().mean().item()


def features_of_classes(few_shot: FewShot, overrides: Sequence[str]) -> list[Tensor]:
    """Features ``[S, F]`` of every drawing of each meta-test class."""
    data, _ = metadraw.load(SHIPPED, *overrides)
    found = []
    for name in data.splits["test"]:
        images = data.drawings.images[data.drawings.classes.index(name)]
        x = few_shot.prepare(list(images))
        nothing = Examples(x[:0], torch.zeros(0, dtype=torch.int64))
        task = Episode(nothing, nothing._replace(x=x), torch.tensor(0))
        found.append(few_shot.learner.features({}, task))
    return found


def make(features: list[Tensor], number: int, sizes: Sequence[int]) -> Task:
    """Task ``number``, with pools of these sizes; larger pools only add to it."""
    random = torch.Generator().manual_seed(number)
    first, pool, query = [], [], []
    for label, of_class in enumerate(torch.randperm(len(features), generator=random)[:WAYS]):
        drawings = features[of_class]
        drawings = drawings[torch.randperm(len(drawings), generator=random)]
        rest = drawings[1 + QUERIES :][: sizes[label]]
        if len(rest) < sizes[label]:
            raise SystemExit(
                f"too few drawings of a class: {1 + QUERIES + sizes[label]} are needed"
            )
        first.append(drawings[0])
        query.append(drawings[1 : 1 + QUERIES])
        pool.append(rest)
    return Task(torch.stack(first), _labelled(pool), _labelled(query))


def _labelled(parts: list[Tensor]) -> Examples:
    counts = torch.tensor([len(part) for part in parts])
    return Examples(torch.cat(parts), torch.arange(len(parts)).repeat_interleave(counts))


def by_strategy(frozen: Frozen, task: Task, strategy: str, number: int) -> Iterator[float]:
    """Accuracy with 5, 10, 15 ... labels."""
    support, left = Examples(task.first, torch.arange(WAYS)), task.pool
    yield frozen.accuracy(support, task.query)
    for labels in range(WAYS, MOST, BATCH):
        seen = Pool(frozen.chances(support, left.x), left.x, support.x, seed=1000 * number + labels)
        support, left = moved(choose(seen, BATCH, strategy), support, left)
        yield frozen.accuracy(support, task.query)


def by_class(frozen: Frozen, task: Task, rule: str, number: int) -> Iterator[float]:
    """Accuracy with 5, 6, 7 ... labels: each is of a class that the rule chooses."""
    support, left = Examples(task.first, torch.arange(WAYS)), task.pool
    random = torch.Generator().manual_seed(number)
    yield frozen.accuracy(support, task.query)
    for _ in range(MOST_BY_CLASS - WAYS):
        now = support
        if rule == "random":
            label = int(torch.randint(WAYS, [], generator=random))
        elif rule == "fewest":
            label = int(now.y.bincount(minlength=WAYS).argmin())
        else:
            label = weakest_class(
                lambda kept, now=now: frozen.chances(Examples(now.x[kept], now.y[kept]), now.x),
                now.y,
                WAYS,
            )
        [of_class] = (left.y == label).nonzero(as_tuple=True)
        support, left = moved(of_class[:1].tolist(), support, left)
        yield frozen.accuracy(support, task.query)


def moved(chosen: list[int], support: Examples, left: Examples) -> tuple[Examples, Examples]:
    """Examples and pool, after some of the pool got their labels."""
    stay = torch.ones(len(left.x), dtype=torch.bool)
    stay[chosen] = False
    more = Examples(left.x[chosen], left.y[chosen])
    grown = Examples(torch.cat([support.x, more.x]), torch.cat([support.y, more.y]))
    return grown, Examples(left.x[stay], left.y[stay])


def findings(found: dict[str, Tensor], labels: Sequence[int]) -> str:
    """Which strategies differ from random, by paired differences beyond their intervals."""
    parts = []
    for count in (SHOWN[0], SHOWN[-1]):
        points = {
            name: values[:, labels.index(count)] - found["random"][:, labels.index(count)]
            for name, values in found.items()
            if name != "random"
        }
        sure = [name for name, each in points.items() if clear(each)]
        better, worse = (
            [f"`{name}`" for name in sure if (points[name].mean() > 0) == wanted]
            for wanted in (True, False)
        )
        verb = "beat" if len(better) > 1 else "beats"
        parts.append(
            f"With {count} labels, {listed(better) or 'no strategy'} {verb} random; random beats "
            f"{listed(worse) or 'none'}."
        )
    best = max(found, key=lambda name: found[name][:, 1:].mean())
    if best != "random":
        reached = found[best][:, labels.index(SHOWN[0])].mean()
        enough = [c for i, c in enumerate(labels) if found["random"][:, i].mean() >= reached]
        more = f"{enough[0]}" if enough else f"more than {labels[-1]}"
        parts.append(
            f"On average over all numbers of labels, `{best}` is best: with {SHOWN[0]} labels it "
            f"is as accurate as random with {more}."
        )
    return " ".join(parts)


def write(
    command: str,
    tasks: int,
    pools: dict[str, dict[str, Tensor]],
    classes: dict[str, Tensor],
) -> None:
    """Tables, findings, figure and CSV of accuracies ``[tasks, rounds]``."""
    labels = list(range(WAYS, MOST + 1, BATCH))
    text = [
        "# Which drawings to label next",
        "",
        f"`{command}`, one core, {platform.machine()} CPU, torch {torch.__version__}. The "
        f"checkpoint that comes with metadraw on {tasks} meta-test tasks of {WAYS} classes: "
        f"accuracy in per cent on {QUERIES} other drawings of each class, ± half its 95 % "
        "interval, and the difference from random in points, paired by task. All strategies start "
        f"from the same labelled drawing of each class, and choose {BATCH} a round.",
    ]
    rows: list[list[object]] = []
    for pool, found in pools.items():
        sizes = listed([str(size) for size in dict.fromkeys(POOLS[pool])])
        what = "each class" if len(set(POOLS[pool])) == 1 else "the classes"
        text += ["", f"**{pool.capitalize()} pool**, {sizes} drawings of {what}:", ""]
        text += table("strategy", found, labels, SHOWN)
        rows += lines(pool, found, labels)
        text += ["", findings(found, labels)]
    counts = list(range(WAYS, MOST_BY_CLASS + 1))
    text += [
        "",
        "**Which class to draw next**: one more example at a time, of the weakest of the classes "
        "with the fewest examples (`Classifier.weakest`, as the page suggests), of the first of "
        "them, or of any class:",
        "",
        *table("class", classes, counts, (7, 8, 12, 18)),
        "",
        "The weakest instead of the first of those with the fewest examples gives "
        f"{percent(classes['weakest'][:, 3] - classes['fewest'][:, 3], '+')} points with 8 labels.",
        "",
        f"![Accuracy against the number of labels, and differences from random]({OUT.name}.png)",
    ]
    rows += lines("by class", classes, counts)
    columns = ["pool", "strategy", "labels", "acc", "acc_ci95", "difference", "difference_ci95"]
    save(OUT, text, columns, rows)
    draw(pools, labels)


def table(
    title: str, found: dict[str, Tensor], labels: Sequence[int], shown: Sequence[int]
) -> list[str]:
    """The lines of a table: accuracies, and in brackets differences from random."""
    head = [title, *(f"{count} labels" for count in shown)]
    body = []
    for name, values in found.items():
        row = [f"`{name}`"]
        for place in map(labels.index, shown):
            own, base = values[:, place], found["random"][:, place]
            row.append(
                percent(own) + ("" if name == "random" else f" ({percent(own - base, '+')})")
            )
        body.append(row)
    return markdown(head, body)


def lines(pool: str, found: dict[str, Tensor], labels: Sequence[int]) -> list[list[object]]:
    """The rows of the CSV."""
    rows: list[list[object]] = []
    for name, values in found.items():
        for place, count in enumerate(labels):
            own = values[:, place]
            points = own - found["random"][:, place]
            numbers = [*interval(own), *interval(points)]
            rows.append([pool, name, count, *(f"{number:.5f}" for number in numbers)])
    return rows


def draw(pools: dict[str, dict[str, Tensor]], labels: Sequence[int]) -> None:
    """Accuracies above, differences from random below, one column for each pool."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, len(pools), sharex=True, sharey="row", squeeze=False)
    colours = ("#e4572e", "#4c78a8", "#59a14f", "#b07aa1", "#edc949", "#555555")
    markers = "osD^vX"
    for column, (pool, found) in enumerate(pools.items()):
        for place, (name, values) in enumerate(found.items()):
            style = {"color": colours[place], "marker": markers[place], "ms": 5, "label": name}
            if name == "random":
                style |= {"ls": "--"}
            grid[0][column].plot(labels, 100 * values.mean(dim=0), **style)
            points = 100 * (values - found["random"])
            half = [interval(each)[1] for each in points.T]
            at = [count + 0.35 * (place - 2.5) for count in labels]  # intervals side by side
            grid[1][column].errorbar(at, points.mean(dim=0), half, capsize=2, lw=1.2, **style)
        grid[0][column].set_title(f"{pool} pool")
        grid[1][column].set_xlabel(f"labelled drawings, of {WAYS} classes")
    grid[0][0].set_ylabel("accuracy (%)")
    grid[1][0].set_ylabel("difference from random (points)")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def study(
    what: Callable[..., Iterator[float]], frozen: Frozen, names: Sequence[str], made: list[Task]
) -> dict[str, Tensor]:
    """Accuracies ``[tasks, rounds]`` by name."""
    found = {}
    for name in names:
        found[name] = torch.tensor(
            [list(what(frozen, task, name, i)) for i, task in enumerate(made)]
        )
        print(f"{name}: {percent(found[name][:, 1])} % after one round", flush=True)
    return found


def main() -> None:
    """Compute the features, run both studies, write."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=250)
    parser.add_argument("overrides", nargs="*", help="of the drawings, e.g. data.source=npm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    few_shot = FewShot(SHIPPED)
    features = features_of_classes(few_shot, given.overrides)
    print(f"features of {len(features)} classes", flush=True)
    frozen, pools = Frozen(few_shot), {}
    for pool, sizes in POOLS.items():
        print(f"{pool} pool", flush=True)
        made = [make(features, number, sizes) for number in range(given.tasks)]
        pools[pool] = study(by_strategy, frozen, list(STRATEGIES), made)
    made = [make(features, number, POOLS["balanced"]) for number in range(given.tasks)]
    classes = study(by_class, frozen, BY_CLASS, made)
    command = ["python benchmarks/labels.py", *given.overrides]
    write(" ".join(command), given.tasks, pools, classes)


if __name__ == "__main__":
    with one_line_errors():
        main()
