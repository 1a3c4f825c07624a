"""Networks with shared weights, frozen parts and buffers, in every algorithm, in float64."""

from functools import partial

import pytest
import torch
from conftest import each_algorithm
from test_meta_gradients import REFERENCES, STEPS, reference_mean, relative_error
from torch import nn

import metadraw
from metadraw import InputError
from metadraw.data.episode import Examples
from metadraw.training.factory import instantiate
from metadraw.training.learner import MetaLearner

WIDTH = 12


class Network(nn.Module):
    """784 pixels -> tanh layers, with the subclass's middle layers -> 5 features."""

    def __init__(self, bias=True):
        super().__init__()
        self.first = nn.Linear(784, WIDTH)
        self.middle = self.build()
        self.head = nn.Linear(WIDTH, 5, bias=bias)

    def build(self):
        return nn.Linear(WIDTH, WIDTH)

    def between(self, x):
        return self.middle(x)

    def forward(self, x):
        return self.head(self.between(self.first(x.flatten(1)).tanh()).tanh())


class OneLayerTwoNames(Network):
    def build(self):
        self.one = nn.Linear(WIDTH, WIDTH)
        self.other = self.one

    def between(self, x):
        return self.other(self.one(x).tanh())


class OneWeightTwoLayers(Network):
    def build(self):
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight

    between = OneLayerTwoNames.between


class ABuffer(Network):
    def build(self):
        self.register_buffer("position", torch.linspace(-1, 1, WIDTH))
        return nn.Linear(WIDTH, WIDTH)

    def between(self, x):
        return self.middle(x + self.position)


class FrozenBody(Network):
    def build(self):
        self.first.requires_grad_(False)
        return nn.Linear(WIDTH, WIDTH)


class FrozenBatchNorm(Network):
    """A pre-trained layer: fixed running statistics, in evaluation mode; learned weights."""

    def build(self):
        norm = nn.BatchNorm1d(WIDTH)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        return norm.eval()


class PlainBatchNorm(Network):
    def build(self):
        return nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False)


NETWORKS = {
    network.__name__: network
    for network in Network.__subclasses__()
    if network is not PlainBatchNorm
}
NETWORKS["no bias"] = partial(Network, bias=False)
#: The references of other algorithms are written for the layers of `Conv4`.
ANY_NETWORK = [name for name in REFERENCES if "_pp" not in name and name not in ("alpha_maml",)]
ANY_NETWORK.remove("multi-step loss")


def learner_of(
    network, algorithm="maml", steps=3, overrides=STEPS, optimizer="adam", bias=True, **options
):
    overrides = [override.replace("%d", str(steps)) for override in overrides]
    cfg = metadraw.compose(f"algorithm={algorithm}", f"optimizer={optimizer}", *overrides)
    make = partial(instantiate(cfg.optimizer), **options.pop("outer", {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        head = nn.Linear(5, 5, bias=bias)
    algorithm = instantiate(cfg.algorithm)(network, head, instantiate(cfg.objective))
    return MetaLearner(algorithm, make, **options).double()


#: One of each way to use a network; two kinds of network are tested with all.
_WAYS = ["maml", "fomaml", "anil", "proto_maml", "protonet", "reptile"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in NETWORKS
        for name in (ANY_NETWORK if kind in ("OneWeightTwoLayers", "FrozenBatchNorm") else _WAYS)
    ],
)
def test_equals_per_task_autograd(kind, name, make_sampler):
    reference, config, overrides, _ = REFERENCES[name]
    torch.manual_seed(5)
    learner = learner_of(NETWORKS[kind](), config, overrides=overrides)
    own = {name: p for name, p in learner.algorithm.named_parameters() if p.requires_grad}
    places = [dict(m._parameters) for m in learner.algorithm.modules()]
    batch = make_sampler(shots=2)(torch.arange(3)).to(torch.float64)
    found, _ = learner.meta_gradients(batch)
    found = {name: found[name] for name in own}  # without what else is averaged over the batch
    # Every layer has its own parameters again, not those of a task.
    after = [dict(m._parameters) for m in learner.algorithm.modules()]
    for one, other in zip(places, after, strict=True):
        assert all(other[key] is parameter for key, parameter in one.items())
    expected, _ = reference_mean(reference, learner.algorithm, batch, 3)
    assert relative_error(found, expected) < 1e-9


@pytest.fixture
def train_steps(make_sampler):
    """The state before and after outer steps like the learner's."""

    def take(learner, steps=2):
        optimizer = learner.configure_optimizers()
        before = {name: value.clone() for name, value in learner.algorithm.state_dict().items()}
        for step in range(steps):
            batch = make_sampler(shots=2)(torch.arange(3) + 3 * step).to(torch.float64)
            means, _ = learner.meta_gradients(batch)
            for name, parameter in learner.algorithm.meta_parameters().items():
                parameter.grad = means[name]
            learner.algorithm.outer_step(means, optimizer)
            learner.evaluate(batch)
        return before, learner.algorithm.state_dict()

    return take


@pytest.mark.parametrize("algorithm", each_algorithm("scratch", "maml_pp"))
@pytest.mark.parametrize("outer", [("adam", {"weight_decay": 0.1}), ("sgd", {"weight_decay": 0.1})])
def test_what_is_frozen_stays_bit_identical(algorithm, outer, train_steps, make_sampler):
    class Frozen(FrozenBatchNorm):
        def build(self):
            self.first.requires_grad_(False)
            self.last = nn.Linear(WIDTH, WIDTH)
            return super().build().requires_grad_(False)

        def between(self, x):
            return self.last(self.middle(x))

    optimizer, options = outer
    overrides = (
        STEPS if "inner_steps" in metadraw.compose(f"algorithm={algorithm}").algorithm else []
    )
    learner = learner_of(
        Frozen(), algorithm, overrides=overrides, optimizer=optimizer, outer=options
    )
    before, after = train_steps(learner)
    frozen = {name for name in before if ".first." in name or ".middle." in name}
    assert len(frozen) == 7
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["network.last.weight"], after["network.last.weight"])
    assert all(p.grad is None for p in learner.parameters() if not p.requires_grad)
    task = make_sampler()(torch.arange(1)).to(torch.float64).task(0)
    adapted = learner.adapt(task)
    assert not any(".first." in name or ".middle." in name for name in adapted)


def test_a_shared_layer_moves(train_steps):
    for algorithm, overrides in (("maml", STEPS), ("anil", STEPS), ("protonet", [])):
        learner = learner_of(OneLayerTwoNames(), algorithm, overrides=overrides)
        before, after = train_steps(learner)
        for name in ("network.one.weight", "network.other.weight"):
            assert not torch.equal(before[name], after[name])
        assert torch.equal(after["network.one.weight"], after["network.other.weight"])


def test_batch_norm_that_would_update_its_statistics_is_refused():
    with pytest.raises(InputError, match=r"model: layer 1 updates .* evaluation mode"):
        learner_of(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 5)))


def test_a_layer_in_evaluation_mode_stays_in_it(make_sampler):
    """Including dropout, whatever the mode of everything else."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5).eval(), nn.Linear(784, 5))
    learner = learner_of(network)
    batch = make_sampler()(torch.arange(2)).to(torch.float64)
    one, other = (learner.train().meta_gradients(batch)[0] for _ in range(2))
    assert relative_error(one, other) == 0
    assert not network[1].training
    assert network[2].training


@pytest.mark.parametrize("network", [PlainBatchNorm, FrozenBatchNorm])
def test_support_statistics_of_batch_norm_without_weights(network, make_sampler):
    torch.manual_seed(5)
    batch = make_sampler(shots=3)(torch.arange(2)).to(torch.float64)
    network = network()
    own, of_support = (
        learner_of(network, query_statistics=whose).evaluate(batch).after
        for whose in ("query", "support")
    )
    # A layer's own statistics do not depend on the batch.
    assert torch.allclose(own, of_support) == isinstance(network, FrozenBatchNorm)
    one_by_one = learner_of(network, query_statistics="support").evaluate(
        batch._replace(query=Examples(batch.query.x[:, :1], batch.query.y[:, :1]))
    )
    torch.testing.assert_close(one_by_one.after, of_support[:, :1])


def test_per_step_norm_needs_weights():
    with pytest.raises(InputError, match="no batch norm with a weight to learn"):
        learner_of(PlainBatchNorm(), "maml_pp")
