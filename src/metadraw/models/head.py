"""Class labels and features: one-hot labels, class means, and the linear layer they define."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """``[B]`` int64 in 0..N-1 -> ``[B, N]`` bool; PyTorch's own does not support ``vmap``."""
    return labels[:, None] == torch.arange(ways, device=labels.device)


def class_means(
    features: Tensor, labels: Tensor, ways: int, weight: Tensor | None = None
) -> Tensor:
    """The prototypes of a support set: the mean feature of each class.

    Snell et al. 2017 ("Prototypical Networks for Few-shot Learning"), equation 1.

    Args:
        features: ``[B, F]``.
        labels: ``[B]`` int64 in 0..N-1, any number of examples of each.
        ways: N.
        weight: ``[B]``, how much each example counts; all count equally if `None`.

    Returns:
        ``[N, F]``.
    """
    members = one_hot(labels, ways).to(features.dtype)  # [B, N]
    if weight is not None:
        members = members * weight[:, None]
    return (members / members.sum(dim=0)).T @ features


def nearest_prototype(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer that scores how near a feature is to each prototype.

    -|f - c|^2 = 2 c f - |c|^2 - |f|^2; the last term is the same for all classes, so it cancels in
    the softmax (Snell et al. 2017, section 2.4).

    Args:
        prototypes: ``[N, F]``.

    Returns:
        ``[N, F]`` and ``[N]``.
    """
    return 2 * prototypes, -prototypes.square().sum(dim=1)
