"""Heads that are fitted to the features of a frozen network, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from conftest import sampler_of
from torch.distributions import MultivariateNormal
from torch.utils._pytree import tree_map

import metadraw
from metadraw.data.episode import joined
from metadraw.training.factory import build_learner


@pytest.fixture
def task_of():
    """A task of random pictures in float64, of so many ways and shots."""

    def make(ways, shots):
        images = torch.randint(256, (20, 20, 28, 28), dtype=torch.uint8)
        sampler = sampler_of(images, ways=ways, shots=shots, queries=2)
        return sampler(torch.arange(1)).to(torch.float64).task(0)

    return make


def learner_of(*overrides):
    cfg = metadraw.compose("model.hidden_channels=6", *overrides)
    return build_learner(cfg).double()


@pytest.mark.parametrize(("ways", "shots", "ridge"), [(5, 1, 1.0), (10, 5, 1.0), (5, 5, 3.0)])
def test_logistic_regression_is_at_the_minimum(task_of, ways, shots, ridge):
    task = task_of(ways, shots)
    learner = learner_of("algorithm=logistic_regression", f"algorithm.ridge={ridge}")
    before, after = learner.adapt_path(task)
    assert not any(values.any() for values in before.values())
    features = F.normalize(learner.algorithm.embed(task.support).detach(), dim=1)
    weight, bias = (v.clone().requires_grad_() for v in (after["head.weight"], after["head.bias"]))
    loss = F.cross_entropy(features @ weight.T + bias, task.support.y, reduction="sum")
    loss = loss + ridge / 2 * (weight.square().sum() + bias.square().sum())
    # It is strictly convex, so this is the only such point.
    for slope in torch.autograd.grad(loss, [weight, bias]):
        assert slope.abs().max() < 1e-6
    # A weight of 2 is the same as seeing an example twice.
    twice = torch.ones_like(task.support.y, dtype=torch.float64)
    twice[0] = 2
    support = task.support
    weighted = task._replace(support=support._replace(extra={"weight": twice}))
    rows = [0, *range(len(support.y))]
    repeated = task._replace(support=support._replace(x=support.x[rows], y=support.y[rows]))
    one, other = (learner.adapt(each) for each in (weighted, repeated))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9)


STEPS = ["algorithm.inner_steps=3", "algorithm.inner_lr=0.1", "algorithm.scale=4"]


def test_baseline_pp_descends_on_cosines(task_of):
    task = task_of(5, 2)
    learner = learner_of("algorithm=baseline_pp", *STEPS)
    path = learner.adapt_path(task)
    features = learner.algorithm.embed(task.support).detach()
    own = learner.algorithm.classifier.weight[:5].detach()
    weight = (own / own.norm(dim=1, keepdim=True)).requires_grad_()
    for state in path:
        torch.testing.assert_close(state["head.weight"], weight)
        cosines = F.cosine_similarity(features[:, None], weight[None], dim=2)
        (slope,) = torch.autograd.grad(F.cross_entropy(4 * cosines, task.support.y), weight)
        weight = (weight - 0.1 * slope).detach().requires_grad_()
    query = learner.algorithm.embed(task.query).detach()
    expected = 4 * F.cosine_similarity(query[:, None], path[-1]["head.weight"][None], dim=2)
    torch.testing.assert_close(learner.answer(path[-1], task), expected)


def gaussians_of(learner, task):
    """The means of classes in features of length 1, the scatter about each, and how many examples.

    In loops.
    """
    centered = learner.algorithm.embed(task.support).detach() - learner.algorithm.center
    features = torch.stack([row / row.norm() for row in centered])
    labels = task.support.y.tolist()
    classes = [
        features[[i for i, label in enumerate(labels) if label == k]]
        for k in range(len(task.about["classes"]))
    ]
    means = [rows.mean(0) for rows in classes]
    scatters = [
        sum(torch.outer(row - mean, row - mean) for row in rows)
        for rows, mean in zip(classes, means, strict=True)
    ]
    return means, scatters, [len(rows) for rows in classes]


@pytest.mark.parametrize(("shots", "strength"), [(1, 100.0), (5, 100.0), (5, 3.0)])
@pytest.mark.parametrize("algorithm", ["lda", "qda"])
def test_discriminants_are_those_of_gaussians(task_of, algorithm, shots, strength):
    """Bayes' rule with normal densities, whose covariance is pooled from the prior and the task.

    The one of a class, from that and the class.
    """
    settings = ["algorithm.shrinkage=0.25", f"algorithm.strength={strength}"]
    settings += ["algorithm.class_strength=7"] * (algorithm == "qda")
    learner = learner_of(f"algorithm={algorithm}", *settings)
    observed = torch.randn(6, 9, dtype=torch.float64)
    learner.algorithm.covariance.copy_(observed @ observed.T / 9)
    learner.algorithm.center.normal_()
    task = task_of(5, shots)
    before, after = learner.adapt_path(task)
    assert not any(values.any() for values in before.values())
    means, scatters, counts = gaussians_of(learner, task)
    prior = 0.75 * learner.algorithm.covariance
    prior = prior + 0.25 * learner.algorithm.covariance.trace() / 6 * torch.eye(6)
    shared = (strength * prior + sum(scatters)) / (strength + sum(counts) - 5)
    covariances = [shared] * 5
    if algorithm == "qda":
        covariances = [
            (7 * shared + scatter) / (7 + count - 1)
            for scatter, count in zip(scatters, counts, strict=True)
        ]
    query = learner.algorithm.embed(task.query).detach() - learner.algorithm.center
    query = F.normalize(query, dim=1)
    densities = [
        MultivariateNormal(mean, covariance).log_prob(query)
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    chances = torch.stack(densities, dim=1).softmax(dim=1)
    torch.testing.assert_close(learner.answer(after, task).softmax(dim=1), chances)


def test_the_covariance_is_that_of_meta_training(task_of):
    """A batch moves it by a hundredth towards that within the batch's classes."""
    learner = learner_of("algorithm=lda")
    learner.algorithm.center.normal_()
    task = task_of(8, 3)
    batch = tree_map(lambda value: value[None], task)
    whole = task._replace(support=joined(task.support, task.query))
    _, scatters, counts = gaussians_of(learner, whole)
    within = sum(scatters) / (sum(counts) - len(counts))
    means, _ = learner.meta_gradients(batch)
    learner.algorithm.outer_step(means, torch.optim.SGD(learner.parameters(), lr=0.1))
    expected = 0.99 * torch.eye(6, dtype=torch.float64) / 6 + 0.01 * within
    torch.testing.assert_close(learner.algorithm.covariance, expected)


@pytest.mark.parametrize(
    "override",
    [
        "algorithm=logistic_regression algorithm.ridge=0",
        "algorithm=baseline_pp algorithm.scale=-1",
        "algorithm=lda algorithm.strength=0",
        "algorithm=qda algorithm.class_strength=0",
    ],
)
def test_wrong_input(override):
    key = override.split()[1].split("=")[0]
    with pytest.raises(Exception, match=rf"{key}=.*: must be a number above 0"):
        learner_of(*override.split())


@pytest.mark.parametrize("shrinkage", ["-0.1", "1.1", "null", "much"])
def test_wrong_shrinkage(shrinkage):
    with pytest.raises(Exception, match=r"algorithm.shrinkage=.*: must be a number in 0\.\.1"):
        learner_of("algorithm=lda", f"algorithm.shrinkage={shrinkage}")
