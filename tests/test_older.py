"""Runs of older versions: their checkpoints and folders still work."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, one_of

import metadraw
from metadraw.command.older import modern
from metadraw.results.published import setting_of
from metadraw.training.train import train

#: Config of 0.1.0: the head is in the network, and there are neither objectives nor rooms.
RUNS = ROOT / "results" / "report"


def as_before(checkpoint, algorithm):
    """A checkpoint as written by the version without objectives."""
    config = checkpoint["metadraw_config"]
    config.pop("objective")
    config["model"]["ways"] = config["data"]["ways"]
    config["learner"]["_target_"] = "metadraw.learner.MetaLearner"
    del checkpoint["callbacks"]["EpochLines"]["seconds"]
    state = checkpoint["state_dict"]
    names = {name: name.replace("algorithm.head.", "algorithm.network.5.") for name in state}
    if algorithm == "anil":  # whose head was not in the network even then
        return checkpoint
    return checkpoint | {"state_dict": {names[name]: value for name, value in state.items()}}


@pytest.mark.parametrize("algorithm", one_of("maml_pp", "maml", "anil"))
def test_a_run_of_an_older_version_goes_on(algorithm, tiny_for, tmp_path):
    overrides = tiny_for(algorithm)
    whole = train(metadraw.compose(*overrides))
    folder = tmp_path / "run"
    shutil.rmtree(folder)
    train(metadraw.compose(*overrides, "trainer.max_epochs=1", "scheduler=none"))
    for path in folder.glob("checkpoints/*.ckpt"):
        torch.save(as_before(torch.load(path, weights_only=True), algorithm), path)
    last = folder / "checkpoints" / "last.ckpt"
    where = [f"ckpt_path={last}", "scheduler=none", f"paths.output_dir={tmp_path / 'second'}"]
    found = train(metadraw.compose(*[o for o in overrides if "output_dir" not in o], *where))
    resumed = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)
    seconds = [row["seconds"] for row in resumed["callbacks"]["Curves"]["rows"]]
    assert len(seconds) == 2
    total = found["train"]["seconds_with_validation"]
    assert total == pytest.approx(sum(seconds), abs=1e-3)  # rounded
    if algorithm != "maml_pp":  # which sets a schedule unless it is switched off
        assert found["test"]["loss"] == whole["test"]["loss"]


def test_committed_runs_of_an_older_version():
    """They have the report's settings, and their configs can be read."""
    for folder in RUNS.glob("runs/*/"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert setting_of(config) is not None
        results = json.loads((folder / "results.json").read_text())
        assert modern(results["config"])["objective"]["monitor"] == "acc"


def test_a_config_of_today_stays_as_it_is():
    today = metadraw.training.factory.portable(metadraw.compose("paths.output_dir=x"))
    assert modern(today) == today
