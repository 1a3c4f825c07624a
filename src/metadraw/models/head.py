"""The head of a network, its last linear layer, for algorithms that treat it on its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.errors import InputError


class OpenLinear(nn.Module):
    """The place of a linear layer whose weight and bias come with each task.

    They are given by `torch.func.functional_call`, with any number of outputs; without them the
    layer hands its input on, so that the network gives the features of an image.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None)
        self.register_buffer("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, F]`` -> ``[B, N]`` with weight ``[N, F]`` and bias ``[N]``, or as it is."""
        return x if self.weight is None else F.linear(x, self.weight, self.bias)


def open_head(network: nn.Module) -> tuple[str, nn.Linear]:
    """Put an `OpenLinear` in the place of a network's last linear layer.

    Returns:
        The layer's name in the network, and the layer that was there.

    Raises:
        InputError: a network without a linear layer.
    """
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not layers or not layers[-1][0]:
        raise InputError(
            f"model: {type(network).__name__} has no torch.nn.Linear as a layer: this algorithm "
            "builds a new head for each task in place of the last one"
        )
    name, layer = layers[-1]
    opened = OpenLinear()
    for other, module in list(network.named_modules(remove_duplicate=False)):
        if module is layer:
            parent, _, attribute = other.rpartition(".")
            setattr(network.get_submodule(parent), attribute, opened)
    return name, layer


def linear(features: Tensor, head: dict[str, Tensor], place: str) -> Tensor:
    """What the linear layer in some place gives: logits ``[B, N]`` of features ``[B, F]``.

    Args:
        features: ``[B, F]``.
        head: ``place.weight`` ``[N, F]`` and, where the layer has a bias, ``place.bias`` ``[N]``.
        place: the layer's name.
    """
    return F.linear(features, head[f"{place}.weight"], head.get(f"{place}.bias"))


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """``[B]`` int64 in 0..N-1 -> ``[B, N]`` bool; PyTorch's own cannot be mapped over tasks."""
    return labels[:, None] == torch.arange(ways, device=labels.device)


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """The prototypes of a support set: the mean feature of each class.

    Snell et al. 2017 ("Prototypical Networks for Few-shot Learning"), equation 1.

    Args:
        features: ``[B, F]``.
        labels: ``[B]`` int64 in 0..N-1, any number of examples of each.
        ways: N.

    Returns:
        ``[N, F]``.
    """
    members = one_hot(labels, ways).to(features.dtype)  # [B, N]
    return (members / members.sum(dim=0)).T @ features


def nearest_prototype(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer that says how near a feature is to each prototype.

    -|f - c|^2 = 2 c f - |c|^2 - |f|^2, whose last term is the same for all classes, so that
    softmax does not see it (Snell et al. 2017, section 2.4).

    Args:
        prototypes: ``[N, F]``.

    Returns:
        ``[N, F]`` and ``[N]``.
    """
    return 2 * prototypes, -prototypes.square().sum(dim=1)
