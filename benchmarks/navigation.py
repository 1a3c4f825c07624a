"""Figure 4 (2D navigation) of the MAML paper: MAML, pre-training on all goals, and an oracle.

python benchmarks/navigation.py

Three policies of the same size, each trained on 20 goals and 20 rollouts of each a step: MAML with
one inner step; one policy for all goals (Reptile with one step, which is plain training on the
rollouts of all tasks), then fine-tuned; and the same with the goal as a further input, an oracle.
All are tested on the same meta-test goals after 0 to 3 gradient steps on 40 rollouts. MAML keeps
its rate, and fine-tuning has the best of several on meta-validation goals after three steps. Both
have the checkpoint that was best after one step in meta-validation; the pre-trained policy is also
tested as it is in the end.

Runs are in logs/navigation; finished ones are kept. The results go to
benchmarks/results/navigation.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import platform

import torch
from by_step import best_rate, curve, measured, outer_steps, steps_of  # beside this file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from studies import RESULTS, ROOT, interval, markdown, minutes, save, shown, trained
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "navigation", RESULTS / "navigation"
STEPS, TASKS, ROLLOUTS = 3, 200, 40  # of the test
RATES = (0.01, 0.03, 0.1, 0.3)
#: By name: its run, the settings of that, and which checkpoint.
POLICIES = {
    "MAML": ("MAML", ["algorithm=maml"], "best"),
    "pre-trained": ("pre-trained", ["algorithm=reptile"], "best"),
    "pre-trained to the end": ("pre-trained", ["algorithm=reptile"], "last"),
    "oracle": ("oracle", ["algorithm=reptile", "data.oracle=true"], "last"),
}
COLOURS = dict(zip(POLICIES, ("#e4572e", "#4c78a8", "#8fb3d9", "black"), strict=True))
MARKERS = dict(zip(POLICIES, ("o", "s", "D", ""), strict=True))
GOALS = ("#4c78a8", "#e4572e", "#59a14f", "#b07aa1")  # those whose paths are drawn


def tested() -> list[str]:
    """The settings of a test."""
    return [f"data.shots={ROLLOUTS}", f"data.queries={ROLLOUTS}"]


def study(overrides: list[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns ``[tasks, steps + 1]`` by policy, and the rates of those that are fine-tuned."""
    returns, rates = {}, {}
    for name, (run, settings, which) in POLICIES.items():
        all_settings = ["experiment=navigation", *settings, *overrides]
        path, own = trained(LOGS / run, all_settings).with_name(f"{which}.ckpt"), tested()
        if run == "pre-trained":
            rates[name] = best_rate(path, own, RATES, TASKS // 2, STEPS)
            own.append(f"algorithm.inner_lr={rates[name]}")
        returns[name] = measured(path, own, "test", TASKS, 0 if name == "oracle" else STEPS)
        print(name, [shown(each, 2) for each in returns[name].T], flush=True)
    return returns, rates


def write(returns: dict[str, Tensor], rates: dict[str, float], command: str) -> None:
    """Table, findings and CSV."""
    rows = []
    for name, found in returns.items():
        cells = [shown(each, 2) for each in found.T]
        rows.append([name, *cells, *[""] * (STEPS + 1 - len(cells))])
    runs = dict.fromkeys(run for run, _, _ in POLICIES.values())
    spent = ", ".join(f"{run} {minutes(LOGS / run):.1f}" for run in runs)
    steps = " and ".join(dict.fromkeys(f"{outer_steps(LOGS / run):,}" for run in runs))
    ours, theirs, to_the_end, oracle = (returns[name] for name in POLICIES)
    gap = (ours[:, 1].mean() - ours[:, 0].mean()) / (oracle[:, 0].mean() - ours[:, 0].mean())
    last = ours[:, STEPS]
    head = ["policy", "before", "1 step", *(f"{s} steps" for s in range(2, STEPS + 1))]
    chosen = [steps_of(LOGS / run / "checkpoints" / "best.ckpt") for run in ("MAML", "pre-trained")]
    text = [
        "# Navigation",
        "",
        f"`{command}`, one thread, {platform.machine()} CPU, torch {torch.__version__}: mean "
        f"return after 0 to {STEPS} gradient steps, ± half its 95 % interval over {TASKS} "
        f"meta-test goals, with {ROLLOUTS} rollouts to adapt on and {ROLLOUTS} others to measure. "
        f"{steps} outer steps of Adam; by meta-validation after one step, MAML was best after "
        f"{chosen[0]} and pre-training after {chosen[1]}. Minutes of training: {spent}. One seed.",
        "",
        *markdown(head, rows, left=1),
        "",
        f"One step takes MAML from {ours[:, 0].mean():.1f} to {ours[:, 1].mean():.1f}, which is "
        f"{100 * gap:.0f} % of the way to the oracle. That is "
        f"{shown(ours[:, 1] - theirs[:, 1], 1)} better than a step of {rates['pre-trained']} from "
        f"the best pre-trained policy, and {shown(ours[:, 1] - to_the_end[:, STEPS], 1)} better "
        f"than {STEPS} steps of {rates['pre-trained to the end']} from the one that was "
        f"pre-trained to the end, on the same goals. MAML was trained for one step: after {STEPS} "
        f"its mean is {last.mean():.1f}, its median {last.median():.1f}, and the worst goal's "
        f"return {last.min():.1f}.",
        "",
        "![Returns by gradient steps, and paths to four goals](navigation.png)",
    ]
    save(
        OUT,
        text,
        ["policy", "step", "return", "half_interval", "goals"],
        [
            [name, step, *(f"{n:.6g}" for n in interval(each)), len(each)]
            for name, found in returns.items()
            for step, each in enumerate(found.T)
        ],
    )


def draw(returns: dict[str, Tensor], rates: dict[str, float]) -> None:
    """Returns by steps, and paths to the first meta-test goals."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    axes, *panels = figure.subplots(1, 4, width_ratios=(1.25, 1, 1, 1))
    for name, found in returns.items():
        curve(axes, found, STEPS, name, COLOURS[name], MARKERS[name])
    lowest = min(found.mean(dim=0).min().item() for found in returns.values())
    axes.set(xlabel="gradient steps", ylabel="mean return", xticks=range(STEPS + 1))
    axes.set_ylim(1.15 * lowest, 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    names = axes.get_legend_handles_labels()
    figure.legend(*names, loc="outside lower left", ncols=len(returns), frameon=False, fontsize=9)
    for panel, (name, step, title) in zip(
        panels,
        (
            ("MAML", 0, "MAML before adaptation"),
            ("MAML", 1, "MAML after 1 step"),
            ("pre-trained", 1, "pre-trained after 1 step"),
        ),
        strict=True,
    ):
        own = [*tested(), *([f"algorithm.inner_lr={rates[name]}"] if name in rates else [])]
        draw_goals(panel, name, own, step)
        panel.set_title(title, fontsize=10)
    figure.savefig(OUT.with_suffix(".png"), dpi=110)


def draw_goals(axes: Axes, name: str, settings: list[str], step: int) -> None:
    """Ten paths to each of the first meta-test goals."""
    data, learner = metadraw.load(LOGS / name / "checkpoints" / "best.ckpt", *settings)
    batch = data.episodes("test")(torch.arange(len(GOALS)))
    for position, colour in enumerate(GOALS):
        task = batch.task(position)
        rollouts = learner.answer(learner.adapt(task, step), task)
        for rollout in rollouts[:10]:
            steps = rollout[rollout[:, 2] > 0]
            axes.plot(steps[:, 3], steps[:, 4], color=colour, alpha=0.5, lw=0.7)
        look = {"color": colour, "markeredgecolor": "white", "zorder": 3}
        axes.plot(*task.about["goal"].tolist(), "*", markersize=15, **look)
    axes.plot(0, 0, "o", color="black", markersize=5, zorder=3)
    axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal")
    axes.grid(alpha=0.3)


def main() -> None:
    """Finish the runs, test them, write table and figure."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. trainer.max_epochs=40")
    overrides = parser.parse_args().overrides
    torch.set_num_threads(1)
    returns, rates = study(overrides)
    write(returns, rates, " ".join(["python benchmarks/navigation.py", *overrides]))
    draw(returns, rates)


if __name__ == "__main__":
    with one_line_errors():
        main()
