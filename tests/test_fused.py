"""The fused block against PyTorch's own layers, in float64: value, first and second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from metadraw.models.batch_norm import statistics_of_first
from metadraw.models.conv4 import Block, Conv4
from metadraw.models.convolve import convolve
from metadraw.models.norm_relu_pool import norm_relu_pool

EPS = 1e-5


def fused(x, w, gamma, beta):
    return norm_relu_pool(convolve(x, w), gamma, beta, EPS)


def plain(x, w, gamma, beta):
    z = F.conv2d(x, w, padding=w.shape[-1] // 2)
    return F.max_pool2d(F.relu(F.batch_norm(z, None, None, gamma, beta, True, 0.0, EPS)), 2)


def inputs(tasks=(), size=7, kernel=3):
    """Images [B, 2, size, size] with empty corners, weights of 4 channels, one gamma negative."""
    random = torch.Generator().manual_seed(0)
    x, w, gamma, beta = (
        torch.randn(*tasks, *shape, dtype=torch.float64, generator=random)
        for shape in [(3, 2, size, size), (4, 2, kernel, kernel), (4,), (4,)]
    )
    # As in drawings, many windows have four equal values: pooling takes the first.
    x[..., : size // 2, : size // 2] = 0
    assert (gamma < 0).any()
    assert (gamma > 0).any()
    return x, w, gamma, beta


def second(block):
    """A function of the first derivatives by all inputs: its gradient has the second ones."""

    def loss(*args):
        return block(*args).pow(3).sum()

    return lambda *args: sum((g.sin() * g).sum() for g in grad(loss, (0, 1, 2, 3))(*args))


@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_layers(size, kernel):
    args = inputs(size=size, kernel=kernel)
    torch.testing.assert_close(fused(*args), plain(*args))
    for found, expected in zip(
        grad(second(fused), (0, 1, 2, 3))(*args),
        grad(second(plain), (0, 1, 2, 3))(*args),
        strict=True,
    ):
        assert (found - expected).norm() < 1e-10 * expected.norm()


def test_numerical_derivatives():
    args = [value.requires_grad_() for value in inputs(size=4)]
    assert torch.autograd.gradcheck(fused, args)
    assert torch.autograd.gradgradcheck(fused, args)


@pytest.mark.parametrize("shared", [(), (0,), (1,), (2, 3), (1, 2, 3)])
def test_mapped_over_tasks(shared):
    """With some of the inputs the same for all tasks; two maps, one in the other."""
    args = [value[0, 0] if i in shared else value for i, value in enumerate(inputs(tasks=(2, 3)))]
    dims = tuple(None if i in shared else 0 for i in range(4))
    gradient = grad(second(fused), (0, 1, 2, 3))
    found = vmap(vmap(gradient, dims), dims)(*args)
    for i in range(2):
        for j in range(3):
            one = [value if k in shared else value[i, j] for k, value in enumerate(args)]
            expected = grad(second(plain), (0, 1, 2, 3))(*one)
            for a, b in zip(found, expected, strict=True):
                assert (a[i, j] - b).norm() < 1e-10 * b.norm()


def test_differentiated_outside_of_the_map():
    """As with PyTorch's own layers it cannot be: there, that is silently wrong."""
    x, w, gamma, beta = inputs(tasks=(3,))
    w.requires_grad_()
    (found,) = torch.autograd.grad(vmap(fused)(x, w, gamma, beta).pow(2).sum(), w)
    for i in range(3):
        one = w[i].detach().requires_grad_()
        (expected,) = torch.autograd.grad(plain(x[i], one, gamma[i], beta[i]).pow(2).sum(), one)
        torch.testing.assert_close(found[i], expected)


def test_third_derivatives_are_refused():
    args = inputs()
    with pytest.raises(NotImplementedError, match=r"model\.fused=false"):
        grad(lambda x: grad(lambda x: second(fused)(x, *args[1:]))(x).sum())(args[0])


def hooked(block):
    block[1].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (lambda block: None, True),
        (lambda block: block.eval(), True),
        (hooked, False),
        (lambda block: setattr(block, "fused", False), False),
    ],
)
def test_where_it_is_used(change, used, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "metadraw.models.conv4.convolve", lambda *args: calls.append(1) or convolve(*args)
    )
    block: Block = Conv4(ways=5)[0]
    change(block)
    x = torch.rand(3, 1, 28, 28)
    y = block(x)
    assert bool(calls) == used
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(x).dtype == torch.float32
    assert len(calls) == used
    torch.testing.assert_close(y, plain(x, block[0].weight, block[1].weight, block[1].bias))


@torch.no_grad()
def test_other_statistics_take_the_layers():
    network = Conv4(ways=5)
    x = torch.rand(6, 1, 28, 28)
    with statistics_of_first(4, network):
        first = network(x)
    assert not torch.allclose(first, network(x), atol=1e-3)
    torch.testing.assert_close(first[:4], network(x[:4]))


def test_single_precision_is_kept():
    """Sums over many values, one after the other in channels-last layout, must not lose digits."""
    x, w, gamma, beta = inputs(tasks=(8,), size=40)
    gradient = vmap(grad(second(fused), (0, 1, 2, 3)))
    found = gradient(x.float(), w.float(), gamma.float(), beta.float())
    expected = gradient(x, w, gamma, beta)
    reference = vmap(grad(second(plain), (0, 1, 2, 3)))(
        x.float(), w.float(), gamma.float(), beta.float()
    )
    for ours, theirs, exact in zip(found, reference, expected, strict=True):
        assert (ours - exact).norm() < 3 * (theirs - exact).norm()
