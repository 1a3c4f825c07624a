"""A network that cannot be trained is refused before anything starts, in one line."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import metadraw
from metadraw import InputError
from metadraw.algorithms.maml import MAML
from metadraw.training.factory import build_learner

LOOP = "it works with learner.map_tasks=loop"


class Net(nn.Module):
    """A linear layer, something in the middle, and another."""

    def __init__(self, *, size=784, middle=None):
        super().__init__()
        self.body, self.middle = nn.Linear(size, 8), middle() if middle else nn.Tanh()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.middle(self.body(x.flatten(1))))


class Recurrent(Net):
    """Reads an image row by row."""

    def __init__(self, kind):
        super().__init__()
        self.rows = kind(28, 8, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.head(self.rows(x.squeeze(1))[0][:, -1])


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OldFunction(torch.autograd.Function):
    """Without a ``setup_context``, which ``torch.func`` needs."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


class Calls(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def once(x):
    """PyTorch has no second derivative of these distances."""
    return torch.cdist(x[:, None], x.new_ones(1, 8, 8), p=1.5)[:, 0]


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


def spectral(wrap):
    net = Net()
    net.body = wrap(net.body)
    return net


def lazy():
    net = Net()
    net.body = nn.LazyLinear(8)
    return net


def compiled():
    return torch.compile(Net(), backend="eager")


def noisy():
    """Draws all kinds of random numbers."""

    def noise(x):
        return x + random.random() + float(np.random.rand()) + 0.1 * torch.randn_like(x)

    return Net(middle=partial(Calls, noise))


NETWORKS = {
    "lstm": partial(Recurrent, nn.LSTM),
    "gru": partial(Recurrent, nn.GRU),
    "branches": partial(Net, middle=Branches),
    "old function": partial(Net, middle=partial(Calls, OldFunction.apply)),
    "once": partial(Net, middle=partial(Calls, once)),
    "counts": partial(Net, middle=Counts),
    "spectral": partial(spectral, nn.utils.parametrizations.spectral_norm),
    "old spectral": partial(spectral, nn.utils.spectral_norm),
    "lazy": lazy,
    "compiled": compiled,
    "pair": Pair,
    "size": partial(Net, size=700),
    "image": nn.Identity,
    "noisy": noisy,
    "plain": Net,
}


def make(name):
    """The target of the config."""
    return NETWORKS[name]()


def build(name, *overrides):
    cfg = metadraw.compose(*overrides)
    cfg.model = {"_target_": f"{__name__}.make", "name": name}
    return build_learner(cfg)


@pytest.mark.parametrize(
    ("name", "layer", "help"),
    [
        ("lstm", r"layer rows \(LSTM\)", LOOP),
        ("gru", r"layer rows \(GRU\)", LOOP),
        ("branches", r"layer middle \(Branches\)", LOOP),
        ("old function", r"layer middle \(Calls\)", LOOP),
        ("once", r"layer middle \(Calls\)", "it works with algorithm.first_order=true"),
        ("counts", r"layer middle \(Counts\)", "its buffers do not change"),
        ("spectral", r"layer body.parametrizations.weight.0 \(_SpectralNorm\)", "not change"),
        ("old spectral", r"layer body \(Linear\) changes its buffer weight_u", "not change"),
        ("pair", "Pair", "returns a tuple: it must return one tensor of features"),
        ("size", r"layer body \(Linear\)", "5x784 and 700x8"),
        ("image", "Identity returns features", r"\[5, 1, 28, 28\] for 5 inputs: must be \[5, F\]"),
    ],
)
def test_one_line_names_the_layer_and_what_helps(name, layer, help):
    with pytest.raises(InputError, match=f"^model: {layer}.*{help}") as refused:
        build(name)
    line = str(refused.value)
    assert "\n" not in line
    assert len(line) < 400
    # The advice is true.
    if "it works with" in line:
        build(name, *line.partition("it works with ")[2].split())


def test_lazy_layers_find_their_sizes(make_sampler):
    gradients, _ = build("lazy").meta_gradients(make_sampler()(torch.arange(2)))
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_compiled(make_sampler):
    """With vmap, if this version of PyTorch can, or one line; with the loop."""
    line = LOOP
    try:
        build("compiled")
    except InputError as refused:
        line = str(refused)
    assert LOOP in line
    batch = make_sampler()(torch.arange(2)).to(torch.float64)
    found = []
    for name in ("compiled", "plain"):
        torch.manual_seed(0)
        learner = build(name, "learner.map_tasks=loop").double()
        gradients, _ = learner.meta_gradients(batch)
        found.append({key.replace("_orig_mod.", ""): value for key, value in gradients.items()})
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


class Broken(MAML):
    def adapt(self, task, steps):
        return [{}["nothing"]]


def test_a_broken_algorithm_is_not_called_a_networks_fault():
    cfg = metadraw.compose()
    cfg.algorithm._target_ = f"{__name__}.Broken"
    with pytest.raises(InputError, match=r"^algorithm: Broken fails in a trial step: KeyError"):
        build_learner(cfg)


def test_recomputed_steps_are_by_torch_func():
    with pytest.raises(InputError, match=r"works with learner.map_tasks=loop learner.recompute_"):
        build("old function", "learner.recompute_steps=true")


class Short(MAML):
    def predict(self, state, x):
        return super().predict(state, x)[1:]


def test_an_algorithm_has_an_output_for_each_query_and_way():
    cfg = metadraw.compose()
    cfg.algorithm._target_ = f"{__name__}.Short"
    with pytest.raises(InputError, match=r"algorithm: Short gives .*\[4, 5\].*must be \[5, 5\]"):
        build_learner(cfg)


def test_leaves_no_trace():
    """Later random numbers and the network stay the same, whatever the trial draws."""

    def states():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seeded():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seeded()
    made, _ = make("noisy"), nn.Linear(5, 5)  # the head
    expected = states()
    seeded()
    learner = build("noisy", "learner.map_tasks=loop")
    assert states() == expected
    found = learner.algorithm.network.state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(found[name], value)
    assert all(p.grad is None for p in learner.parameters())
