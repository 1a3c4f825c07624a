"""The fused blocks against PyTorch's layers, in float64: value, first and second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from metadraw.models.batch_norm import statistics_of
from metadraw.models.conv4 import Conv4
from metadraw.models.fused.conv_blocks import conv_blocks

EPS = 1e-5


def fused(x, *parameters):
    return conv_blocks(x, parameters[::3], parameters[1::3], parameters[2::3], EPS)


def plain(x, *parameters):
    for w, gamma, beta in zip(parameters[::3], parameters[1::3], parameters[2::3], strict=True):
        z = F.conv2d(x, w, padding=w.shape[-1] // 2)
        x = F.max_pool2d(F.relu(F.batch_norm(z, None, None, gamma, beta, True, 0.0, EPS)), 2)
    return x


def inputs(tasks=(), size=7, kernel=3, blocks=2):
    """Images [B, 2, size, size] with empty corners; w, gamma and beta of each 4-channel block."""
    random = torch.Generator().manual_seed(0)
    shapes = [(3, 2, size, size)]
    for i in range(blocks):
        shapes += [(4, 4 if i else 2, kernel, kernel), (4,), (4,)]
    values = [torch.randn(*tasks, *s, dtype=torch.float64, generator=random) for s in shapes]
    # As in drawings, many windows have four equal values: pooling takes the first.
    values[0][..., : size // 2, : size // 2] = 0
    for gamma in values[2::3]:
        gamma[..., 0], gamma[..., 1] = 0.7, -0.4
    return values


def second(block, by=None):
    """A function of first derivatives with respect to some inputs: its gradient is second-order."""

    def loss(*args):
        return block(*args).pow(3).sum()

    def of_first(*args):
        indices = tuple(range(len(args))) if by is None else by
        return sum((g.sin() * g).sum() for g in grad(loss, indices)(*args))

    return of_first


def gradient(function, args):
    return grad(function, tuple(range(len(args))))(*args)


@pytest.mark.parametrize(("size", "blocks"), [(4, 1), (7, 1), (7, 2), (9, 3)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_layers(size, blocks, kernel):
    args = inputs(size=size, kernel=kernel, blocks=blocks)
    torch.testing.assert_close(fused(*args), plain(*args))
    for found, expected in zip(
        gradient(second(fused), args), gradient(second(plain), args), strict=True
    ):
        assert (found - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("by", [(0,), (1, 2, 3), (6,), (0, 4)])
def test_first_derivatives_by_some(by):
    args = inputs()
    for found, expected in zip(
        gradient(second(fused, by), args), gradient(second(plain, by), args), strict=True
    ):
        assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("blocks", [1, 2])
def test_numerical_derivatives(blocks):
    args = [value.requires_grad_() for value in inputs(size=4, blocks=blocks)]
    assert torch.autograd.gradcheck(fused, args)
    assert torch.autograd.gradgradcheck(fused, args)


@pytest.mark.parametrize("shared", [(), (0,), (1,), (2, 3), tuple(range(1, 7))])
def test_mapped_over_tasks(shared):
    """With some inputs shared by all tasks; two nested maps."""
    args = [value[0, 0] if i in shared else value for i, value in enumerate(inputs(tasks=(2, 3)))]
    dims = tuple(None if i in shared else 0 for i in range(len(args)))
    function = grad(second(fused), tuple(range(len(args))))
    found = vmap(vmap(function, dims), dims)(*args)
    for i in range(2):
        for j in range(3):
            one = [value if k in shared else value[i, j] for k, value in enumerate(args)]
            for a, b in zip(found, gradient(second(plain), one), strict=True):
                assert (a[i, j] - b).norm() < 1e-10 * b.norm()


def test_differentiated_outside_of_the_map():
    """PyTorch's own layers are silently wrong here."""
    x, w, *others = inputs(tasks=(3,))
    w.requires_grad_()
    (found,) = torch.autograd.grad(vmap(fused)(x, w, *others).pow(2).sum(), w)
    for i in range(3):
        one = w[i].detach().requires_grad_()
        y = plain(x[i], one, *(value[i] for value in others))
        (expected,) = torch.autograd.grad(y.pow(2).sum(), one)
        torch.testing.assert_close(found[i], expected)


def test_third_derivatives_are_refused():
    args = inputs()
    with pytest.raises(NotImplementedError, match=r"model\.fused=false"):
        grad(lambda x: grad(lambda x: second(fused)(x, *args[1:]))(x).sum())(args[0])


def hooked(network):
    network[0][1].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (lambda network: None, True),
        (lambda network: network.eval(), True),
        (hooked, False),
        (lambda network: setattr(network, "fused", False), False),
    ],
)
def test_where_it_is_used(change, used, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "metadraw.models.conv4.conv_blocks", lambda *args: calls.append(1) or conv_blocks(*args)
    )
    network = Conv4()
    change(network)
    x = torch.rand(3, 1, 28, 28)
    y = network(x)
    assert bool(calls) == used
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(x)
    assert len(calls) == used
    *blocks, flatten = network
    parameters = [p for conv, norm, *_ in blocks for p in (conv.weight, *norm.parameters())]
    torch.testing.assert_close(y, flatten(plain(x, *parameters)))


@torch.no_grad()
def test_other_statistics_take_the_layers():
    network = Conv4()
    x = torch.rand(6, 1, 28, 28)
    with statistics_of(torch.tensor([1.0] * 4 + [0.0] * 2), network):
        first = network(x)
    assert not torch.allclose(first, network(x), atol=1e-3)
    torch.testing.assert_close(first[:4], network(x[:4]))


def test_single_precision_is_kept():
    """Sums over many values, one after the other in channels-last layout, must not lose digits."""
    exact = inputs(tasks=(8,), size=40, blocks=1)
    single = [value.float() for value in exact]
    of, reference = (
        vmap(grad(second(block), tuple(range(len(exact))))) for block in (fused, plain)
    )
    for ours, theirs, truth in zip(of(*single), reference(*single), of(*exact), strict=True):
        assert (ours - truth).norm() < 3 * (theirs - truth).norm()
