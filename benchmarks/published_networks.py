"""The report's own networks on the drawings of our runs, beside the networks of our runs.

git clone https://github.com/fastforwardlabs/learning-to-learn REPORT
python benchmarks/published_networks.py REPORT

The report's twelve networks were trained and tested on the data set's own bitmaps, our runs on the
drawings of the npm package. Here the networks are tested as in our runs, on the same tasks. Tests
are in logs/published_networks; the table goes to benchmarks/results/published_networks.{md,csv}.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from report_sweep import KEPT, settings  # beside this file
from studies import (
    RESULTS,
    ROOT,
    clear,
    interval,
    markdown,
    paired,
    percent,
    save,
    task,
    tested,
    values,
)
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.command.names import name_of
from metadraw.errors import InputError
from metadraw.files import WholeCheckpoints
from metadraw.results.published import EXPERIMENTS, published

REPOSITORY = "https://github.com/fastforwardlabs/learning-to-learn"
LOGS, OUT = ROOT / "logs" / "published_networks", RESULTS / "published_networks"


class Published(NamedTuple):
    """One of the report's networks.

    Attributes:
        samples: drawings per class in meta-training.
        ways: classes of a task.
        shots: drawings per class in the support set.
        state: its parameters.
    """

    samples: int
    ways: int
    shots: int
    state: dict[str, Tensor]

    @property
    def settings(self) -> list[str]:
        """The overrides of our run."""
        return settings(EXPERIMENTS[self.samples], self.ways, self.shots)


def read(folder: Path) -> list[Published]:
    """The networks in a clone of the report's repository, sorted.

    Raises:
        InputError: there is none.
    """
    found = []
    for file in folder.glob("models/*/config.json"):
        config = json.loads(file.read_text())
        state = torch.load(file.with_name("model.th"), map_location="cpu", weights_only=True)
        setting = (config[key] for key in ("num_training_samples", "num_ways", "num_shots"))
        found.append(Published(*setting, state))
    if not found:
        raise InputError(f"{folder}: has no models/*/config.json: must be a clone of the report's")
    return sorted(found, key=lambda each: (-each.samples, *each[1:3]))


def convert(network: Published, to: Path) -> Path:
    """Write a network as a checkpoint of metadraw, which has the same layers in the same order."""
    _, learner = metadraw.build(metadraw.compose(*network.settings))
    state = dict(zip(learner.state_dict(), network.state.values(), strict=True))
    learner.load_state_dict(state)  # which checks the shapes
    to.parent.mkdir(parents=True, exist_ok=True)
    WholeCheckpoints().save_checkpoint({"state_dict": state, "metadraw_config": learner.config}, to)
    return to


def main() -> None:
    """Test the networks, and write the table."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="a clone of the report's repository")
    torch.set_num_threads(1)
    rows, lines, ahead, both = [], [], 0, 0
    for network in read(parser.parse_args().report):
        folder = LOGS / name_of(network.settings)
        checkpoint = convert(network, folder / "published.ckpt")
        test = tested(folder / "test", checkpoint, [])
        theirs, ours = values(test), KEPT / "runs" / folder.name
        known = published(*network[:3])
        assert known is not None
        row = [task(network.ways, network.shots), str(network.samples)]
        row += [f"{100 * known['accuracy']:.1f}", percent(theirs)]
        if (ours / "results.json").is_file():
            differences = paired(ours, test)
            row += [percent(values(ours)), percent(differences, "+")]
            both += 1
            ahead += bool(clear(differences) and differences.mean() > 0)
        rows.append(row + [""] * (6 - len(row)))
        lines.append([*network[:3], *interval(theirs), len(theirs)])
    head = ["task", "drawings per class", "their bitmaps, published", "our drawings", "our network"]
    text = [
        "# The published networks on our drawings",
        "",
        *markdown([*head, "difference"], rows, left=1),
        "",
        "Meta-test accuracy in per cent, ± half its 95 % interval over tasks. The report's "
        "networks were trained and tested on the data set's own bitmaps; *our drawings* are those "
        "of the npm package, on which *our network* was trained and tested with the report's "
        "settings. "
        f"Differences are in points, paired by task: our network is ahead in {ahead} of {both}, "
        "beyond the interval.",
        "",
        "`python benchmarks/published_networks.py REPORT`, REPORT being a clone of [the report's "
        f"repository]({REPOSITORY}), {platform.machine()} CPU, torch {torch.__version__}.",
    ]
    columns = ["samples", "ways", "shots", "acc", "acc_ci95", "tasks"]
    save(OUT, text, columns, lines)


if __name__ == "__main__":
    with one_line_errors():
        main()
