"""Weighted examples: padding changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from conftest import equal, of_kinds
from test_meta_gradients import REFERENCES, make_learner, relative_error
from torch import nn

from metadraw.data.episode import Episode, Examples, joined
from metadraw.models.batch_norm import statistics_of
from metadraw.models.head import class_means
from metadraw.objectives.classification import Classification
from metadraw.objectives.squared_error import SquaredError

PADDING = 3


def padded(examples):
    """With additional garbage rows of weight 0."""
    tasks, rows = examples.y.shape
    x = torch.cat([examples.x, 7 * torch.randn(tasks, PADDING, *examples.x.shape[2:])], dim=1)
    y = torch.cat([examples.y, torch.zeros(tasks, PADDING, dtype=examples.y.dtype)], dim=1)
    weight = torch.ones(tasks, rows + PADDING)
    weight[:, rows:] = 0
    # Anywhere among the others.
    order = torch.randperm(rows + PADDING)
    return Examples(x[:, order], y[:, order], {"weight": weight[:, order]})


# MANN reads examples in their order; test_varying.py has its padding.
PADDED = of_kinds(name for name in REFERENCES if name not in ("maml_pp, epoch 9", "mann"))


@pytest.mark.parametrize(
    ("name", "support_statistics"),
    [
        *(pytest.param(*case.values, False, marks=case.marks) for case in PADDED),
        *((name, True) for name in ("maml", "anil", "maml_pp, epoch 0", "protonet", "finetune")),
    ],
)
def test_padding_changes_no_meta_gradient(name, support_statistics, make_sampler):
    _, config, overrides, epoch = REFERENCES[name]
    torch.manual_seed(0)
    batch = make_sampler(shots=2)(torch.arange(3))
    with_padding = batch._replace(support=padded(batch.support), query=padded(batch.query))
    found = []
    for each in (batch, with_padding):
        learner = make_learner(config, 2, overrides)
        learner.algorithm.begin_epoch(epoch)
        learner.algorithm.support_statistics = support_statistics
        found.append(learner.meta_gradients(each.to(torch.float64)))
    (expected, values), (gradient, same) = found
    if config == "matching_net":  # before adaptation all classes tie, except for rounding
        for each in (same, values):
            del each["acc_before"], each["precision_before"]
    assert relative_error(gradient, expected) < 1e-9
    torch.testing.assert_close(same, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dims", [0, 2])
def test_weighted_statistics_by_hand(dims):
    """A weight of 2 counts the example twice."""
    layer = (nn.BatchNorm2d if dims else nn.BatchNorm1d)(3, track_running_stats=False).double()
    x = torch.randn(4, 3, *[5] * dims, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    with statistics_of(weight, layer):
        found = layer(x)
    twice = layer(x[[0, 1, 1, 3]])
    torch.testing.assert_close(found[[0, 1, 1, 3]], twice)


def test_objectives_by_hand():
    weight = {"weight": torch.tensor([1.0, 2.0, 0.0])}
    y = torch.tensor([0, 1, 1])
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
    losses = F.cross_entropy(logits, y, reduction="none")
    found = Classification(ways=2).metrics(logits, Examples(logits, y, weight))
    assert found["loss"].item() == pytest.approx(((losses[0] + 2 * losses[1]) / 3).item())
    assert found["acc"].item() == pytest.approx(1 / 3)
    # Class 0 is always guessed: precision 1/3, of one third of the weight.
    assert found["precision"].item() == pytest.approx(1 / 9)
    real = Examples(logits, torch.tensor([[0.0], [1.0], [5.0]]), weight)
    outputs = torch.tensor([[2.0], [4.0], [0.0]])
    assert SquaredError().loss(outputs, real).item() == pytest.approx((4 + 2 * 9) / 3)
    features, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 0, 1])
    means = class_means(features, labels, 2, torch.tensor([1.0, 3.0, 1.0]))
    assert means.flatten().tolist() == [1.75, 4.0]


def test_what_is_visible(make_sampler):
    for episode in (batch := make_sampler(shots=2)(torch.arange(3))), batch.task(1):
        seen = episode.visible
        assert seen.query.y.numel() == 0
        assert equal(seen._replace(query=episode.query), episode)
        assert torch.equal(seen.query.x, episode.query.x)
    assert batch.visible.query.y.shape == (3, 0)


def test_joined_examples():
    one = Examples(torch.ones(2, 4), torch.zeros(2), {"weight": torch.ones(2)})
    both = joined(one, one)
    assert (both.x.shape, both.y.shape, both.weight.shape) == ((4, 4), (4,), (4,))
    task = Episode(
        one, one, torch.tensor(3), sets={"unlabelled": one}, about={"goal": torch.ones(2)}
    )
    half = task.to(torch.float16)
    assert {half.sets["unlabelled"].x.dtype, half.about["goal"].dtype} == {torch.float16}
    assert half.number.dtype == torch.int64
