"""The figures of README.md and docs/, each from a committed file: rewrites the marked blocks.

python benchmarks/readme.py

A block begins with ``<!-- made by benchmarks/readme.py: NAME -->`` and ends with ``<!-- end -->``.
The function of that name writes it; each is used once, on any page. A name without a function is
that of a file, whose text after its title is the block: benchmarks/results/NAME.md. These commands
make the files:

    python benchmarks/algorithms.py --jobs 2 data.source=npm
    python benchmarks/label_permutations.py CHECKPOINTS  # of maml, anil, proto_maml, unicorn_maml
    python benchmarks/episodes.py
    python benchmarks/speed.py settings data.source=npm     # and algorithms, memory
    python benchmarks/chunks.py
    python benchmarks/gpu.py data.source=npm                # on a machine with a GPU
    python benchmarks/training.py data.source=npm
    python benchmarks/page.py data.source=npm
    python benchmarks/sinusoids.py
    python benchmarks/completion.py data.drawings.source=npm
    python benchmarks/navigation.py
    python benchmarks/labels.py data.source=npm
    python benchmarks/fairness.py
    python benchmarks/ways.py data.source=npm
    python benchmarks/unlabelled.py data.source=npm
    python benchmarks/blackbox.py data.source=npm           # also makes gradients
    python benchmarks/architecture.py --jobs 2 data.source=npm
    python benchmarks/omniglot.py --omniglot FOLDER data.source=npm
    python benchmarks/domains.py data.domains.doodles.source=npm
    python benchmarks/shipped.py RUN/checkpoints/best.ckpt
    python benchmarks/rendering.py
    python benchmarks/published_networks.py REPORT          # a clone of the report's repository
    python benchmarks/best_conv4.py RUN/checkpoints/best.ckpt
    python benchmarks/frontier.py --jobs 2 data.source=npm
    python train.py experiment=quickstart data.source=npm hydra.run.dir=logs/quickstart/run
    python report.py logs/quickstart --to results/quickstart
    python report.py SWEEP --rows experiment data.ways --column data.shots --to results/report
    python report.py logs/best --to results/best

docs/report.md names the SWEEP.
"""

from __future__ import annotations

import csv
import posixpath
import re
import textwrap
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal

from algorithms import ABLATION, ALGORITHMS  # beside this file
from reproduction import Runs
from studies import ROOT, listed, markdown, task

from metadraw.command.cli import one_line_errors

_BLOCK = re.compile(
    r"(<!-- made by benchmarks/readme\.py: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL
)
#: The target of a link that is not a URL.
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)]+(?=\))")


# ---- reading ---------------------------------------------------------------------------------


def tables(file: str) -> list[list[list[str]]]:
    """The cells of each table of a Markdown file, without head and rule."""
    text = (ROOT / file).read_text()
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|\n ").split(" | ")] for row in table.splitlines()][
            2:
        ]
        for table in found
    ]


def table(file: str) -> dict[str, list[str]]:
    """The first table of a Markdown file, by its first column."""
    return {row[0]: row[1:] for row in tables(file)[0]}


def by_column(file: str) -> dict[str, dict[str, str]]:
    """The first table of a Markdown file, by its first column and the names of the others.

    If two columns share a name, the first one.
    """
    head = re.search(r"^\| (.*) \|$", (ROOT / file).read_text(), re.MULTILINE)
    assert head, f"{file} has no table"
    names = head[1].split(" | ")[1:]
    return {
        first: dict(reversed(list(zip(names, cells, strict=True))))
        for first, cells in table(file).items()
    }


def csv_rows(file: str) -> list[dict[str, str]]:
    """The rows of a CSV file, as mappings."""
    with (ROOT / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def said(pattern: str, file: str) -> tuple[str, ...]:
    """The groups of a pattern that a file must contain."""
    match = re.search(pattern, (ROOT / file).read_text())
    assert match, f"{file} does not say {pattern}"
    return match.groups()


def value(cell: str) -> float:
    """``**+12.68 ± 1.59**`` -> 12.68."""
    return float(cell.strip("*").split(" ±")[0])


def short(cell: str) -> str:
    """``**+12.68 ± 1.59**`` -> ``+12.7 ± 1.6``; nothing for the reference."""
    if cell == "reference":
        return ""
    mean, half = (
        Decimal(part).quantize(Decimal("0.1"), ROUND_HALF_UP)
        for part in cell.strip("*").split(" ± ")
    )
    return f"{mean:{'+' if cell.strip('*')[0] in '+-' else '-'}} ± {half}"


def percent(share: str | float) -> str:
    """``0.5321`` -> ``53.2``."""
    return f"{100 * float(share):.1f}"


# ---- blocks ----------------------------------------------------------------------------------

ONE, FIVE, CHANGES = (
    f"benchmarks/results/{study}.md"
    for study in ("5-way-1-shot", "5-way-5-shot", "maml_pp-ablation")
)


def study(file: str, labels: Sequence[str]) -> dict[str, list[str]]:
    """Accuracy and difference of a study of benchmarks/algorithms.py, by its runs' labels."""
    return dict(zip(labels, table(file).values(), strict=True))


def named(label: str) -> str:
    """A label of benchmarks/algorithms.py with the algorithm's name, before any comma, as code."""
    name, comma, rest = label.partition(",")
    return f"`{name}`{comma}{rest}"


def tasks_of(file: str) -> tuple[str, str]:
    """How many meta-training and meta-test tasks a study of benchmarks/algorithms.py had."""
    patterns = (r"same ([\d,]+) tasks", r"([\d,]+) meta-test tasks")
    trained, tested = (said(pattern, file)[0] for pattern in patterns)
    return trained, tested


#: How each algorithm learns a task, in a few words.
METHODS = {
    "maml, the report's recipe": "MAML with the report's learning rates (0.001 outer, 0.01 inner)",
    "maml": "MAML: a learned initialisation, then gradient steps (Finn et al. 2017)",
    "fomaml": "MAML without second derivatives",
    "reptile": "Reptile: moves towards the adapted weights (Nichol et al. 2018)",
    "anil": "ANIL: adapts only the head (Raghu et al. 2020)",
    "boil": "BOIL: adapts all but the head (Oh et al. 2021)",
    "lslr": "MAML with a learned rate for each layer and step",
    "maml_pp": "MAML++ (Antoniou et al. 2019)",
    "meta_sgd": "Meta-SGD: a learned rate for each parameter (Li et al. 2017)",
    "alpha_maml": "Alpha MAML: hypergradients tune both rates (Behl et al. 2019)",
    "proto_maml": "Proto-MAML: the head starts at the prototypes (Triantafillou et al. 2020)",
    "unicorn_maml": "UNICORN-MAML: one learned vector starts the head (Ye and Chao 2022)",
    "protonet": "Prototypical network: nearest class mean (Snell et al. 2017)",
    "matching_net": "Matching network: attention over the support set (Vinyals et al. 2016)",
    "r2d2": "R2-D2: ridge regression in closed form (Bertinetto et al. 2019)",
    "scratch": "an untrained network, fitted to the support set",
    "finetune": "pre-trained classifier with a new head (Chen et al. 2019)",
    "finetune, whole network": "the same, fine-tuning all layers",
}


def accuracy() -> list[str]:
    """One accuracy per algorithm, for README."""
    runs = study(ONE, list(ALGORITHMS))
    trained, tested = tasks_of(ONE)
    rows = [[named(label), METHODS[label], short(runs[label][0])] for label in ALGORITHMS]
    return [
        *markdown(["algorithm", "how it learns a task", "5-way 1-shot, %"], rows),
        "",
        f"Meta-test accuracy ± half its 95 % interval over {tested} tasks, after only {trained} "
        f"meta-training tasks; one seed ([5-way-1-shot.md]({ONE})).",
    ]


def algorithms() -> list[str]:
    """All algorithms after the same number of tasks, for one and for five shots."""
    one, five = (study(file, list(ALGORITHMS)) for file in (ONE, FIVE))
    rows = [
        [named(label), *(short(cell) for runs in (one, five) for cell in runs[label][:2])]
        for label in ALGORITHMS
    ]
    trained, tested = zip(*map(tasks_of, (ONE, FIVE)), strict=True)
    return [
        *markdown(
            ["algorithm", *["5-way 1-shot", "difference", "5-way 5-shot", "difference"]], rows
        ),
        "",
        f"{trained[0]} meta-training tasks for 1 shot and {trained[1]} for 5 shots; "
        f"{tested[0]} and {tested[1]} meta-test tasks; one seed.",
    ]


def findings() -> list[str]:
    """What the table of algorithms says."""
    one, five = (study(file, list(ALGORITHMS)) for file in (ONE, FIVE))
    best = [max(runs, key=lambda label: value(runs[label][0])) for runs in (one, five)]
    recipe, scratch = short(one["maml, the report's recipe"][0]), short(one["scratch"][0])
    permuted = table("benchmarks/results/label-permutations.md")
    spread = {name: row[2] for name, row in permuted.items()}
    worst, top = (float(figure) for figure in permuted["MAML"][1].split(", "))
    return [
        f"- With one shot and so few tasks, the report's recipe reaches {recipe} %. An untrained "
        f"network that takes 50 steps of 0.1 (`scratch`) reaches {scratch} %. Five steps of 0.01 "
        "change little.",
        f"- The best recipe for 1 shot is `{best[0]}`, and for 5 shots `{best[1]}`.",
        "- The accuracy of plain MAML depends on which class gets which label: over 12 "
        f"permutations of a task's labels its standard deviation is {spread['MAML']} points, and "
        f"the best permutation is {top - worst:.1f} points above the worst. For `unicorn_maml` and "
        f"`proto_maml` the standard deviations are {spread['UnicornMAML']} and "
        f"{spread['ProtoMAML']} "
        "([label-permutations.md](benchmarks/results/label-permutations.md)).",
    ]


def ablation() -> list[str]:
    """MAML++ change by change."""
    runs = study(CHANGES, list(ABLATION))
    clear = [label for label, row in runs.items() if row[1].startswith("**+")]
    lines = markdown(
        ["recipe", "5-way 1-shot", "difference"],
        [[label, short(row[0]), short(row[1])] for label, row in runs.items()],
    )
    verdict = listed(clear) or "none"
    return [*lines, "", f"Changes whose interval lies above zero: {verdict}."]


def reproduced() -> list[str]:
    """The runs with the report's settings, with its figures."""
    return Runs(*(csv_rows(f"results/report/{name}.csv") for name in ("runs", "curves"))).lines()


_CONV4 = "benchmarks/results/best_conv4.md"


def best() -> list[str]:
    """The checkpoint that comes with metadraw, and the best recipe for the report's network."""
    rows, small = (table(f) for f in ("checkpoints/results.md", _CONV4))
    shown = [[name, short(row[0]), short(small[name][0]), row[1]] for name, row in rows.items()]

    def gain(more: int, less: int) -> str:
        points = sorted(
            value(rows[task(ways, more)][0]) - value(rows[task(ways, less)][0]) for ways in (5, 10)
        )
        return f"{points[0]:.0f} to {points[-1]:.0f} points"

    ahead = sorted(value(row[0]) - value(row[1]) for row in rows.values())
    alone = sorted(value(small[name][0]) - value(row[1]) for name, row in rows.items())
    gained = sorted(value(row[-1]) for row in small.values())
    return [
        *markdown(["", "`best`", "`best_conv4`", "published, a query set at once"], shown),
        "",
        "Measured by `python benchmarks/shipped.py` ([results.md](checkpoints/results.md)) and "
        f"`python benchmarks/best_conv4.py` ([best_conv4.md]({_CONV4})). The larger network is "
        f"{ahead[0]:.1f} to {ahead[-1]:.1f} points ahead of the published networks. Five shots "
        f"instead of one gain {gain(5, 1)}, and ten instead of five another {gain(10, 5)}. "
        f"The small network is {alone[0]:.1f} to {alone[-1]:.1f} points ahead of the published "
        "ones, which are as small, and with a query set at once "
        f"{gained[0]:.1f} to {gained[-1]:.1f} points ahead of the report's recipe on the same "
        "tasks and drawings.",
    ]


def frontier() -> list[str]:
    """The study of pre-training and meta-learning, without its long tables."""
    lines = committed("frontier")
    return [
        *lines[: lines.index("## How")],
        "Measured by `python benchmarks/frontier.py --jobs 2 data.source=npm`, one seed unless "
        "said otherwise. [frontier.md](benchmarks/results/frontier.md) has all six settings, also "
        "with a query set at once, and the differences paired by task.",
    ]


def pretrained() -> list[str]:
    """What the checkpoint that comes with metadraw reaches, in one sentence."""
    rows = table("checkpoints/results.md")
    one, five = (short(rows[task(5, shots)][0]) for shots in (1, 5))
    return [
        f"Pre-training goes further: an ordinary classifier with a deeper network reaches {one} % "
        f"in 5-way 1-shot and {five} % in 5-way 5-shot, each picture classified by itself "
        "(`experiment=best`, [the checkpoint that comes with metadraw](checkpoints/README.md)).",
    ]


def epoch_line() -> list[str]:
    """The line of `metadraw.training.console.EpochLines` for an epoch of ``make train``."""
    rows = csv_rows("results/quickstart/curves.csv")
    third = rows[2]
    parts = [
        f"epoch 3/{len(rows)}",
        f"train {percent(third['train/acc'])}",
        f"val {percent(third['val/acc'])} ± {percent(third['val/acc_ci95'])}",
        "best" if float(third["val/acc"]) > max(float(row["val/acc"]) for row in rows[:2]) else "",
        f"{float(third['seconds']):.0f} s" if third.get("seconds") else "",
    ]
    return ["```text", "  ".join(part for part in parts if part), "```"]


def measured() -> list[str]:
    """Runs of a few minutes, and how long it takes to draw tasks."""
    (quick,) = csv_rows("results/quickstart/runs.csv")
    batch = tables("benchmarks/results/episodes.md")[0][0][-1]
    return markdown(
        ["command", "what", "measured"],
        [
            [
                "`make train`",
                f"meta-test accuracy, {int(quick['test/tasks']):,} tasks "
                "([results/quickstart](results/quickstart/report.md))",
                f"{percent(quick['test/acc'])} ± {percent(quick['test/acc_ci95'])} %",
            ],
            [
                "`python benchmarks/episodes.py`",
                "time to sample a batch of 25 5-way 1-shot tasks "
                "([episodes.md](benchmarks/results/episodes.md))",
                f"{float(batch):.1f} ms",
            ],
        ],
    )


PEERS = {
    "metadraw": "metadraw",
    "vmap": "`vmap` of PyTorch's layers",
    "loop": "per-task loop",
    "higher": "`higher`",
    "torchopt": "`torchopt`",
    "jax_vmap": "JAX, `vmap`",
    "jax_scan": "JAX, `scan`",
}


def speed_5_way() -> list[str]:
    """The 5-way rows of `speed`, for README."""
    head, rule, *rows = speed()
    return [head, rule, *(row for row in rows if row.startswith("| 5-way"))]


def speed() -> list[str]:
    """Steps by metadraw and the measured peers, at the report's task shapes."""
    rows = by_column("benchmarks/results/speed-settings.md")
    ways = [way for way in PEERS if f"{way}, ms" in next(iter(rows.values()))]
    return markdown(
        ["task", *(PEERS[way] for way in ways), "loop / metadraw"],
        [
            [
                task,
                *(f"{row[f'{way}, ms']}, {row[f'{way}, GB']}" for way in ways),
                row["loop / metadraw"],
            ]
            for task, row in rows.items()
        ],
    )


def chunks() -> list[str]:
    """Other sizes of images and networks."""
    rows = [
        # Of the file's columns: the default and the loop, each with its memory.
        [images, f"{channels} channels, {tasks}", f"{ms}, {gb}", f"{loop_ms}, {loop_gb}", ratio]
        for images, channels, tasks, _, ms, gb, _, _, _, loop_ms, loop_gb, ratio in tables(
            "benchmarks/results/chunks.md"
        )[0]
    ]
    head = ["images", "network, 5-way tasks", "metadraw", "per-task loop", "loop / metadraw"]
    return markdown(head, rows)


def first_order() -> list[str]:
    """FOMAML and evaluation."""
    file = "benchmarks/results/speed-algorithms.md"
    rows = table(file)
    loop = r"`{}` in a per-task loop: meta-train ([\d,]+) ms, meta-test ([\d,]+) ms"
    return [
        f"In 5-way 1-shot, a step of `fomaml` takes {rows['`fomaml`'][0]} ms, against "
        f"{said(loop.format('fomaml'), file)[0]} ms in a per-task loop. Evaluating `maml` on 25 "
        f"tasks takes {rows['`maml`'][3]} ms, against {said(loop.format('maml'), file)[1]} ms. "
        "[speed-algorithms.md](benchmarks/results/speed-algorithms.md) has every algorithm, "
        "measured by `python benchmarks/speed.py algorithms data.source=npm`.",
    ]


def gpu() -> list[str]:
    """Steps by metadraw and its peers on a GPU, and runs in each precision."""
    rows = [row[:7] for row in tables("benchmarks/results/gpu-steps.md")[0]]
    head = ["images", "network, 5-way tasks", "metadraw", "`learner.cuda_graph=true`"]
    head += ["per-task loop", "JAX, `vmap`: ms, s to compile", "JAX, `scan`"]
    (device,) = said(r"`, (NVIDIA [^,]+),", "benchmarks/results/gpu-steps.md")
    runs = [
        f"{accuracy} % after {seconds} s in {name}"
        for name, (seconds, accuracy) in table("benchmarks/results/gpu-precision.md").items()
    ]
    return [
        *markdown(head, rows),
        "",
        f"On one {device}, in float32 ([gpu-steps.md](benchmarks/results/gpu-steps.md)). On it, "
        f"`experiment=quickstart`, timed from start to finish, reaches {'; '.join(runs)} "
        "([gpu-precision.md](benchmarks/results/gpu-precision.md)).",
    ]


def costs() -> list[str]:
    """Memory, Lightning's trainer, processes, and the page."""
    memory = table("benchmarks/results/speed-memory.md")
    within, bare = said(
        r"takes ([\d,]+) ms by Lightning's trainer.* and ([\d,]+) ms without",
        "benchmarks/results/training.md",
    )
    steps = [row[-1] for row in tables("benchmarks/results/training.md")[0]]
    stroke, adapting = table("benchmarks/results/page.md").values()

    def at(kind: int) -> str:
        return "; ".join(f"{memory[n][kind]} ms, {memory[n][kind + 1]} GB" for n in ("5", "50"))

    return markdown(
        ["command", "what", "measured"],
        [
            [
                "`python benchmarks/speed.py memory data.source=npm`",
                "a step with 5 and with 50 inner steps, all kept for the backward pass "
                "([speed-memory.md](benchmarks/results/speed-memory.md))",
                at(0),
            ],
            ["", "the same with `learner.recompute_steps=true`", at(2)],
            [
                "`python benchmarks/training.py data.source=npm`",
                "a step with and without Lightning's trainer, alternating "
                "([training.md](benchmarks/results/training.md))",
                f"{within}, {bare} ms",
            ],
            [
                "",
                "a step of `train.py` on one core, on two, in two processes",
                f"{', '.join(steps)} ms",
            ],
            [
                "`python benchmarks/page.py data.source=npm`",
                "from a stroke on the page of `demo.py` to new probabilities, in headless "
                "Chromium: median, maximum ([page.md](benchmarks/results/page.md))",
                f"{stroke[1]}, {stroke[3]} ms",
            ],
            ["", "adaptation there to 5 classes with 3 examples each", f"{adapting[1]} ms"],
        ],
    )


_MAKERS: Sequence[Callable[[], list[str]]] = (
    accuracy,
    pretrained,
    algorithms,
    findings,
    ablation,
    reproduced,
    best,
    frontier,
    epoch_line,
    measured,
    speed_5_way,
    speed,
    chunks,
    first_order,
    gpu,
    costs,
)
BLOCKS = {maker.__name__: maker for maker in _MAKERS}
_RESULTS = "benchmarks/results"


def committed(name: str) -> list[str]:
    """The text of a file of results after its title."""
    title, *lines = (ROOT / _RESULTS / f"{name}.md").read_text().splitlines()
    assert title.startswith("# "), f"{_RESULTS}/{name}.md has no title"
    text = "\n".join(lines).strip("\n")
    return _LINK.sub(lambda link: posixpath.normpath(f"{_RESULTS}/{link[0]}"), text).split("\n")


# ---- writing ---------------------------------------------------------------------------------


def pages() -> list[str]:
    """README.md and the pages of docs/, which may have blocks; relative to the repository."""
    return ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


def block(name: str, page: str) -> str:
    """A block's text for a page, with sentences wrapped at 100 characters.

    The functions above link files from the top of the repository; here links become relative to
    the page.
    """
    start = posixpath.dirname(page) or "."

    def wrapped(line: str) -> str:
        indent = "  " if line.startswith("- ") else ""
        filled = textwrap.fill(
            line.replace(" %", "\N{NO-BREAK SPACE}%"),  # a number keeps its unit
            100,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return filled.replace("\N{NO-BREAK SPACE}", " ")

    made = BLOCKS[name]() if name in BLOCKS else committed(name)
    lines = [_LINK.sub(lambda link: posixpath.relpath(link[0], start), line) for line in made]
    return "\n".join(line if line.startswith("|") else wrapped(line) for line in lines) + "\n"


def renewed(text: str, page: str) -> str:
    """The text of a page with its blocks rebuilt."""
    return _BLOCK.sub(lambda found: found[1] + block(found[2], page), text)


def main() -> None:
    """Rewrite all pages."""
    for page in pages():
        path = ROOT / page
        path.write_text(renewed(path.read_text(), page))


if __name__ == "__main__":
    with one_line_errors():
        main()
