"""Recomputed inner steps: constant memory, the same gradient for any function."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import run
from torch import nn
from torch.func import grad, vmap

import metadraw
from metadraw.algorithms.inner_loop import gradient_step, gradient_steps
from metadraw.algorithms.recompute import grad_by_steps
from metadraw.errors import InputError
from metadraw.training.factory import instantiate
from metadraw.training.learner import MetaLearner

MEASURE = r"""
import json, re, sys, torch, metadraw
for overrides in json.loads(sys.argv[1]):
    data, learner = metadraw.build(metadraw.compose(*overrides))
    learner.meta_gradients(data.episodes("train")(torch.arange(12)))
    # Not getrusage: a process there begins with the peak of the one that started it.
    print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status", encoding="ascii").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_steps(synthetic_folder):
    shared = ["data.source=path", f"data.path={synthetic_folder}", "data.samples_per_class=20"]
    shared += ["trainer=cpu", "learner.tasks_per_chunk=null"]
    # One after the other in one process, which reports its peak so far.
    measured = [
        [*shared, f"algorithm.inner_steps={steps}", f"learner.recompute_steps={recomputed}"]
        for steps, recomputed in ((5, "true"), (15, "true"), (15, "false"))
    ]
    done = run([sys.executable, "-c", MEASURE, json.dumps(measured)])
    assert done.returncode == 0, done.stderr
    few, many, kept = map(int, done.stdout.split())
    assert many < 1.2 * few
    assert kept > 1.4 * few


def nested(meta):
    """What an algorithm may do: learned rates, steps used twice, other operations between them."""

    def loss(params):
        return (params["w"] * meta["scale"]).sin().sum() + params["w"].pow(2).sum()

    path = gradient_steps(loss, {"w": meta["w"] * 2}, steps=3, lr=meta["rate"])
    between = {"w": path[-1]["w"] * meta["w"] + meta["scale"]}
    last = gradient_step(loss, between, lr=0.1)
    value = (last["w"] * path[2]["w"] * path[1]["w"]).cos().sum() * meta["scale"].sum()
    return value, last["w"]


def test_any_use_of_the_steps():
    random = torch.Generator().manual_seed(0)
    meta = {
        "w": torch.randn(4, 3, dtype=torch.float64, generator=random),
        "scale": torch.randn(4, 3, dtype=torch.float64, generator=random),
        "rate": torch.rand(4, dtype=torch.float64, generator=random),
    }
    expected, value = vmap(grad(nested, has_aux=True))(meta)
    found, again = vmap(grad_by_steps(nested))(meta)
    torch.testing.assert_close(again, value)
    for name in meta:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_a_step_from_an_earlier_one_than_the_last_is_not_silently_wrong():
    def function(meta):
        def loss(params):
            return params["w"].sin().sum()

        path = gradient_steps(loss, meta, steps=2, lr=0.1)
        last = gradient_step(loss, {"w": path[1]["w"]}, lr=0.1)
        return last["w"].sum(), last

    found, _ = grad_by_steps(function)({"w": torch.ones(3)})
    assert found["w"].isnan().all()


def test_without_steps():
    found, aux = grad_by_steps(lambda p: (p["w"].pow(3).sum(), p["w"]))({"w": torch.tensor([2.0])})
    assert (found["w"].item(), aux.item()) == (12.0, 2.0)


class Noisy(nn.Module):
    """Random numbers of every kind, in a network of two layers."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.body, self.drop = nn.Linear(784, 8), nn.Dropout(0.5)
        self.recurrent = nn.LSTM(8, 8, num_layers=2, dropout=0.5) if kind == "lstm" else None
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.body(x.flatten(1)).tanh()
        if self.kind == "module":
            x = self.drop(x)
        elif self.kind == "function":
            x = F.dropout(x, 0.5, training=self.training)
        elif self.kind == "noise":
            x = x + torch.randn_like(x)
        else:
            x, _ = self.recurrent(x)
        return self.head(x)


@pytest.mark.parametrize("algorithm", ["maml", "anil", "maml_pp", "proto_maml"])
@pytest.mark.parametrize("kind", ["module", "function", "noise", "lstm"])
def test_the_same_random_numbers_again(kind, algorithm, make_sampler):
    off = ["per_step_statistics", "per_step_norm"] if algorithm == "maml_pp" else []
    options = [*(f"algorithm.{key}=false" for key in off), "algorithm.inner_lr=0.1"]
    cfg = metadraw.compose(f"algorithm={algorithm}", *options, "algorithm.inner_steps=3")
    torch.manual_seed(0)
    algorithm = instantiate(cfg.algorithm)(Noisy(kind), nn.Linear(5, 5), instantiate(cfg.objective))
    learner = MetaLearner(algorithm, torch.optim.SGD, tasks_per_chunk=2).double()
    batch = make_sampler()(torch.arange(3)).to(torch.float64)

    def gradients(again):
        algorithm.recompute_steps = again
        torch.manual_seed(1)
        if kind == "lstm":  # which vmap cannot map
            meta = {name: p.detach() for name, p in algorithm.meta_parameters().items()}
            found, outcome = algorithm.train().meta_gradient(meta, batch.task(0))
        else:
            found, outcome = learner.meta_gradients(batch)
        return found, outcome, torch.rand(1)

    expected, found = gradients(again=False), gradients(again=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_is_true_or_false(tiny):
    _, learner = metadraw.build(metadraw.compose(*tiny))
    with pytest.raises(InputError, match="must be true or false"):
        MetaLearner(learner.algorithm, torch.optim.SGD, recompute_steps="yes")
