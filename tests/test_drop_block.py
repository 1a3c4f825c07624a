"""DropBlock: what it drops, and that meta-gradients go through it."""

import pytest
import torch
import torch.nn.functional as F
from test_meta_gradients import LR, maml, reference_mean, relative_error
from torch.func import vmap

import metadraw
from metadraw import InputError
from metadraw.models.drop_block import DropBlock2d
from metadraw.models.resnet import Dropout, ResNet12


def dropped(layer, *shape, dtype=torch.float32):
    """Where values are dropped, and the factor of all others."""
    y = layer(torch.ones(shape, dtype=dtype))
    assert y.unique().numel() <= 2
    return y == 0, y.max().item()


@pytest.mark.parametrize("rate", [0.1, 0.3])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped(rate, size, dtype):
    torch.manual_seed(0)
    zeros, factor = dropped(DropBlock2d(rate, size), 8, 16, 64, 64, dtype=dtype)
    share = zeros.float().mean().item()
    # Squares overlap, so that it is a little less than the rate.
    gamma = rate / size**2 * 64**2 / (64 - size + 1) ** 2
    inner = zeros[..., size:-size, size:-size].float().mean().item()
    assert inner == pytest.approx(1 - (1 - gamma) ** size**2, rel=0.03)
    assert share == pytest.approx(rate, rel=0.2)
    # The mean of a map stays the same.
    assert factor * (1 - share) == pytest.approx(1, rel=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("size", [2, 5])
def test_whole_squares_are_dropped(size):
    torch.manual_seed(0)
    zeros, _ = dropped(DropBlock2d(0.1, size), 4, 8, 20, 17)
    assert zeros.any()
    assert not (zeros == zeros[:1, :1]).all()  # not the same for every channel
    whole = -F.max_pool2d(-zeros.float(), size, stride=1)  # squares within it
    again = F.max_pool2d(F.pad(whole, [size - 1] * 4), size, stride=1)
    assert torch.equal(again, zeros.float())


@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_square_is_no_larger_than_the_map(side):
    """Then whole channels are dropped, at exactly the rate."""
    torch.manual_seed(0)
    zeros, _ = dropped(DropBlock2d(0.3, 5), 100, 200, side, side)
    channels = zeros.flatten(2).float().mean(-1)
    assert set(channels.unique().tolist()) == {0.0, 1.0}
    assert channels.mean().item() == pytest.approx(0.3, abs=0.02)


def test_nothing_is_dropped_in_evaluation():
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(DropBlock2d(0.5, 3).eval()(x), x)
    assert torch.equal(DropBlock2d(0.0, 3)(x), x)
    everything = DropBlock2d(1 - 1e-7, 8)(x[:1, :1])
    assert everything.isfinite().all()


def test_gradients_and_tasks_of_a_map():
    layer = DropBlock2d(0.3, 2)

    def fixed(x):
        torch.manual_seed(0)
        return layer(x)

    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert (fixed(x) == 0).any()
    assert torch.autograd.gradcheck(fixed, x)
    assert torch.autograd.gradgradcheck(fixed, x)
    same = torch.ones(4, 2, 3, 5, 5)
    zeros = vmap(layer, randomness="different")(same) == 0
    assert not (zeros == zeros[:1]).all()
    factors = vmap(layer, randomness="different")(same).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(factors, torch.ones(4))  # each task's own mean stays


RESNET = ["model=resnet12", "model.widths=[4,4,6,6]", "model.dropout=0.3"]


def test_the_last_two_blocks_of_resnet_12():
    def kinds(size):
        network = ResNet12(widths=[4, 4, 6, 6], dropout=0.1, drop_block=size)
        return [type(block.end[2]) for block in list(network)[:4]]

    assert kinds(0) == [Dropout] * 4
    assert kinds(5) == [Dropout] * 2 + [DropBlock2d] * 2
    for size in (-1, 0.5, True):
        with pytest.raises(InputError, match=f"model.drop_block={size}: must be a whole number"):
            ResNet12(widths=[4], drop_block=size)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_meta_gradient_equals_autograd(recompute, size, tiny):
    own = [o for o in tiny if not o.startswith("model.")]
    options = ["learner.map_tasks=loop", f"learner.recompute_steps={recompute}"]
    options += [f"algorithm.inner_lr={LR}", f"model.drop_block={size}"]
    data, learner = metadraw.build(metadraw.compose(*own, *RESNET, *options))
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(1)).to(torch.float64)
    torch.manual_seed(1)
    found, _ = learner.meta_gradients(batch)
    torch.manual_seed(1)
    expected, _ = reference_mean(maml, learner.algorithm.train(), batch, steps=2)
    assert relative_error(found, expected) < 1e-9
    torch.manual_seed(2)
    other, _ = learner.meta_gradients(batch)
    assert relative_error(other, expected) > 1e-2


@pytest.mark.parametrize("size", [0, 2])
def test_recomputed_steps_drop_the_same(size, tiny):
    own = [o for o in tiny if not o.startswith("model.")]
    data, learner = metadraw.build(metadraw.compose(*own, *RESNET, f"model.drop_block={size}"))
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(3)).to(torch.float64)
    found = []
    for again in (False, True):
        learner.algorithm.recompute_steps = again
        torch.manual_seed(1)
        found.append(learner.meta_gradients(batch)[0])
    assert relative_error(*found) < 1e-9
