"""The outer step and evaluation, whatever the algorithm."""

import signal

import lightning as L
import pytest
import torch
from conftest import each_algorithm, one_of
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import metadraw
from metadraw import DivergedError, InputError
from metadraw.algorithms import Outcome
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Examples
from metadraw.models.conv4 import Conv4
from metadraw.objectives.classification import Classification
from metadraw.results.metrics import confidence_interval, task_metrics
from metadraw.training.learner import MetaLearner
from metadraw.training.train import train


def parameters(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def fit(tiny, *overrides):
    """Train a tiny config in float64; returns the final meta-parameters."""
    cfg = metadraw.compose(*tiny, "trainer.precision=64-true", *overrides)
    data, learner = metadraw.build(cfg)
    trainer = Trainer(
        **{k: v for k, v in cfg.trainer.items() if k != "_target_"},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(learner.double(), data)
    return parameters(learner), trainer


def test_one_outer_step_is_sgd_on_the_mean_meta_gradient(tiny_learner):
    data, learner = tiny_learner("optimizer=sgd", "optimizer.momentum=0", "trainer.max_epochs=1")
    gradients, _ = learner.meta_gradients(next(iter(data.train_dataloader())))
    expected = {
        n: p.detach() - 0.01 * gradients[n] for n, p in learner.algorithm.named_parameters()
    }
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, num_sanity_val_steps=0, limit_val_batches=0, **options
    )
    trainer.fit(learner, data)
    for name, parameter in learner.algorithm.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_more_processes_than_tasks_are_refused(tiny):
    with pytest.raises(Exception, match="cannot be divided among 2 processes"):
        fit(tiny, "trainer=ddp_cpu", "data.tasks_per_batch=1")


@pytest.fixture
def hears_ctrl_c():
    """Ctrl-C as in a foreground program; a background one may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_does_not_leave_a_task_in_the_parameters(tiny_learner, times):
    """A first Ctrl-C waits for the whole batch, a second does not."""
    data, learner = tiny_learner()
    batch = next(iter(data.train_dataloader()))
    expected, _ = learner.meta_gradients(batch)
    finished = []

    def press(*_):
        if not finished:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        finished.append(True)

    handle = learner.algorithm.network.register_forward_pre_hook(press)
    with pytest.raises(KeyboardInterrupt):
        learner.meta_gradients(batch)
    handle.remove()
    assert bool(finished) == (times == 1)
    found, _ = learner.meta_gradients(batch)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_gradient_clipping(tiny_learner):
    data, learner = tiny_learner(
        "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1", "learner.gradient_clip_norm=0.01"
    )
    before = parameters(learner)
    Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    ).fit(learner, data)
    assert (parameters(learner) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_cosine_schedule_steps_once_an_epoch(tiny):
    _, trainer = fit(tiny, "scheduler=cosine", "trainer.max_epochs=2")
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    _, trainer = fit(tiny, "scheduler=cosine", "trainer.max_epochs=2", "scheduler.T_max=4")
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0005)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer._target_=torch.optim.RMSprop"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-mixed", "algorithm=maml_pp", "learner.query_statistics=running"],
    ],
)
def test_other_optimisers_and_precisions_train(tiny, overrides):
    found = train(metadraw.compose(*tiny, *overrides))
    assert 0 <= found["test"]["acc"] <= 1


def test_adapting_one_task_is_what_evaluation_does(tiny_learner):
    data, learner = tiny_learner("data.shots=3")
    batch = data.episodes("test")(torch.arange(3))
    outcome = learner.evaluate(batch)
    task = batch.task(1)
    adapted = learner.adapt(task)
    torch.testing.assert_close(learner.predict(adapted, task.query.x), outcome.after[1])
    start = learner.adapt(task, steps=0)
    torch.testing.assert_close(learner.predict(start, task.query.x), outcome.before[1])


def test_query_statistics(tiny_learner):
    """With the support set's statistics, a query example's logits do not depend on the others."""
    for statistics, independent in (("support", True), ("query", False)):
        data, learner = tiny_learner("data.shots=3", f"learner.query_statistics={statistics}")
        batch = data.episodes("test")(torch.arange(2))
        whole = learner.evaluate(batch).after[:, :5]
        part = batch._replace(query=Examples(batch.query.x[:, :5], batch.query.y[:, :5]))
        assert torch.allclose(learner.evaluate(part).after, whole, atol=1e-5) == independent


def test_support_statistics_against_batch_norm_by_hand():
    from metadraw.models.batch_norm import statistics_of

    layer = nn.BatchNorm2d(3, track_running_stats=False)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    x = torch.randn(7, 3, 4, 4)
    with statistics_of(torch.tensor([1.0] * 5 + [0.0] * 2), nn.Sequential(layer)):
        found = layer(x)
    mean, variance = x[:5].mean((0, 2, 3)), x[:5].var((0, 2, 3), unbiased=False)
    shape = (1, 3, 1, 1)
    by_hand = (x - mean.view(shape)) / (variance.view(shape) + layer.eps).sqrt()
    by_hand = by_hand * layer.weight.view(shape) + layer.bias.view(shape)
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(found[:5], layer(x[:5]))


def test_more_inner_steps_at_evaluation(tiny_learner):
    data, learner = tiny_learner("algorithm.eval_inner_steps=7")
    assert (learner.algorithm.inner_steps, learner.algorithm.eval_inner_steps) == (2, 7)
    batch = data.episodes("test")(torch.arange(1))
    seven = learner.evaluate(batch).after[0]
    adapted = learner.adapt(batch.task(0), steps=7)
    torch.testing.assert_close(seven, learner.predict(adapted, batch.query.x[0]))


def test_diverged_training_stops_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    """The learning rate of the second epoch is absurd."""
    cfg = metadraw.compose(
        *tiny,
        "optimizer=sgd",
        "model.norm=none",
        "trainer.max_epochs=9",
        "scheduler=cosine",
        "scheduler._target_=torch.optim.lr_scheduler.StepLR",
        "~scheduler.T_max",
        "~scheduler.eta_min",
        "+scheduler.step_size=1",
        "+scheduler.gamma=1e20",
    )
    with pytest.raises(DivergedError, match=r"not finite at step 6 \(epoch 2\).*last\.ckpt"):
        train(cfg)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_task_that_is_not_finite_stops_before_the_next_checkpoint(tiny_learner, tmp_path):
    data, learner = tiny_learner("trainer.max_epochs=3")
    images = data.episodes("train")

    class Spoiled(L.LightningDataModule):
        def train_dataloader(self):
            batches = [images(torch.arange(b * 4, b * 4 + 4)) for b in range(3)]
            batches[1].support.x[2, 0] = float("nan")
            return DataLoader(batches, batch_size=None)

    checkpoint = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    options = {"logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", max_epochs=3, callbacks=[checkpoint], **options)
    with pytest.raises(DivergedError, match=r"not finite at step 3 \(epoch 1\)"):
        trainer.fit(learner, Spoiled())
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("algorithm", each_algorithm())
def test_classes_of_identical_and_of_empty_drawings(algorithm, tiny_for):
    """No differences to learn from, and no variance for batch norm: still finite."""
    data, learner = metadraw.build(metadraw.compose(*tiny_for(algorithm)))
    batch = data.episodes("train")(torch.arange(4))
    batch.support.x[:2], batch.query.x[:2] = 0.5, 0.5
    batch.support.x[2:], batch.query.x[2:] = 0.0, 0.0
    if any(p.requires_grad for p in learner.algorithm.parameters()):
        gradients, values = learner.meta_gradients(batch)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert values["loss"].isfinite().all()
    assert learner.evaluate(batch).after.isfinite().all()


@pytest.mark.parametrize("algorithm", each_algorithm())
@pytest.mark.parametrize("precision", one_of("bf16-mixed", "bf16-true"))
def test_precisions(algorithm, precision, tiny_for):
    """Lightning's, of an outer step and of evaluation."""
    cfg = metadraw.compose(*tiny_for(algorithm), "scheduler=none")
    data, learner = metadraw.build(cfg)
    batch = data.episodes("train")(torch.arange(2))
    if precision == "bf16-true":
        learner, batch = learner.bfloat16(), batch.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        if any(p.requires_grad for p in learner.algorithm.parameters()):
            means, values = learner.meta_gradients(batch)
            for name, parameter in learner.algorithm.meta_parameters().items():
                parameter.grad = means[name]
            optimizer = learner.make_optimizer(learner.outer_parameters())
            learner.algorithm.outer_step(means, optimizer)
            assert values["loss"].isfinite().all()
        assert learner.evaluate(batch).after.isfinite().all()


@pytest.mark.parametrize("algorithm", each_algorithm())
def test_sixty_ways(algorithm, tiny_for):
    """60 of the 69 classes of meta-test, one shot each."""
    overrides = [*tiny_for(algorithm), "data.ways=60", "data.tasks_per_batch=2"]
    data, learner = metadraw.build(metadraw.compose(*overrides))
    if any(p.requires_grad for p in learner.algorithm.parameters()):
        _, values = learner.meta_gradients(data.episodes("train")(torch.arange(2)))
        assert values["loss"].isfinite().all()
    logits = learner.evaluate(data.episodes("test")(torch.arange(2))).after
    assert logits.shape == (2, 60, 60)
    assert logits.isfinite().all()


def test_any_network_can_take_its_place(make_sampler):
    """Dropout, no batch norm, another structure: the learner depends on none of these."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 6)
    )
    settings = {"inner_lr": 0.1, "inner_steps": 2, "eval_inner_steps": 2}
    algorithm = MAML(network, nn.Linear(6, 5), Classification(ways=5), **settings)
    learner = MetaLearner(algorithm, torch.optim.Adam)
    gradients, _ = learner.meta_gradients(make_sampler()(torch.arange(3)))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "instance"}, "model.norm=instance: must be one of batch, layer, none"),
        ({"hidden_channels": 0}, "model.hidden_channels=0"),
        ({"hidden_channels": "half"}, "model.hidden_channels=half: must be a whole number"),
        ({"image_size": 20.5}, "model.image_size=20.5: must be a whole number"),
        ({"image_size": 15}, "model.image_size=15"),
    ],
)
def test_conv4_refuses(options, says):
    with pytest.raises(InputError, match=says):
        Conv4(**options)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (84, 3), (32, 3)])
def test_conv4_takes_other_images(size, channels):
    network = Conv4(image_size=size, image_channels=channels)
    assert network(torch.rand(4, channels, size, size)).shape == (4, 20 * (size // 16) ** 2)


def test_conv4_is_the_reports_network():
    """With a head of 20 * N + N."""
    assert sum(p.numel() for p in Conv4().parameters()) == (
        (9 * 1 * 20 + 20) + 3 * (9 * 20 * 20 + 20) + 4 * 2 * 20
    )


def test_metrics_worked_by_hand():
    """Labels 0 1 1 2, predicted 0 0 1 2: precisions 1/2, 1, 1, weighted (1/2 + 2 + 1) / 4."""
    predicted = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
    y = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2]])
    logits = 50.0 * nn.functional.one_hot(predicted, 3)
    # Before adaptation class 0 always: precision 1/4, weighted by the one example of class 0.
    always = torch.zeros(2, 4, 3)
    outcome = Outcome(before=always, after=logits)
    values = task_metrics(Classification(ways=3), outcome, Examples(logits, y))
    assert values["acc"].tolist() == [0.75, 1.0]
    assert values["precision"].tolist() == [0.875, 1.0]
    assert values["acc_before"].tolist() == [0.25, 0.25]
    assert values["precision_before"].tolist() == [0.0625, 0.0625]
    assert values["loss"].tolist() == pytest.approx([12.5, 0.0])
    assert values["loss_before"].tolist() == pytest.approx([1.0986, 1.0986], abs=1e-4)


def test_confidence_interval_worked_by_hand():
    """0 0 1 1: standard deviation sqrt(1/3), 1.96 * sqrt(1/3) / sqrt(4)."""
    values = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert confidence_interval(values).item() == pytest.approx(1.96 * 3**-0.5 / 2)
