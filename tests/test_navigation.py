"""Reinforcement learning: the navigation tasks of the MAML paper, by policy gradient."""

import csv
import json

import pytest
import torch
from conftest import equal
from test_meta_gradients import LR, descend, functional_call, relative_error

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Episode, Examples
from metadraw.data.navigation import Plane
from metadraw.objectives.policy_gradient import PolicyGradient
from metadraw.results.compare import compare
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

SMALL = ["data.shots=4", "data.queries=3", "data.horizon=6", "data.tasks_per_batch=3"]


def build(*overrides):
    return metadraw.build(metadraw.compose("experiment=navigation", *overrides))


# ---- tasks -----------------------------------------------------------------------------------


def test_a_task_is_a_goal_and_noise_of_its_own():
    data, _ = build(*SMALL)
    batch = data.episodes("train")(torch.arange(400))
    goal = batch.about["goal"]
    assert -0.5 <= goal.min() < -0.45 < 0.45 < goal.max() <= 0.5
    assert goal.mean(dim=0).abs().max() < 5 * 12**-0.5 / 400**0.5
    for examples, count in ((batch.support, 4), (batch.query, 3)):
        assert torch.equal(examples.y, goal[:, None].expand(-1, count, -1))
        assert examples.x.shape == (400, count, 2)
        assert not examples.x.any()
        noise = examples.extra["noise"]
        assert noise.shape == (400, count, 6, 2)
        # Standard normal, by its first four moments.
        for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
            assert abs((noise.double() ** power).mean() - expected) < 0.15
        assert len(noise.unique()) > 0.99 * noise.numel()
    assert not (batch.support.extra["noise"][:, :3] == batch.query.extra["noise"]).any()


def test_a_task_depends_on_nothing_but_seed_split_and_index():
    data, _ = build(*SMALL)
    sampler = data.episodes("train")
    together = sampler(torch.arange(10))
    assert equal(together.task(7), sampler(torch.tensor([7])).task(0))
    assert not equal(together, data.episodes("val")(torch.arange(10)))
    more, _ = build("data.shots=9", "data.horizon=8")
    noise = more.episodes("train")(torch.arange(10)).support.extra["noise"]
    assert torch.equal(noise[:, :4, :6], together.support.extra["noise"])


def test_the_plane_by_hand():
    observation = torch.tensor([[0.0, 0.0, 7.0], [0.2, 0.0, 7.0]])
    action, goal = (
        torch.tensor([[0.5, -0.05], [0.0, 0.0]]),
        torch.tensor([[0.3, 0.0], [0.2, 0.005]]),
    )
    after, reward, last = Plane(speed=0.1, reach=0.01).step(observation, action, goal)
    torch.testing.assert_close(after, torch.tensor([[0.1, -0.05, 7.0], [0.2, 0.0, 7.0]]))
    torch.testing.assert_close(reward, torch.tensor([-(0.2**2 + 0.05**2), -(0.005**2)]))
    assert last.tolist() == [False, True]


def test_an_episode_ends_at_the_goal_and_noise_repeats_it():
    """A policy that walks straight there needs three steps, and gets nothing afterwards."""
    objective = build()[1].objective
    examples = Examples(
        torch.zeros(1, 2), torch.tensor([[0.3, 0.0]]), {"noise": torch.zeros(1, 6, 2)}
    )
    found = objective.outputs(lambda x: torch.tensor([[0.1, 0.0]]).expand(len(x), 2), examples)[0]
    assert found[:, 2].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(found[:3, 1], -torch.tensor([0.04, 0.01, 0.0]))
    assert not found[3:, 1].any()
    torch.testing.assert_close(found[:3, 3:], torch.tensor([[0.0, 0], [0.1, 0], [0.2, 0]]))
    torch.testing.assert_close(
        objective.metrics(found[None], examples)["return"], torch.tensor(-0.05)
    )


# ---- gradients -------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_expected_return():
    """Of one step without clipping, E[-|a - g|^2] has the gradient -2 (mean - g)."""
    objective = PolicyGradient(
        size=2, environment=Plane(speed=10.0, reach=1e-6), std=0.1, discount=1.0
    )
    noise = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0))
    goal = torch.tensor([0.3, -0.1])
    examples = Examples(torch.zeros(20_000, 2), goal.expand(20_000, 2), {"noise": noise})
    mean = torch.tensor([0.05, 0.1], requires_grad=True)
    found = objective.outputs(lambda x: mean.expand(len(x), 2), examples)
    (slope,) = torch.autograd.grad(objective.loss(found, examples), mean)
    expected = 2 * (mean.detach() - goal)
    assert torch.cosine_similarity(slope, expected, dim=0) > 0.999
    # Normalised advantages divide it by the standard deviation of the rewards.
    reward = found[:, 0, 1]
    assert slope.norm() == pytest.approx((expected.norm() / reward.std()).item(), rel=0.03)


def test_far_from_the_goal_single_precision_is_enough():
    """A first policy may run straight away: squares of places and powers of time differ by much."""
    objective = PolicyGradient(
        size=2, environment=Plane(speed=0.1, reach=0.01), std=0.1, discount=0.99
    )
    noise = torch.randn(20, 100, 2, generator=torch.Generator().manual_seed(0))
    examples = Examples(torch.zeros(20, 2), torch.full((20, 2), 0.4), {"noise": noise})
    losses = []
    for dtype in (torch.float32, torch.float64):
        own = Episode(examples, examples, torch.tensor(0)).to(dtype).support
        found = objective.outputs(lambda x: torch.tensor([-9.0, 9.0], dtype=x.dtype) + 0 * x, own)
        assert found[..., 1].sum(dim=1).max() < -4000
        losses.append(objective.loss(found, own).double())
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-3)


def surrogate(algorithm, params, examples):
    """REINFORCE, rollout by rollout and step by step; with the constants of the experiment."""
    own = {n.removeprefix("network."): p for n, p in params.items() if n.startswith("network.")}

    def policy(position):
        features = functional_call(algorithm.network, own, (position[None],))
        mean = (features @ params["head.weight"].T + params["head.bias"])[0]
        return torch.distributions.Normal(mean, 0.1)

    terms, rows, returns = [], [], []
    for start, goal, noise in zip(examples.x, examples.y, examples.extra["noise"], strict=True):
        position, steps = start, []
        for each in noise:
            with torch.no_grad():
                action = policy(position).mean + 0.1 * each
            moved = position + action.clip(-0.1, 0.1)
            steps.append((position, action, -((moved - goal) ** 2).sum()))
            position = moved
            if (moved - goal).norm() < 0.01:
                break
        for t, (position, action, _) in enumerate(steps):
            terms.append(policy(position).log_prob(action).sum())
            time = t / len(noise)
            rows.append([*position.tolist(), *(position**2).tolist(), 1, time, time**2, time**3])
            returns.append(sum(0.99 ** (k - t) * r for k, (_, _, r) in enumerate(steps) if k >= t))
    # Ridge regression, by least squares with further rows.
    features, returns = torch.tensor(rows, dtype=returns[0].dtype), torch.stack(returns)[:, None]
    more = (1e-5 * len(rows)) ** 0.5 * torch.eye(8, dtype=returns.dtype)
    targets = torch.cat([returns, 0 * more[:, :1]])
    fit = torch.linalg.lstsq(torch.cat([features, more]), targets).solution
    advantage = (returns - features @ fit)[:, 0]
    advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    return -(torch.stack(terms) * advantage).mean()


def adapted_loss(algorithm, meta, task, name):
    fast = dict(meta)
    for _ in range(2):
        adapted = {n: p for n, p in fast.items() if n.startswith("head.") or name != "anil"}
        loss = surrogate(algorithm, fast, task.support)
        fast |= descend(loss, adapted, LR, name == "fomaml")
    return surrogate(algorithm, fast, task.query)


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "anil"])
def test_equals_per_task_autograd(algorithm, how):
    steps = [f"algorithm.inner_lr={LR}", "algorithm.inner_steps=2", "model.hidden=[8,8]"]
    data, learner = build(f"algorithm={algorithm}", *steps, *SMALL, f"learner.map_tasks={how}")
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(3)).to(torch.float64)
    # The first task ends early: its goal is where its first query rollout passes.
    moved = learner.evaluate(batch).after[0, 0, 3, 3:]
    for examples in (batch.support, batch.query):
        examples.y[0] = moved
    found, _ = learner.meta_gradients(batch)
    assert (learner.evaluate(batch).after[0, :, :, 2] == 0).any() or algorithm != "maml"
    gradients = []
    for t in range(3):
        named = learner.algorithm.named_parameters()
        meta = {name: p.detach().clone().requires_grad_() for name, p in named}
        loss = adapted_loss(learner.algorithm, meta, batch.task(t), algorithm)
        gradients.append(
            dict(zip(meta, torch.autograd.grad(loss, list(meta.values())), strict=True))
        )
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
    assert relative_error(found, mean) < 1e-9


def test_nothing_is_read_back_or_made_elsewhere():
    """On PyTorch's meta device that raises."""
    data, learner = build(*SMALL)
    batch = data.episodes("train")(torch.arange(3)).to("meta")
    gradients, metrics = learner.to("meta").meta_gradients(batch)
    assert {value.device.type for value in [*gradients.values(), *metrics.values()]} == {"meta"}


def test_half_precision_rolls_out_and_learns(tmp_path):
    small = ["data.train_batches=2", "data.val_batches=1", "trainer.max_epochs=1"]
    found = train(tiny(tmp_path, *small, "trainer.precision=bf16-mixed"))
    assert found["test"]["return"] != found["test"]["return_before"]


def test_rollouts_of_weight_zero_change_nothing():
    data, learner = build(*SMALL)
    objective, task = learner.objective, data.episodes("train")(torch.arange(1)).task(0)
    weight = torch.tensor([1.0, 1.0, 0.0])
    padded = task.query._replace(extra={**task.query.extra, "weight": weight})
    found = learner.answer(learner.adapt(task, 0), task)
    fewer = Examples(padded.x[:2], padded.y[:2], {"noise": padded.extra["noise"][:2]})
    for name, value in objective.metrics(found[:2], fewer).items():
        torch.testing.assert_close(objective.metrics(found, padded)[name], value)


# ---- runs ------------------------------------------------------------------------------------


def tiny(folder, *overrides):
    sizes = ["data.horizon=12", "data.shots=10", "data.tasks_per_batch=8", "model.hidden=[16]"]
    batches = ["data.train_batches=20", "data.val_batches=2", "data.test_batches=3"]
    where = ["trainer=cpu", "trainer.max_epochs=3", f"paths.output_dir={folder}"]
    return metadraw.compose("experiment=navigation", *sizes, *batches, *where, *overrides)


def test_runs_learn_and_speak_of_returns(tmp_path, caplog):
    caplog.set_level("INFO")
    found = train(tiny(tmp_path / "maml"))
    test = found["test"]
    assert test["return"] > test["return_before"] + test["return_ci95"]
    with (tmp_path / "maml" / "metrics.csv").open() as file:
        returns = [float(row["val/return"]) for row in csv.DictReader(file)]
    assert found["val"]["return"] == pytest.approx(max(returns), abs=1e-5)
    assert f"meta-test mean return {test['return']:.4f} ± " in caplog.text
    for picture in ("curves.png", "episode.png"):
        assert (tmp_path / "maml" / picture).stat().st_size > 10_000
    checkpoint = tmp_path / "maml" / "checkpoints" / "best.ckpt"
    again = [f"ckpt_path={checkpoint}", "trainer=cpu", "learner.map_tasks=loop"]
    cfg = metadraw.compose(*again, f"paths.output_dir={tmp_path / 'again'}", config="eval")
    assert evaluate(cfg)["test"]["return"] == pytest.approx(test["return"], abs=1e-3)

    # One policy for all goals, trained jointly: Reptile with one step.
    joint = train(tiny(tmp_path / "joint", "algorithm=reptile", "algorithm.inner_steps=1"))
    assert json.loads((tmp_path / "joint" / "results.json").read_text())["test"] == joint["test"]
    assert "| return " in compare([tmp_path / "maml", tmp_path / "joint"])


def test_the_oracle_sees_the_goal():
    data, learner = build(*SMALL, "data.oracle=true")
    task = data.episodes("train")(torch.arange(1)).task(0)
    assert torch.equal(task.support.x[:, 2:], task.support.y)
    observed = learner.answer(learner.adapt(task), task)[..., 3:]
    assert torch.equal(observed[..., 2:], task.query.y[:, None].expand(-1, 6, -1))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.horizon=0"], "data.horizon=0: must be a whole number of at least 1"),
        (["data.goal=[1,0]"], r"data.goal=\[1, 0\]: must be two numbers"),
        (["data.goal=[0,nan]"], r"data.goal=\[0, nan\]: must be two numbers"),
        (["data.shots=[1,5]"], r"data.shots=\[1, 5\]: must be one whole number"),
        (["data.oracle=1"], "data.oracle=1: must be true or false"),
        (["objective.std=0"], "objective.std=0: must be a number above 0"),
        (["objective.discount=1.1"], "objective.discount=1.1: must be above 0 and at most 1"),
        (["objective.size=3"], "objective.size=3: actions have 2 values here"),
        (["objective.environment.speed=true"], "objective.environment.speed=True: must be a num"),
        (["objective.mode=min"], "objective.mode=min: must be max for objective.monitor=return"),
        (["objective=classification"], r"objective\.\w+: .*choose another objective"),
        (
            ["algorithm=r2d2", "~algorithm.inner_lr", "~algorithm.inner_steps"],
            "PolicyGradient has no targets that a network could read",
        ),
        (["experiment=sinusoids", "objective=policy_gradient"], "these tasks have no rollouts"),
    ],
)
def test_wrong_input_is_one_line(overrides, says):
    lists = [o for o in overrides if o.startswith("experiment=")] or ["experiment=navigation"]
    with pytest.raises(SystemExit, match=says) as stopped, one_line_errors():
        metadraw.build(metadraw.compose(*lists, *[o for o in overrides if o not in lists]))
    assert "\n" not in str(stopped.value)
