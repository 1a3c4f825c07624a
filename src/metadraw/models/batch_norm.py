"""Batch norm for few-shot tasks, and the statistics that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metadraw.errors import InputError


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The layers of a network that normalise by batch statistics, by name."""
    return {name: m for name, m in _layers(network) if not m.track_running_stats}


def _layers(network: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, m) for name, m in network.named_modules() if isinstance(m, _BatchNorm))


def refuse_running_statistics(network: nn.Module) -> None:
    """Check that the network's forward pass changes nothing in it.

    Raises:
        InputError: a batch norm layer that would update its running statistics.
    """
    for name, layer in _layers(network):
        if layer.track_running_stats and layer.training:
            raise InputError(
                f"model: layer {name} updates running batch-norm statistics, which would leak from "
                "one task into others: build it with track_running_stats=False, or put it in "
                "evaluation mode (.eval()) to normalise by its current statistics"
            )


def freeze_statistics(network: nn.Module) -> None:
    """Let batch norm normalise by fixed statistics instead of those of each batch.

    Its layers get buffers ``running_mean`` and ``running_var``, zeros and ones ``[channels]`` until
    others are loaded, and are in evaluation mode, in which `metadraw.algorithms.Algorithm` leaves
    them.

    Args:
        network: the one that changes.

    Raises:
        InputError: it has no batch norm that uses batch statistics.
    """
    layers = batch_norms(network).values()
    if not layers:
        raise InputError(f"{type(network).__name__} has no batch norm that uses batch statistics")
    for layer in layers:
        layer.track_running_stats = True
        like = layer.weight if layer.affine else torch.empty(0)
        layer.register_buffer("running_mean", like.new_zeros(layer.num_features))
        layer.register_buffer("running_var", like.new_ones(layer.num_features))
        # Not used, but PyTorch adds it to a state dict of unknown version that lacks it.
        layer.register_buffer("num_batches_tracked", torch.tensor(0, device=like.device))
        layer.eval()


class TaskBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the statistics of the current batch.

    It keeps no running statistics: an adapted network exists for one task only, and an in-place
    update inside the inner loop would be a side effect. An algorithm may pass ``running_mean`` and
    ``running_var`` through `torch.func.functional_call`; evaluation mode then uses them.

    Args:
        channels: of the input ``[B, channels, H, W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, in the parameters' dtype."""
        # Under bf16-mixed the input is bfloat16, and PyTorch has no backward pass for mixed dtypes.
        return super().forward(x.to(self.weight.dtype))


@contextmanager
def statistics_of(weight: Tensor, network: nn.Module) -> Iterator[None]:
    """Within this context, batch norm normalises all rows by weighted statistics.

    Padding has weight 0. If the rows are a support set with weight 1 and a query set with weight 0,
    the prediction for a query example does not depend on the others; without this context the query
    set is normalised by its own statistics (transductively). Bronskill et al. 2020 ("TaskNorm",
    section 3) compare the two.

    Args:
        weight: ``[B]`` float, how much each row of a batch counts in mean and variance.
        network: the one whose `torch.nn.BatchNorm` layers change.
    """

    def renormalise(module: nn.Module, args: tuple[Any, ...], _: Tensor) -> Tensor:
        assert isinstance(module, _BatchNorm)
        affine = module.weight is not None
        x = args[0].to(module.weight.dtype) if affine else args[0]
        mean, variance, _ = _weighted(x, weight)
        # Written out: PyTorch's batch norm has no gradient with respect to given statistics.
        scale = (variance + module.eps).rsqrt()
        if not affine:
            return (x - mean) * scale
        return (x - mean) * (module.weight.view_as(mean[0]) * scale) + module.bias.view_as(mean[0])

    hooks = [layer.register_forward_hook(renormalise) for layer in batch_norms(network).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weighted(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, and the number of values behind them."""
    over, values = [0, *range(2, x.ndim)], weight.sum() * x[0, 0].numel()
    share = weight.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) / values
    mean = (x * share).sum(over, keepdim=True)
    return mean, ((x - mean).square() * share).sum(over, keepdim=True), values


@contextmanager
def batch_statistics(
    network: nn.Module, weight: Tensor | None = None
) -> Iterator[dict[str, Tensor]]:
    """Within this context, record the batch norm statistics of a forward pass.

    Args:
        network: the one whose `torch.nn.BatchNorm` layers are recorded.
        weight: ``[B]``, how much each row of the batch counts; all count equally if `None`.

    Yields:
        After a forward pass: mean and unbiased variance ``[channels]`` of each layer's input, as
        ``<layer>.running_mean`` and ``<layer>.running_var``.
    """
    statistics: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            # Under bf16-mixed the input is bfloat16, too coarse for averaging many values.
            x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
            values: Tensor | float = x[:, 0].numel()
            if weight is None and x.is_cpu:  # by batch norm itself, five times as fast as var_mean
                x = x.detach()
                _, mean, scale = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 0.0)
                biased = scale.square().reciprocal().nan_to_num(posinf=0.0)  # it has no 1 / 0
            elif weight is None:
                biased, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
            else:
                mean, biased, values = _weighted(x, weight)
            mean, variance = mean.flatten(), biased.flatten() * values / (values - 1)
            statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"] = mean, variance

        return record

    hooks = [
        layer.register_forward_pre_hook(recorder(name))
        for name, layer in batch_norms(network).items()
    ]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()
