"""Properties of each algorithm beyond its meta-gradient (see test_meta_gradients.py)."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ALGORITHMS, ANY_WAYS, each_algorithm, of_kinds, one_of, sampler_of

import metadraw
from metadraw import InputError
from metadraw.data.episode import Examples
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import read_checkpoint
from metadraw.training.train import train


@pytest.fixture
def build(tiny_for):
    """Data and learner of a tiny config of any algorithm."""
    return lambda algorithm, *overrides: metadraw.build(
        metadraw.compose(*tiny_for(algorithm), *overrides)
    )


def columns(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def blocks(classes, seed):
    """A sampler of synthetic drawings of large blocks, which a convolution can tell apart."""
    random = np.random.RandomState(seed)
    pattern = np.kron(random.rand(classes, 1, 4, 4) > 0.5, np.ones((7, 7), dtype=bool))
    images = ((pattern ^ (random.rand(classes, 10, 28, 28) > 0.95)) * 255).astype(np.uint8)
    return sampler_of(torch.from_numpy(images), queries=2, seed=seed)


@pytest.mark.parametrize("algorithm", each_algorithm("scratch"))
def test_it_learns(build, algorithm):
    """The loss on tasks of unseen classes falls within 30 outer steps; MANN takes longer."""
    rate, steps = {"cnp": (0.003, 30), "mann": (0.005, 80)}.get(algorithm, (0.01, 30))
    _, learner = build(algorithm, "model.hidden_channels=8")
    algorithm, sampler = learner.algorithm, blocks(60, seed=1)
    unseen = blocks(20, seed=2)(torch.arange(20))
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=rate)

    def loss():
        logits = learner.evaluate(unseen).after
        return F.cross_entropy(logits.flatten(0, 1), unseen.query.y.flatten()).item()

    before = loss()
    for step in range(steps):
        means, _ = learner.meta_gradients(sampler(torch.arange(6) + 6 * step))
        for name, parameter in algorithm.named_parameters():
            parameter.grad = means[name]
        algorithm.outer_step(means, optimizer)
    assert loss() < 0.96 * before


def test_scratch_is_never_meta_trained(tiny_for, tmp_path):
    cfg = metadraw.compose(*tiny_for("scratch"), "trainer.max_epochs=5")
    _, fresh = metadraw.build(cfg)
    found = train(cfg)
    assert found["train"]["epochs"] == 1
    _, after = metadraw.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    for one, other in zip(fresh.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("algorithm", of_kinds(ANY_WAYS))
@pytest.mark.parametrize("ways", one_of(8, 3))
def test_any_number_of_ways(build, algorithm, ways):
    _, trained = build(algorithm)
    data, learner = build(algorithm, f"data.ways={ways}")
    assert learner.algorithm.any_ways
    learner.load_state_dict(trained.state_dict())
    batch = data.episodes("test")(torch.arange(4))
    assert learner.evaluate(batch).after.shape == (4, ways, ways)


def test_other_algorithms_say_that_ways_are_fixed(build):
    for algorithm in set(ALGORITHMS) - set(ANY_WAYS):
        assert not build(algorithm)[1].algorithm.any_ways


def test_a_checkpoint_is_tested_with_other_ways(tiny_for, tmp_path):
    train(metadraw.compose(*tiny_for("proto_maml")))
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    common = [checkpoint, "trainer=cpu", f"paths.output_dir={tmp_path / 'eval'}"]
    found = evaluate(metadraw.compose(*common, "data.ways=9", config="eval"))
    assert found["config"]["data"]["ways"] == 9
    assert 0 <= found["test"]["acc"] <= 1


def test_a_setting_that_the_algorithm_does_not_have(tiny_for, tmp_path):
    train(metadraw.compose(*tiny_for("protonet")))
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    cfg = metadraw.compose(checkpoint, "algorithm.eval_inner_steps=3", config="eval")
    with pytest.raises(InputError, match="eval_inner_steps: ProtoNet has no such setting"):
        evaluate(cfg)
    best = checkpoint.partition("=")[2]
    with pytest.raises(InputError, match=r"algorithm\.network: ProtoNet has no such setting"):
        metadraw.load(best, "algorithm.network=1")


def test_a_setting_that_is_newer_than_the_checkpoint(tiny_for, tmp_path):
    train(metadraw.compose(*tiny_for("simple_shot")))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    saved = read_checkpoint(best)
    del saved["metadraw_config"]["algorithm"]["mirror_images"]
    torch.save(saved, best)
    _, plain = metadraw.load(best)
    _, both = metadraw.load(best, "algorithm.mirror_images=true")
    assert (plain.algorithm.mirror_images, both.algorithm.mirror_images) == (False, True)


@pytest.mark.parametrize(
    ("algorithm", "invariant"),
    [(name, name not in ("baseline_pp", "in_context")) for name in ANY_WAYS]
    + [("maml", False), ("anil", False)],
)
def test_which_class_has_which_label(build, algorithm, invariant):
    """Permuted labels permute the logits, or do not."""
    data, learner = build(algorithm, "data.shots=2")
    learner = learner.double()
    task = data.episodes("test")(torch.arange(1)).to(torch.float64).task(0)
    permuted = torch.tensor([3, 0, 4, 1, 2])
    one = learner.predict(learner.adapt(task), task.query.x)
    renamed = task.support._replace(y=permuted[task.support.y])
    two = learner.predict(learner.adapt(task._replace(support=renamed)), task.query.x)
    assert torch.allclose(one, two[:, permuted], atol=1e-9) == invariant


@pytest.mark.parametrize(("algorithm", "frozen"), [("anil", None), ("finetune", True)])
def test_the_inner_loop_changes_the_head_alone(build, algorithm, frozen):
    data, learner = build(algorithm)
    task = data.episodes("test")(torch.arange(1)).task(0)
    adapted = learner.adapt(task)
    assert set(adapted) == {"head.weight", "head.bias"}


def test_prototypes_are_where_proto_maml_starts(build):
    """Without inner steps Proto-MAML is a prototypical network."""
    data, proto = build("protonet")
    _, proto_maml = build("proto_maml")
    proto_maml.load_state_dict(proto.state_dict())
    batch = data.episodes("test")(torch.arange(4))
    torch.testing.assert_close(proto_maml.evaluate(batch).before, proto.evaluate(batch).after)


@pytest.mark.parametrize(
    "algorithm", [a for a in ANY_WAYS if a not in ("r2d2", "in_context", "cnp")]
)
def test_what_learns_classes_learns_nothing_else(algorithm):
    cfg = metadraw.compose(f"algorithm={algorithm}", "experiment=sinusoids")
    with pytest.raises(Exception, match=r"objective: \w+ learns classes: must be classification"):
        metadraw.build(cfg)


# ---- MAML++ ------------------------------------------------------------------------------------


def test_multi_step_weights_by_hand(build):
    """Two inner steps, four epochs: the mean over both steps has share 1, 3/4, 1/2, 1/4, 0."""
    algorithm = build("maml_pp", "algorithm.multi_step_epochs=4")[1].algorithm
    for epoch, expected in enumerate(
        [[1 / 2, 1 / 2], [3 / 8, 5 / 8], [1 / 4, 3 / 4], [1 / 8, 7 / 8], [0, 1], [0, 1]]
    ):
        algorithm.begin_epoch(epoch)
        assert algorithm.step_weights == pytest.approx(expected)


def test_derivative_order_annealing(build):
    algorithm = build("maml_pp", "algorithm.first_order_epochs=2")[1].algorithm
    orders = []
    for epoch in range(4):
        algorithm.begin_epoch(epoch)
        orders.append(algorithm.first_order)
    assert orders == [True, True, False, False]


def test_running_statistics_are_an_average_of_what_each_step_saw(build):
    """The first layer sees the images' convolution, whatever the step: checked by hand."""
    data, learner = build("maml_pp")
    algorithm = learner.algorithm
    batch = data.episodes("train")(torch.arange(4))
    means, _ = learner.meta_gradients(batch)
    conv = algorithm.network[0][0]
    with torch.no_grad():
        seen = torch.stack([conv(x).mean(dim=(0, 2, 3)) for x in batch.support.x]).mean(dim=0)
    torch.testing.assert_close(means["network.0.1.running_mean"][0], seen)
    assert means["network.0.1.running_mean"].shape == (3, 4)  # K + 1 steps, channels
    assert not torch.equal(means["network.3.1.running_var"][0], means["network.3.1.running_var"][2])
    for name, parameter in algorithm.named_parameters():
        parameter.grad = means[name]
    algorithm.outer_step(means, torch.optim.SGD(algorithm.parameters(), lr=0))
    torch.testing.assert_close(algorithm.get_buffer("0-1-running_mean")[0], 0.1 * seen)
    torch.testing.assert_close(
        algorithm.get_buffer("3-1-running_var"), 0.9 + 0.1 * means["network.3.1.running_var"]
    )


def test_running_statistics_normalise_in_evaluation(build):
    """A query example's logits do not depend on the others, nor the adapted network on N*K."""
    running = "learner.query_statistics=running"
    data, learner = build("maml_pp", "data.shots=3", running)
    batch = data.episodes("test")(torch.arange(2))
    whole = learner.evaluate(batch)
    part = batch._replace(query=Examples(batch.query.x[:, :5], batch.query.y[:, :5]))
    torch.testing.assert_close(learner.evaluate(part).after, whole.after[:, :5])
    with torch.no_grad():
        for name in learner.algorithm.statistics:
            name = name.removeprefix("network.").replace(".", "-")
            learner.algorithm.get_buffer(name).mul_(1.5)
    assert not torch.allclose(learner.evaluate(batch).after, whole.after)
    _, other = build("maml_pp", "data.shots=3")
    assert not torch.allclose(other.evaluate(part).after, other.evaluate(batch).after[:, :5])


def test_meta_gradients_are_those_of_training_mode_in_any_mode(build):
    data, learner = build("maml_pp", "learner.query_statistics=running")
    batch = data.episodes("train")(torch.arange(2))
    training, _ = learner.meta_gradients(batch)
    evaluating, _ = learner.eval().meta_gradients(batch)
    assert not learner.training
    assert all(torch.equal(training[name], evaluating[name]) for name in training)


def test_running_statistics_where_there_are_none(build):
    with pytest.raises(Exception, match="query_statistics=running: MAML keeps no running"):
        build("maml", "learner.query_statistics=running")


@pytest.mark.parametrize("switch", ["per_step_statistics", "per_step_norm"])
def test_per_step_batch_norm_without_batch_norm(build, switch):
    with pytest.raises(InputError, match=f"{switch}=true: the network has no batch norm"):
        build("lslr", "model.norm=layer", f"algorithm.{switch}=true")


def test_more_steps_in_evaluation_than_in_training(build):
    data, learner = build("maml_pp", "algorithm.eval_inner_steps=6")
    batch = data.episodes("test")(torch.arange(2))
    assert learner.evaluate(batch).after.isfinite().all()


def test_what_is_learned_is_logged_by_layer_and_step_and_drawn(tiny_for, tmp_path):
    train(metadraw.compose(*tiny_for("maml_pp")))
    rows = columns(tmp_path / "run")
    for row in rows:
        for name in (
            "inner_lr/0.0.weight/0",
            "inner_lr/head.bias/1",
            "norm_weight/3.1/2",
            "norm_bias/0.1/0",
            "running_mean/0.1/2",
            "running_var/3.1/0",
        ):
            assert float(row[name]) == float(row[name])
    assert rows[0]["running_var/0.1/0"] != rows[1]["running_var/0.1/0"]
    assert (tmp_path / "run" / "learned.png").stat().st_size > 10_000


# ---- the others --------------------------------------------------------------------------------


def test_hypergradient_descent_by_hand(build):
    """Two gradients g, h of the network: the outer rate rises by its rate times g * h."""
    _, learner = build(
        "alpha_maml", "algorithm.outer_hyper_lr=0.001", "algorithm.inner_hyper_lr=0.5"
    )
    algorithm = learner.algorithm
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    products = []
    for step in range(3):
        torch.manual_seed(step)
        means = {name: torch.randn_like(p) for name, p in algorithm.named_parameters()}
        means["inner_lr"] = torch.tensor(0.004)
        for name, parameter in algorithm.named_parameters():
            parameter.grad = means[name].clone()
        flat = torch.cat(
            [means[n].flatten() for n, _ in algorithm.named_parameters() if n != "inner_lr"]
        )
        products.append(flat)
        algorithm.outer_step(means, optimizer)
    expected = 0.1 + 0.001 * (products[1] @ products[0] + products[2] @ products[1]).item()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-4)
    assert algorithm.learned()["outer_lr/all"].item() == pytest.approx(expected, rel=1e-4)
    assert algorithm.inner_lr.item() == pytest.approx(0.01 - 3 * 0.5 * 0.004, rel=1e-4)


def test_too_few_classes_to_pre_train(tiny_for):
    with pytest.raises(InputError, match=r"algorithm.classes=9: the data have 345 classes"):
        train(metadraw.compose(*tiny_for("finetune"), "algorithm.classes=9"))
