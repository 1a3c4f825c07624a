"""Figures 2 and 3 of the MAML paper: sinusoids by MAML, by pre-training, and by an oracle.

python benchmarks/sinusoids.py

Three networks of the paper's size, each trained on ten points of 25 sinusoids a step: MAML with one
inner step of 0.01; one network for all tasks (Reptile with one step, which is plain training on the
points of all tasks), then fine-tuned; and the same with amplitude and phase as further inputs, the
paper's oracle. All are tested on the same meta-test tasks after 0 to 10 gradient steps with 5, 10
and 20 points. As in the paper, MAML keeps its rate, and fine-tuning has the best of several, here
on meta-validation tasks after ten steps. The paper trains for 70,000 steps, and this for fewer.

Runs are in logs/sinusoids; finished ones are kept. The results go to
benchmarks/results/sinusoids.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import platform

import torch
from by_step import best_rate, curve, measured, outer_steps  # beside this file
from matplotlib.figure import Figure
from studies import RESULTS, ROOT, interval, markdown, minutes, save, shown, trained

import metadraw
from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "sinusoids", RESULTS / "sinusoids"
SHOTS, STEPS = (5, 10, 20), 10
TASKS, QUERIES = 600, 100  # for tests
RATES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1)
COMMON = [
    *(
        "experiment=sinusoids",
        "data.shots=10",
        "algorithm.inner_lr=0.01",
        "algorithm.inner_steps=1",
    ),
    *("data.train_batches=1000", "trainer.max_epochs=15", "data.test_batches=1"),
]
#: By name: the settings of its run.
NETWORKS = {
    "MAML": ["algorithm=maml"],
    "pre-trained": ["algorithm=reptile"],
    "oracle": ["algorithm=reptile", "data.oracle=true"],
}
COLOURS = {"MAML": "#e4572e", "pre-trained": "#4c78a8", "oracle": "black"}
MARKERS = {"MAML": "o", "pre-trained": "s", "oracle": ""}


def tested(shots: int) -> list[str]:
    """The settings of a test."""
    return [f"data.shots={shots}", f"data.queries={QUERIES}", "data.tasks_per_batch=100"]


def study(overrides: list[str]) -> tuple[dict[tuple[str, int], torch.Tensor], dict[int, float]]:
    """Errors ``[tasks, steps + 1]`` by network and shots, and the rates of fine-tuning by shots."""
    errors, rates = {}, {}
    for name, settings in NETWORKS.items():
        path = trained(LOGS / name, [*settings, *COMMON, *overrides])
        if name == "oracle":
            path = path.with_name("last.ckpt")
        for shots in SHOTS:
            own = tested(shots)
            if name == "pre-trained":
                rates[shots] = best_rate(path, own, RATES, TASKS, STEPS)
                own.append(f"algorithm.inner_lr={rates[shots]}")
            errors[name, shots] = measured(
                path, own, "test", TASKS, 0 if name == "oracle" else STEPS
            )
            print(name, shots, "shots:", shown(errors[name, shots][:, -1], 3), flush=True)
    return errors, rates


def write(
    errors: dict[tuple[str, int], torch.Tensor], rates: dict[int, float], command: str
) -> None:
    """Table, findings and CSV."""
    rows = []
    for shots in SHOTS:
        for name in NETWORKS:
            found = errors[name, shots]
            cells = [shown(found[:, s], 3) for s in (0, 1, 5, 10) if s < found.shape[1]]
            rows.append([f"{shots}", name, *cells, *[""] * (4 - len(cells))])
    spent = ", ".join(f"{name} {minutes(LOGS / name):.1f}" for name in NETWORKS)
    steps = " and ".join(dict.fromkeys(f"{outer_steps(LOGS / name):,}" for name in NETWORKS))
    findings = []
    for shots in SHOTS:
        ours, theirs = errors["MAML", shots], errors["pre-trained", shots]
        ahead = theirs[:, STEPS] - ours[:, STEPS]
        findings.append(
            f"- With {shots} points, one step takes MAML from {ours[:, 0].mean():.2f} to "
            f"{ours[:, 1].mean():.2f}, and ten to {ours[:, STEPS].mean():.2f}; the pre-trained "
            f"network gets from {theirs[:, 0].mean():.2f} to {theirs[:, STEPS].mean():.2f} in ten "
            f"steps of {rates[shots]}, a difference of {shown(ahead, 2)} on the same tasks."
        )
    text = [
        "# Sinusoids",
        "",
        f"`{command}`, one thread, {platform.machine()} CPU, torch {torch.__version__}: mean "
        f"squared error after 0 to 10 gradient steps, ± half its 95 % interval over {TASKS} "
        f"meta-test tasks, each tested at {QUERIES} points. {steps} outer steps on 25 tasks "
        f"each; the paper takes 70,000. Minutes of training: {spent}. One seed.",
        "",
        *markdown(["points", "network", "before", "1 step", "5 steps", "10 steps"], rows, left=1),
        "",
        *findings,
        "",
        "![Errors by gradient steps, and one sinusoid fitted by MAML and by the pre-trained "
        "network](sinusoids.png)",
    ]
    save(
        OUT,
        text,
        ["network", "shots", "step", "error", "half_interval", "tasks"],
        [
            [name, shots, step, *(f"{n:.6g}" for n in interval(each)), len(each)]
            for (name, shots), found in errors.items()
            for step, each in enumerate(found.T)
        ],
    )


def draw(errors: dict[tuple[str, int], torch.Tensor], rates: dict[int, float]) -> None:
    """Above: errors by steps (figure 3). Below: meta-test task 0 with five points (figure 2)."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subfigures(2, 1)
    panels = above.subplots(1, len(SHOTS), sharey=True)
    for axes, shots in zip(panels, SHOTS, strict=True):
        for name in NETWORKS:
            found = errors[name, shots]
            curve(axes, found, STEPS, name, COLOURS[name], MARKERS[name])
        axes.set(title=f"{shots} points", xlabel="gradient steps", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean squared error")
    panels[-1].legend(frameon=False)
    fits = below.subplots(1, 2, sharey=True)
    for axes, name in zip(fits, ("MAML", "pre-trained"), strict=True):
        rate = [f"algorithm.inner_lr={rates[5]}"] if name == "pre-trained" else []
        path = LOGS / name / "checkpoints" / "best.ckpt"
        data, learner = metadraw.load(path, *tested(5), *rate)
        task = data.episodes("test")(torch.arange(1)).task(0)
        x = torch.linspace(-5, 5, 200)[:, None]
        amplitude, phase = task.about["amplitude"], task.about["phase"]
        axes.plot(x, amplitude * (x - phase).sin(), color="black", lw=1, label="truth")
        states = learner.adapt_path(task, STEPS)
        for step, style in ((0, ":"), (1, "--"), (STEPS, "-")):
            label = "before" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            fit = learner.predict(states[step], x)
            axes.plot(x, fit, style, color=COLOURS[name], label=label)
        axes.plot(task.support.x, task.support.y, "^", color="black", label="5 points")
        axes.set(title=f"{name}: one sinusoid", xlabel="x")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 5}
        axes.legend(frameon=False, fontsize=8, columnspacing=1, **place)
    fits[0].set_ylabel("y")
    figure.savefig(OUT.with_suffix(".png"), dpi=110)


def main() -> None:
    """Finish the runs, test them, write table and figure."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. trainer.max_epochs=70")
    overrides = parser.parse_args().overrides
    torch.set_num_threads(1)
    errors, rates = study(overrides)
    write(errors, rates, " ".join(["python benchmarks/sinusoids.py", *overrides]))
    draw(errors, rates)


if __name__ == "__main__":
    with one_line_errors():
        main()
