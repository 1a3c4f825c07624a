"""Learners without an inner loop, and with gradients other than MAML's: beyond their references."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import sampler_of
from conftest import tasks_of as episodes

import metadraw
from metadraw import FewShot, InputError
from metadraw.algorithms.cavia import CAVIA
from metadraw.algorithms.imaml import conjugate_gradients
from metadraw.data.episode import Examples
from metadraw.training.factory import build_learner

BLACK_BOX = ["in_context", "cnp", "mann"]
INNER = {"inner_lr": 0.1, "inner_steps": 1, "eval_inner_steps": 1}


def learner_of(algorithm, *overrides):
    """A learner in float64, with parameters away from their start."""
    cfg = metadraw.compose(f"algorithm={algorithm}", "model.hidden_channels=6", *overrides)
    return moved(build_learner(cfg))


def moved(learner):
    torch.manual_seed(4)
    learner = learner.double()
    for name, p in learner.algorithm.named_parameters():
        if "network" not in name:
            p.data += 0.05 * torch.randn_like(p)
    return learner


@pytest.fixture(scope="module")
def tasks_of():
    """Tasks of random pictures in float64."""
    images = torch.randint(256, (20, 12, 28, 28), dtype=torch.uint8)

    def make(ways=5, shots=2, count=2):
        sampler = sampler_of(images, ways=ways, shots=shots, queries=3)
        return sampler(torch.arange(count)).to(torch.float64)

    return make


def rows(examples, order):
    return examples._replace(x=examples.x[order], y=examples.y[order])


@pytest.mark.parametrize("algorithm", BLACK_BOX)
def test_order_of_examples_and_other_queries(algorithm, tasks_of):
    """MANN alone reads a sequence; no query knows of another, given the support's statistics."""
    learner = learner_of(algorithm, "learner.query_statistics=support")
    task = tasks_of().task(0)
    whole = learner.answer(learner.adapt(task), task)
    assert whole.std() > 1e-3
    shuffled = task._replace(support=rows(task.support, torch.randperm(10)))
    other = learner.answer(learner.adapt(shuffled), task)
    assert torch.allclose(other, whole, rtol=1e-9, atol=1e-12) == (algorithm != "mann")
    alone = [
        learner.answer(learner.adapt(part), part)
        for part in (task._replace(query=rows(task.query, [place])) for place in range(15))
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", BLACK_BOX)
def test_the_result_depends_on_what_is_learned(algorithm, tasks_of):
    """On the examples and on their labels, and before adaptation on nothing."""
    learner = learner_of(algorithm)
    task = tasks_of().task(0)
    before, after = learner.adapt_path(task)
    outputs = learner.answer(after, task)
    for changed in (task.support._replace(x=task.support.x.flip(0)), rows(task.support, [1] * 10)):
        other = learner.answer(learner.adapt(task._replace(support=changed)), task)
        assert not torch.allclose(other, outputs, rtol=1e-3)
    if algorithm != "mann":  # which has a prior
        assert not learner.answer(before, task).any()


@pytest.mark.parametrize("algorithm", BLACK_BOX)
def test_padding_of_weight_zero_changes_nothing(algorithm, tasks_of):
    learner = learner_of(algorithm, "model.norm=layer")
    batch = tasks_of()
    support = batch.support
    noise = support._replace(x=torch.rand_like(support.x), y=support.y.flip(1))
    padded = Examples(
        *(torch.cat(pair, dim=1) for pair in zip(support[:2], noise[:2], strict=True))
    )
    weight = torch.ones(2, 20, dtype=torch.float64)
    weight[:, 10:] = 0
    padded = padded._replace(extra={"weight": weight})
    expected, _ = learner.meta_gradients(batch)
    found, _ = learner.meta_gradients(batch._replace(support=padded))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)


# ---- in-context learning ---------------------------------------------------------------------


def test_codes_depend_on_the_episode_in_meta_training_alone(tasks_of):
    """The same tasks with other numbers: another meta-gradient, the same evaluation."""
    learner = learner_of("in_context")
    batch = tasks_of()
    later = batch._replace(number=batch.number + 7)
    (one, _), (two, _) = learner.meta_gradients(batch), learner.meta_gradients(later)
    assert not torch.allclose(one["codes"], two["codes"])
    used = one["codes"].norm(dim=1) > 0
    assert 5 <= used.sum() <= 10  # of two tasks
    assert torch.equal(learner.evaluate(batch).after, learner.evaluate(later).after)
    assert torch.equal(learner.meta_gradients(batch)[0]["codes"], one["codes"])


def test_every_code_is_used_about_as_often():
    algorithm = learner_of("in_context", "algorithm.max_ways=12").algorithm.train()
    algorithm.codes.data = torch.eye(12, 64, dtype=torch.float64)
    batch = episodes(*torch.zeros(2, 600, 5, 1, 28, 28), 5)
    codes = torch.stack([algorithm._codes_of(batch.task(t)) for t in range(600)])
    drawn = codes.argmax(dim=2)  # [600 tasks, 5 labels]
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    for label in range(5):  # 50 each, give or take five standard deviations
        assert (drawn[:, label].bincount(minlength=12) - 50).abs().max() < 35


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("data.ways=6 algorithm.max_ways=5", "algorithm.max_ways=5: must be at least 6"),
        ("algorithm.max_ways=true", "algorithm.max_ways=True: must be a whole number"),
        ("algorithm.width=30", "algorithm.width=30: must be a multiple of algorithm.heads=4"),
        ("algorithm.layers=0", "algorithm.layers=0: must be a whole number of at least 1"),
        ("algorithm=cnp algorithm.width=1.5", "algorithm.width=1.5: must be a whole number"),
        ("algorithm=mann algorithm.slots=[1]", r"algorithm.slots=\[1\]: must be a whole number"),
        ("algorithm=cavia algorithm.context=0", "algorithm.context=0: must be a whole number"),
        ("algorithm=imaml algorithm.proximal=0", "algorithm.proximal=0: must be a number above 0"),
        ("algorithm=imaml algorithm.solver_steps=-1", "algorithm.solver_steps=-1: must be a whole"),
    ],
)
def test_wrong_input(overrides, says):
    with pytest.raises(InputError, match=says):
        build_learner(metadraw.compose("algorithm=in_context", *overrides.split()))


def test_more_classes_than_codes_in_use(checkpoint_of):
    meta_learner = FewShot(checkpoint_of("in_context"))
    picture = torch.zeros(28, 28)
    with pytest.raises(InputError, match=r"max_ways=64: must be at least 65"):
        meta_learner.adapt({str(label): [picture] for label in range(65)})


# ---- regression ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", BLACK_BOX)
def test_sinusoids_are_learned(algorithm):
    """The error on new tasks falls well below that of a constant zero."""
    sizes = ["algorithm.controller=40", "algorithm.slots=10"] if algorithm == "mann" else []
    settings = ["experiment=sinusoids", "data.tasks_per_batch=25", *sizes]
    cfg = metadraw.compose(*settings, f"algorithm={algorithm}")
    data, learner = metadraw.build(cfg)
    sampler, unseen = data.episodes("train"), data.episodes("test")(torch.arange(100))
    optimizer = torch.optim.Adam(learner.algorithm.parameters(), lr=0.003)
    for step in range(100):
        means, _ = learner.meta_gradients(sampler(torch.arange(25) + 25 * step))
        for name, parameter in learner.algorithm.named_parameters():
            parameter.grad = means[name]
        optimizer.step()
    error = (learner.evaluate(unseen).after - unseen.query.y).square().mean()
    assert error < 0.85 * unseen.query.y.square().mean()


def cnp(algorithm, meta, task):
    """Garnelo et al. 2018, equations 1 to 3, with a squared error."""
    own = {n.removeprefix("network."): p for n, p in meta.items() if n.startswith("network.")}
    features = partial(torch.func.functional_call, algorithm.network, own)
    support, query = features(task.support.x), features(task.query.x)

    def linear(x, name):
        return x @ meta[f"{name}.weight"].T + meta[f"{name}.bias"]

    pairs = torch.cat([support, task.support.y], dim=1)
    known = linear(F.relu(linear(pairs, "encoder.0")), "encoder.2").mean(dim=0)
    x = torch.cat([query, known.repeat(len(query), 1)], dim=1)
    x = F.relu(linear(F.relu(linear(x, "decoder.0")), "decoder.2"))
    return (linear(x, "output") - task.query.y).square().mean()


def test_meta_gradient_of_regression_equals_autograd():
    data, learner = metadraw.build(metadraw.compose("experiment=sinusoids", "algorithm=cnp"))
    learner = moved(learner)
    batch = data.episodes("train")(torch.arange(3)).to(torch.float64)
    found, values = learner.meta_gradients(batch)
    meta = {n: p.detach().requires_grad_() for n, p in learner.algorithm.named_parameters()}
    losses = torch.stack([cnp(learner.algorithm, meta, batch.task(t)) for t in range(3)])
    expected = torch.autograd.grad(losses.mean(), list(meta.values()))
    for name, gradient in zip(meta, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(values["loss"], losses.detach(), rtol=1e-9, atol=0)


# ---- implicit MAML ---------------------------------------------------------------------------


def test_conjugate_gradients_solve_and_stop():
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    b = torch.randn(6, dtype=torch.float64)

    def solve(matrix, steps):
        def product(vector):
            image = matrix @ torch.cat([vector["x"], vector["y"]])
            return {"x": image[:2], "y": image[2:]}

        return torch.cat(
            list(conjugate_gradients(product, {"x": b[:2], "y": b[2:]}, steps).values())
        )

    positive = root @ root.T + torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.solve(positive, b)
    errors = [(solve(positive, steps) - exact).norm() for steps in (1, 3, 6)]
    assert errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(solve(positive, 8), exact, rtol=1e-9, atol=1e-12)
    # At the solution, more steps change nothing; in a direction that is not positive it stops.
    torch.testing.assert_close(solve(torch.eye(6, dtype=torch.float64), 3), b)
    torch.testing.assert_close(solve(-positive, 3), b)


def test_implicit_gradient_equals_a_dense_solve():
    """Lemma 1 on a network small enough for its Hessian, at the end of the inner loop."""
    small = ["model.hidden=[3]", "algorithm.proximal=3", "algorithm.inner_steps=4"]
    steps = ["algorithm=imaml", "algorithm.inner_lr=0.02", "algorithm.solver_steps=40"]
    data, learner = metadraw.build(metadraw.compose("experiment=sinusoids", *small, *steps))
    learner = learner.double()
    task = data.episodes("train")(torch.arange(1)).to(torch.float64)
    found, _ = learner.meta_gradients(task)
    algorithm, task = learner.algorithm, task.task(0)
    names = [name for name, _ in algorithm.named_parameters()]
    start = torch.cat([p.detach().flatten() for p in algorithm.parameters()])
    sizes = [p.numel() for p in algorithm.parameters()]

    def loss(flat, examples):
        parts = zip(names, flat.split(sizes), algorithm.parameters(), strict=True)
        state = {name: part.view_as(p) for name, part, p in parts}
        return (algorithm.predict(state, examples.x) - examples.y).square().mean()

    phi = start
    for _ in range(4):
        slope = torch.func.grad(loss)(phi, task.support)
        phi = phi - 0.02 * (slope + 3 * (phi - start))
    hessian = torch.func.hessian(loss)(phi, task.support)
    system = torch.eye(len(phi), dtype=torch.float64) + hessian / 3
    assert torch.linalg.eigvalsh(system).min() > 0
    assert (system - torch.eye(len(phi))).norm() > 0.5
    exact = torch.linalg.solve(system, torch.func.grad(loss)(phi, task.query))
    flat = torch.cat([found[name].flatten() for name in names])
    torch.testing.assert_close(flat, exact, rtol=1e-8, atol=1e-10)


def test_the_implicit_gradient_is_the_limit_of_mamls():
    """At the minimum, both are the derivative of the minimum with respect to the start.

    MAML's inner loop has no proximal term, so its path is that of iMAML's loss here.
    """
    settings = ["experiment=sinusoids", "model.hidden=[3]", "algorithm=imaml"]
    settings += ["algorithm.proximal=5", "algorithm.solver_steps=40", "algorithm.inner_lr=0.05"]
    cfg = metadraw.compose(*settings, "algorithm.inner_steps=400")
    data, learner = metadraw.build(cfg)
    learner = learner.double()
    algorithm = learner.algorithm
    batch = data.episodes("train")(torch.arange(1)).to(torch.float64)
    implicit, _ = learner.meta_gradients(batch)
    task = batch.task(0)
    inner = replace(algorithm.inner, first_order=False)
    start = {n: p.detach().requires_grad_() for n, p in algorithm.named_parameters()}

    def near(params):
        apart = sum((p - start[name]).square().sum() for name, p in params.items())
        return algorithm.loss_on(task.support)(params) + 5 / 2 * apart

    end = inner.path(near, start, 400)[-1]
    loss = algorithm.loss_on(task.query)(end)
    explicit = torch.autograd.grad(loss, list(start.values()))
    for name, gradient in zip(start, explicit, strict=True):
        torch.testing.assert_close(implicit[name], gradient, rtol=1e-6, atol=1e-9)


# ---- contexts and curvature ------------------------------------------------------------------


def test_a_context_of_zero_changes_nothing_and_alone_is_adapted(tasks_of):
    learner = learner_of("cavia", "algorithm.inner_steps=2")
    task, algorithm = tasks_of().task(0), learner.algorithm
    path = learner.adapt_path(task)
    assert not path[0]["context"].any()
    assert path[1]["context"].any()
    for state in path:
        assert set(state) == {"context", "head.weight", "head.bias"}
        torch.testing.assert_close(state["head.weight"], algorithm.head.weight)
    plain = algorithm.head(algorithm.network(task.query.x))
    torch.testing.assert_close(learner.answer(path[0], task), plain)


def test_a_context_enters_the_layers_of_any_network():
    """Each linear layer of one without norms, and none of one without layers."""
    settings = ["experiment=sinusoids", "algorithm=cavia", "algorithm.context=4"]
    data, learner = metadraw.build(metadraw.compose(*settings))
    learner = moved(learner)
    algorithm, task = learner.algorithm, data.episodes("test")(torch.arange(1)).task(0)
    x = task.query.x.double()
    context = torch.randn(4, dtype=torch.float64)
    expected = x
    for layer, film in zip((1, 3), (algorithm.film.weight @ context).chunk(2), strict=True):
        scale, shift = film.chunk(2)
        expected = F.relu(algorithm.network[layer](expected) * (1 + scale) + shift)
    torch.testing.assert_close(algorithm.features(x, {"context": context}), expected)
    assert not any(m._forward_hooks for m in algorithm.modules())
    with pytest.raises(InputError, match="model: Flatten has no norm, convolution or linear"):
        CAVIA(torch.nn.Flatten(), algorithm.head, algorithm.objective, context=4, **INNER)


def test_identity_matrices_are_maml(tasks_of):
    inner = ["algorithm.inner_lr=0.1", "algorithm.inner_steps=2"]
    cfg = metadraw.compose("algorithm=meta_curvature", "model.hidden_channels=6", *inner)
    curved = build_learner(cfg).double()
    plain = build_learner(
        metadraw.compose("algorithm=maml", "model.hidden_channels=6", *inner)
    ).double()
    plain.algorithm.load_state_dict(curved.algorithm.state_dict(), strict=False)
    batch = tasks_of()
    found, expected = curved.meta_gradients(batch)[0], plain.meta_gradients(batch)[0]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    learned = curved.algorithm.learned()
    assert set(learned) == {
        f"curvature/{name.removeprefix('network.')}" for name in curved.algorithm.modes
    }
    assert not any(learned.values())
    curved.algorithm.curvatures[0].data[0, 0] = 3.0
    assert curved.algorithm.learned()["curvature/0.0.weight"].item() == 2.0
