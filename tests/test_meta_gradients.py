"""Every algorithm's meta-gradient against plain per-task ``torch.autograd``, in float64.

A new algorithm joins by one line in ``REFERENCES``.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metadraw import compose
from metadraw.adaptation import gradient_steps
from metadraw.factory import instantiate
from metadraw.learner import MetaLearner


def maml_reference(network, task, *, lr, steps, first_order):
    """Finn et al. 2017, algorithm 2, as plainly as it can be written; no torch.func transform."""
    meta = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    fast = meta
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(network, fast, (task.support_x,)), task.support_y)
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        fast = {name: p - lr * slope for (name, p), slope in zip(fast.items(), slopes, strict=True)}
    loss = F.cross_entropy(functional_call(network, fast, (task.query_x,)), task.query_y)
    slopes = torch.autograd.grad(loss, list(meta.values()))
    return dict(zip(meta, slopes, strict=True)), loss.detach()


REFERENCES = {
    "maml": partial(maml_reference, first_order=False),
    "fomaml": partial(maml_reference, first_order=True),
}

# A large inner rate makes the second derivatives matter.
LR = 0.1


def make_learner(algorithm, steps, chunk=None, norm="batch"):
    cfg = compose(
        f"algorithm={algorithm}",
        f"algorithm.inner_steps={steps}",
        f"algorithm.inner_lr={LR}",
        "model.hidden_channels=6",
        f"model.norm={norm}",
    )
    torch.manual_seed(3)
    network = instantiate(cfg.model)
    learner = MetaLearner(
        instantiate(cfg.algorithm)(network), instantiate(cfg.optimizer), tasks_per_chunk=chunk
    )
    return learner.double()


def relative_error(found, reference):
    found, reference = (
        torch.cat([g.flatten() for _, g in sorted(named.items())]) for named in (found, reference)
    )
    return ((found - reference).norm() / reference.norm()).item()


def reference_mean(algorithm, learner, batch, steps):
    network = learner.algorithm.network
    tasks = [
        REFERENCES[algorithm](network, batch.task(t), lr=LR, steps=steps)
        for t in range(len(batch.number))
    ]
    gradients = {
        f"network.{name}": torch.stack([g[name] for g, _ in tasks]).mean(0) for name in tasks[0][0]
    }
    return gradients, torch.stack([loss for _, loss in tasks])


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("algorithm", REFERENCES)
def test_equals_per_task_autograd(algorithm, steps, shots, make_sampler):
    batch = make_sampler(shots=shots)(torch.arange(3)).to(torch.float64)
    learner = make_learner(algorithm, steps)
    found, values = learner.meta_gradients(batch)
    reference, losses = reference_mean(algorithm, learner, batch, steps)
    assert found.keys() == reference.keys()
    assert relative_error(found, reference) < 1e-9
    torch.testing.assert_close(values["loss"], losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("algorithm", REFERENCES)
def test_bias_in_front_of_batch_norm_has_no_gradient(algorithm, make_sampler):
    """Batch norm takes any constant away, so the exact meta-gradient of that bias is zero."""
    batch = make_sampler(shots=5)(torch.arange(3)).to(torch.float64)
    found, _ = make_learner(algorithm, steps=5).meta_gradients(batch)
    for block in range(4):
        bias, weight = found[f"network.{block}.0.bias"], found[f"network.{block}.0.weight"]
        assert bias.abs().max() < 1e-12 * max(1.0, weight.abs().max().item())


def test_the_references_differ(make_sampler):
    """The comparison above could not tell MAML from FOMAML if second derivatives did not matter."""
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    first, _ = make_learner("fomaml", 5).meta_gradients(batch)
    second, _ = make_learner("maml", 5).meta_gradients(batch)
    assert relative_error(first, second) > 0.01


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_chunks_change_nothing(norm, make_sampler):
    batch = make_sampler()(torch.arange(5)).to(torch.float64)
    whole, _ = make_learner("maml", 2, norm=norm).meta_gradients(batch)
    parts, _ = make_learner("maml", 2, chunk=2, norm=norm).meta_gradients(batch)
    assert relative_error(parts, whole) < 1e-12


def test_meta_gradients_have_no_side_effect(make_sampler):
    learner = make_learner("maml", 2)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    learner.meta_gradients(make_sampler()(torch.arange(2)).to(torch.float64))
    for name, p in learner.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_gradient_steps_worked_by_hand():
    """L(w) = w^2 from w = 1 with alpha = 0.25: w' = w - 0.25 * 2w = w / 2, so 1, 1/2, 1/4."""
    path = gradient_steps(
        lambda params: params["w"] ** 2, {"w": torch.tensor(1.0)}, steps=2, lr=0.25
    )
    assert [params["w"].item() for params in path] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(("first_order", "expected"), [(False, 2 * 0.25 * 0.25), (True, 2 * 0.25)])
def test_derivative_through_gradient_steps_by_hand(first_order, expected):
    """The outer loss w''^2 with w'' = w/4: derivative 2 w'' dw''/dw, where dw''/dw is 1/4, or 1."""

    def outer(w):
        path = gradient_steps(
            lambda params: params["w"] ** 2,
            {"w": w},
            steps=2,
            lr=0.25,
            first_order=first_order,
        )
        return path[-1]["w"] ** 2

    assert torch.func.grad(outer)(torch.tensor(1.0)).item() == pytest.approx(expected)
