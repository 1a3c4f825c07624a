"""Heads of a classifier: class means, nearest prototypes, linear systems, cosine similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        labels: ``[B]`` int64 in 0..N-1, any number of examples of each; the mean of none is 0.
        ways: N.
        weight: ``[B]``, how much each example counts; all count equally if `None`.

    Returns:
        ``[N, F]``.
    """
    members = one_hot(labels, ways).to(features.dtype)  # [B, N]
    if weight is not None:
        members = members * weight[:, None]
    count = members.sum(dim=0)
    return (members / count.where(count > 0, 1)).T @ features


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


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of ``matrix @ x = right``, in float32 at least: PyTorch has none in less.

    Args:
        matrix: ``[M, M]``.
        right: ``[M, K]``.

    Returns:
        ``[M, K]``, of the type of ``right``.
    """
    wide = torch.promote_types(right.dtype, torch.float32)
    return torch.linalg.solve(matrix.to(wide), right.to(wide)).to(right.dtype)


def whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """What makes deviations of these covariances of equal variance, and log-determinants.

    Computed in float32 at least, as by `solve`.

    Args:
        covariance: ``[N, M, M]``, positive definite.

    Returns:
        W ``[N, M, M]``, with which ``|W x|^2`` is the squared Mahalanobis distance of x from 0, and
        ``[N]``, the logarithms of the determinants of the covariances, both of their type.
    """
    wide = torch.promote_types(covariance.dtype, torch.float32)
    root = torch.linalg.cholesky(covariance.to(wide))
    unit = torch.eye(root.shape[-1], dtype=wide, device=root.device).expand_as(root)
    white = torch.linalg.solve_triangular(root, unit, upper=False)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return white.to(covariance.dtype), log_det.to(covariance.dtype)


def cosine(features: Tensor, weight: Tensor) -> Tensor:
    """The cosine of each feature ``[B, F]`` with each class's weights ``[N, F]``, ``[B, N]``."""
    return F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T


class CosineClassifier(nn.Linear):
    """A linear layer without bias, of scaled cosines.

    Args:
        features: F, of the input ``[B, F]``.
        classes: N, of the output ``[B, N]``.
        scale: what cosines are multiplied by.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.scale * cosine(x, self.weight)
