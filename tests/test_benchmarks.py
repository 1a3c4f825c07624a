"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from points import ENVIRONMENT, HANGS

import metadraw
from metadraw.training.factory import build_learner

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("parts", [[], ["data.source=npm", "--parts", "steps"]])
def test_no_gpu_is_one_line(parts):
    before = {file: file.read_bytes() for file in RESULTS.glob("*")}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *parts],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=HANGS,
    )
    assert done.returncode == 1
    assert done.stderr == "there is no NVIDIA GPU that PyTorch can use: nothing was measured\n"
    assert {file: file.read_bytes() for file in RESULTS.glob("*")} == before


def test_the_plain_loop_that_is_measured_computes_the_same(monkeypatch, make_sampler):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed

    learner = build_learner(metadraw.compose("algorithm.inner_steps=2", *speed.PLAIN)).double()
    batch = make_sampler()(torch.arange(2)).to(torch.float64)
    expected, _ = learner.meta_gradients(batch)
    network = speed.whole_network(learner.algorithm)
    parts = [speed.maml_by_loop(network, learner.algorithm, batch.task(t)) for t in range(2)]
    for gradient, mean in zip(expected.values(), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(mean).mean(0), gradient, rtol=1e-9, atol=1e-12)
