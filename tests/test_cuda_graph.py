"""A CUDA graph of a step gives the same result as the step, whatever changes in between."""

import pytest
import torch
from conftest import tasks_of
from torch import nn

import metadraw
from metadraw.algorithms.maml import MAML
from metadraw.objectives.classification import Classification
from metadraw.training.factory import build_learner
from metadraw.training.learner import MetaLearner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
TASKS, WAYS = 4, 5


def episodes(seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(2, TASKS, WAYS, 1, 28, 28, generator=random)
    return tasks_of(*images.double().cuda(), WAYS)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "maml_pp", "protonet", "unicorn_maml"])
def test_same_gradients(algorithm):
    learners = []
    for graph in ("false", "true"):
        cfg = metadraw.compose(f"algorithm={algorithm}", f"learner.cuda_graph={graph}")
        torch.manual_seed(0)
        learners.append(build_learner(cfg).double().cuda())
    plain, graphed = learners
    kept = []
    for epoch in (0, 1000):  # MAML++ starts at first order
        for learner in learners:
            learner.algorithm.begin_epoch(epoch)
        graphed.cuda_graph.forget()
        for seed in range(3):
            right, right_values = plain.meta_gradients(episodes(seed))
            found, values = graphed.meta_gradients(episodes(seed))
            kept.append((found, {name: g.clone() for name, g in found.items()}))
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(values, right_values, rtol=1e-6, atol=1e-9)
            with torch.no_grad():  # as an outer step changes them
                for learner in learners:
                    for parameter in learner.parameters():
                        parameter.add_(0.01)
    for found, copy in kept:  # a later replay has not overwritten it
        assert all(torch.equal(found[name], copy[name]) for name in found)


def test_random_numbers_are_new_in_each_replay():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    settings = {"inner_lr": 0.1, "inner_steps": 2, "eval_inner_steps": 2}
    algorithm = MAML(network, nn.Linear(784, WAYS), Classification(ways=WAYS), **settings)
    learner = MetaLearner(algorithm, torch.optim.SGD, cuda_graph=True).double().cuda()
    first, second = (learner.meta_gradients(episodes(0))[0] for _ in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
