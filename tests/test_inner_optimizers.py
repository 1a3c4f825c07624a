"""Optimisers of the inner loop: the steps of torch.optim, and exact meta-gradients through them."""

import pytest
import torch
import torch.nn.functional as F
from test_meta_gradients import LR, logits_of, network_of, reference_mean, relative_error
from torch import nn

import metadraw
from metadraw import InputError
from metadraw.algorithms.inner_loop import InnerLoop, gradient_steps
from metadraw.algorithms.inner_optimizers import Adam, GradientDescent, Momentum
from metadraw.training.factory import instantiate
from metadraw.training.learner import MetaLearner
from metadraw.training.train import train

STEPS = 4
OPTIMIZERS = {
    "sgd": (GradientDescent(), lambda p: torch.optim.SGD(p, lr=LR)),
    "momentum": (Momentum(0.9), lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9)),
    "adam": (Adam(0.9, 0.999, 1e-8), lambda p: torch.optim.Adam(p, lr=LR)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_of_torch_optim(name):
    ours, theirs = OPTIMIZERS[name]
    x = torch.randn(6, 3, dtype=torch.float64)

    def loss(params):
        return ((x @ params["w"]).tanh() + params["b"]).pow(4).sum()

    start = {"w": torch.randn(3, dtype=torch.float64), "b": torch.ones((), dtype=torch.float64)}
    path = gradient_steps(loss, start, steps=STEPS, lr=LR, optimizer=ours)
    moved = {key: p.clone().requires_grad_() for key, p in start.items()}
    optimizer = theirs(list(moved.values()))
    for state in path[1:]:
        optimizer.zero_grad()
        loss(moved).backward()
        optimizer.step()
        for key, p in moved.items():
            torch.testing.assert_close(state[key], p.detach(), rtol=1e-7, atol=1e-12)


def momentum(gradient, kept, step):
    direction = gradient + 0.9 * kept.get("direction", 0)
    kept["direction"] = direction
    return direction


def adam(gradient, kept, step):
    """Kingma and Ba 2015, algorithm 1, with epsilon under the root."""
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * gradient
    kept["v"] = 0.999 * kept.get("v", 0) + 0.001 * gradient**2
    mean, square = kept["m"] / (1 - 0.9**step), kept["v"] / (1 - 0.999**step)
    return mean / (square + 1e-8**2).sqrt()


def maml_with(rule, first_order=False):
    def reference(algorithm, meta, task, *, steps):
        fast = network_of(meta)
        kept = {name: {} for name in fast}
        for step in range(1, steps + 1):
            loss = F.cross_entropy(logits_of(algorithm, fast, task.support.x), task.support.y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
            rows = zip(fast.items(), slopes, strict=True)
            fast = {n: p - LR * rule(g, kept[n], step) for (n, p), g in rows}
        return F.cross_entropy(logits_of(algorithm, fast, task.query.x), task.query.y)

    return reference


@pytest.mark.parametrize("how", ["vmap", "loop", "recomputed"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("name", "rule"), [("momentum", momentum), ("adam", adam)])
def test_equals_per_task_autograd(name, rule, first_order, how, make_sampler):
    cfg = metadraw.compose(
        *(f"inner_optimizer={name}", f"algorithm.inner_lr={LR}", "algorithm.inner_steps=3"),
        f"algorithm.first_order={first_order}",
    )
    torch.manual_seed(3)
    # Smooth: Adam divides by gradients, and ReLU makes some of them almost zero.
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh())
    algorithm = instantiate(cfg.algorithm)(network, nn.Linear(8, 5), instantiate(cfg.objective))
    learner = MetaLearner(
        algorithm,
        torch.optim.SGD,
        map_tasks="loop" if how == "loop" else "vmap",
        recompute_steps=how == "recomputed",
    ).double()
    # Weights of pixels that are always white have no gradient.
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    batch = batch._replace(support=batch.support._replace(x=batch.support.x + 0.1))
    found, _ = learner.meta_gradients(batch)
    expected, _ = reference_mean(maml_with(rule, first_order), algorithm, batch, 3)
    assert relative_error(found, expected) < 1e-8


@pytest.mark.parametrize(
    ("name", "algorithm"), [("momentum", "maml_pp"), ("adam", "anil"), ("adam", "reptile")]
)
def test_of_any_algorithm_with_an_inner_loop(name, algorithm, tiny_for):
    found = train(metadraw.compose(*tiny_for(algorithm), f"inner_optimizer={name}"))
    assert 0 <= found["test"]["acc"] <= 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_of_zero_has_a_derivative(name):
    """As for a bias before batch norm, or for a pixel that is always white."""
    ours, _ = OPTIMIZERS[name]

    def outer(params):
        path = gradient_steps(lambda p: (p["w"] * 0).sum(), params, steps=2, lr=LR, optimizer=ours)
        return path[-1]["w"].sum()

    assert torch.func.grad(outer)({"w": torch.ones(3)})["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Momentum(1.0), "inner_optimizer.momentum=1.0"),
        (lambda: Momentum("half"), "inner_optimizer.momentum=half"),
        (lambda: Adam(-0.1, 0.9, 1e-8), "inner_optimizer.beta1=-0.1"),
        (lambda: Adam(0.9, 0.9, 0.0), "inner_optimizer.eps=0.0"),
        (lambda: Adam(0.9, 0.9, "tiny"), "inner_optimizer.eps=tiny"),
        (lambda: InnerLoop(0.0, 1, 1), "algorithm.inner_lr=0.0"),
        (lambda: InnerLoop(True, 1, 1), "algorithm.inner_lr=True"),
        (lambda: InnerLoop(0.1, 0, 1), "algorithm.inner_steps=0"),
        (lambda: InnerLoop(0.1, 1, 2.5), "algorithm.eval_inner_steps=2.5"),
        (lambda: InnerLoop(0.1, 1, 1, first_order="no"), "algorithm.first_order=no"),
    ],
)
def test_wrong_settings(make, says):
    with pytest.raises(InputError, match=says):
        make()
