"""Networks of the timm library: small ones, with weights of files that the tests write."""

from functools import partial

import pytest
import torch
from test_meta_gradients import LR, maml, reference_mean, relative_error
from torch import nn

import metadraw
from metadraw import FewShot, InputError
from metadraw.algorithms.gradient import twice_differentiable
from metadraw.models import timm as ours
from metadraw.models.batch_norm import batch_norms, statistics_of
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import build_learner
from metadraw.training.train import train

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

#: Batch norm with and without an activation in the same layer, layer norm, attention.
NAMES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]
SIZE = 32


@pytest.fixture
def trained():
    """A network of timm with its classifier, and statistics that matter, in evaluation mode."""

    def make(name, channels=3):
        torch.manual_seed(0)
        size = {"img_size": SIZE} if timm.get_pretrained_cfg(name).fixed_input_size else {}
        network = timm.create_model(name, in_chans=channels, **size)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
        return network.eval()

    return make


@pytest.fixture
def file_of(trained, tmp_path):
    """A file of such a network's parameters."""

    def make(name, suffix="safetensors", channels=3):
        path, state = tmp_path / f"{name}.{suffix}", trained(name, channels).state_dict()
        if suffix == "safetensors":
            safetensors.save_file(state, path)
        else:
            torch.save(state, path)
        return path

    return make


def learner_of(name, *overrides):
    """A learner for images of 32 pixels, and random ones."""
    own = ["model=timm", f"model.name={name}", f"data.image_size={SIZE}", "data.tasks_per_batch=2"]
    cfg = metadraw.compose(*overrides, *own)
    data = metadraw.training.factory.instantiate(cfg.data)
    batch, random = data.example(tasks=2), torch.Generator().manual_seed(0)
    support, query = (
        e._replace(x=torch.rand(e.x.shape, generator=random)) for e in (batch.support, batch.query)
    )
    return build_learner(cfg, data), batch._replace(support=support, query=query)


@pytest.mark.parametrize("experiment", ["experiment=pretrain", "algorithm=protonet", "maml"])
@pytest.mark.parametrize("name", [*NAMES, "resnet10t"])
def test_outer_steps(name, experiment):
    loop = ["algorithm=maml", "algorithm.inner_steps=1"] if experiment == "maml" else [experiment]
    learner, batch = learner_of(name, *loop)
    optimizer = torch.optim.SGD(learner.algorithm.parameters(), lr=0.01)
    learned = set()
    for _ in range(2):  # some layers of timm start at zero, and hide others in the first step
        means, values = learner.meta_gradients(batch)
        assert values["loss"].isfinite().all()
        for name, parameter in learner.algorithm.meta_parameters().items():
            parameter.grad = means[name]
            learned |= {name} if means[name].any() else set()
        learner.algorithm.outer_step(means, optimizer)
    assert len(learned) > 0.9 * len(means)
    assert learner.evaluate(batch).after.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_meta_gradient_equals_autograd(name):
    learner, batch = learner_of(name, "algorithm.inner_steps=2", f"algorithm.inner_lr={LR}")
    learner = learner.double()
    batch = batch.to(torch.float64)
    found, _ = learner.meta_gradients(batch)
    with twice_differentiable(learner.algorithm.network):
        expected, _ = reference_mean(maml, learner.algorithm, batch, steps=2)
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", NAMES)
def test_weights_give_the_features_of_timm(name, channels, suffix, trained, file_of):
    """Adapted to one channel, those of images that have the same values in all three."""
    network = ours.create(
        name=name, image_channels=channels, image_size=SIZE, weights=file_of(name, suffix)
    )
    theirs = trained(name)
    theirs.reset_classifier(0)
    x = torch.rand(5, channels, SIZE, SIZE)
    with torch.no_grad():
        features, expected = network(x), theirs(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x[:1]), features[:1], rtol=1e-4, atol=1e-5)
    assert not batch_norms(network)


def test_weights_of_one_channel_are_not_adapted(trained, file_of):
    path = file_of("test_resnet", channels=1)
    network = ours.create(name="test_resnet", image_channels=1, weights=path)
    expected = trained("test_resnet", channels=1).conv1[0].weight
    assert torch.equal(network.conv1[0].weight, expected)


@pytest.mark.parametrize("name", NAMES[:2])
def test_the_statistics_of_each_batch(name, trained, file_of):
    options = {"image_channels": 3, "weights": file_of(name), "statistics": "batch"}
    network = ours.create(name=name, **options).double().eval()
    theirs = trained(name).double().train()
    theirs.reset_classifier(0)
    x = torch.rand(5, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), theirs(x))
        # An activation in the same layer as batch norm is kept when statistics are replaced.
        weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
        with statistics_of(weight, network):
            weighted = network(x)
        torch.testing.assert_close(weighted[:3], network(x[:3]))
    assert all(buffer is None for m in batch_norms(network).values() for buffer in m.buffers())


def test_frozen_statistics_stay(file_of):
    path = file_of("test_resnet")
    learner, batch = learner_of("test_resnet", f"model.weights={path}", "algorithm.inner_steps=1")
    statistics = {n: b.clone() for n, b in learner.algorithm.network.named_buffers()}
    assert sum(n.endswith("running_var") for n in statistics) == 15
    learner.meta_gradients(batch)
    for name, buffer in learner.algorithm.network.named_buffers():
        assert torch.equal(buffer, statistics[name])
    # They need none of the algorithm's own.
    learner, _ = learner_of("test_resnet", "experiment=pretrain", f"model.weights={path}")
    assert learner.query_statistics == "running"


def test_running_statistics_of_an_untrained_network():
    learner, batch = learner_of("test_efficientnet", "experiment=pretrain")
    means, _ = learner.meta_gradients(batch)
    assert len(learner.algorithm.statistics) == 2 * 13
    for parameter in learner.algorithm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.algorithm.outer_step(means, torch.optim.SGD(learner.algorithm.parameters(), lr=0.1))
    x = torch.rand(4, 1, SIZE, SIZE)
    with learner._mode(training=False), torch.no_grad():
        together, alone = learner.algorithm.features(x), learner.algorithm.features(x[:1])
    torch.testing.assert_close(alone, together[:1])


def test_a_run_needs_its_weights_no_more(tiny, file_of, tmp_path):
    path = file_of("test_resnet", "pth")
    own = [o for o in tiny if not o.startswith(("model.", "paths."))]
    own += ["model=timm", "model.name=test_resnet", f"model.weights={path}"]

    def run(name, *more):
        return train(metadraw.compose(*own, f"paths.output_dir={tmp_path / name}", *more))

    whole = run("whole")
    assert whole["config"]["model"]["weights"] == "test_resnet.pth"  # without the folder
    run("part", "trainer.max_epochs=1")
    path.unlink()
    last, best = tmp_path / "part/checkpoints/last.ckpt", tmp_path / "whole/checkpoints/best.ckpt"
    assert run("resumed", f"ckpt_path={last}")["test"]["loss"] == whole["test"]["loss"]
    again = evaluate(
        metadraw.compose(f"ckpt_path={best}", f"paths.output_dir={tmp_path / 'e'}", config="eval")
    )
    assert again["test"]["loss"] == pytest.approx(whole["test"]["loss"])
    data, learner = metadraw.load(best)
    task = data.episodes("test")(torch.tensor([0])).task(0)
    examples = {str(label): task.support.x[label : label + 1] for label in range(5)}
    probabilities = FewShot(best).adapt(examples).probabilities(task.query.x)
    expected = learner.answer(learner.adapt(task), task).softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "resnet19"}, r"model.name=resnet19: timm has no such network: did you mean \w+"),
        ({"name": "?"}, r"model.name=\?: timm has no such network: timm.list_models\(\) has all"),
        ({"statistics": "none"}, "model.statistics=none: must be batch, frozen or null"),
        ({"statistics": "frozen"}, "model.statistics=frozen: has no statistics without"),
        ({"weights": "none.pth"}, "model.weights=none.pth: there is no such file"),
        ({"name": "levit_128s"}, "model.name=levit_128s: stages.0.blocks.0.attn caches"),
        ({"name": "resnet18.a1_in1"}, r"timm has no such network: did you mean resnet18\.a1_in1k"),
    ],
)
def test_one_line(options, says):
    with pytest.raises(InputError, match=says):
        ours.create(**{"name": "test_resnet"} | options)


def test_weights_that_do_not_fit(file_of, tmp_path):
    path = file_of("test_convnext")
    with pytest.raises(InputError, match=r"test_resnet cannot .*conv1.0.weight"):
        ours.create(name="test_resnet", weights=path)
    state = safetensors.load_file(file_of("test_resnet"))
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save(state, path := tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"size mismatch for layer1.0.conv1.weight") as caught:
        ours.create(name="test_resnet", weights=path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"other\.pth: not a readable file of weights"):
        ours.create(name="test_resnet", weights=path)
    torch.save(partial(print), path)  # whose code would run
    with pytest.raises(InputError, match=r"other\.pth: not a readable file of weights"):
        ours.create(name="test_resnet", weights=path)


def test_weights_without_a_connection(monkeypatch):
    def offline(*_, **options):
        assert options["pretrained"]
        raise OSError("the hub cannot be reached\nat all")

    monkeypatch.setattr(timm, "create_model", offline)
    says = "=pretrained: resnet18 cannot start from them: OSError: the hub cannot be reached$"
    with pytest.raises(InputError, match=says):
        ours.create(name="resnet18", weights="pretrained")


def test_a_network_that_cannot_be_mapped(monkeypatch):
    """With LSTMs, in a small size."""
    four = {"layers": [1] * 4, "embed_dims": [8] * 4, "hidden_sizes": [2] * 4}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **four))
    with pytest.raises(InputError, match=r"\(LSTM\) .* it works with learner.map_tasks=loop$"):
        learner_of("sequencer2d_s", "algorithm.inner_steps=1")
    learner_of("sequencer2d_s", "algorithm.inner_steps=1", "learner.map_tasks=loop")
