"""The report's three figures for a task, and the confidence interval of a mean over tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_precision

from metadraw.algorithms import Outcome

NAMES = ("loss", "acc", "precision", "loss_before", "acc_before", "precision_before")


def task_metrics(outcome: Outcome, query_y: Tensor) -> dict[str, Tensor]:
    """Loss, accuracy and weighted precision of each task, after and before adaptation.

    The weighted precision is the mean of the classes' precisions, weighted by their query
    examples, 0 for a class that was never predicted (as scikit-learn's
    ``precision_score(average="weighted", zero_division=0)``).

    Args:
        outcome: of T tasks, logits ``[T, N*Q, N]``.
        query_y: ``[T, N*Q]`` int64.

    Returns:
        ``[T]`` by name, in the order of `NAMES`; float32, or float64 if the logits are, because
        half precision would round an accuracy to three digits.
    """
    columns = []
    for logits in (outcome.after, outcome.before):
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        predicted = logits.argmax(dim=-1)
        loss = F.cross_entropy(logits.flatten(0, 1), query_y.flatten(), reduction="none")
        precision = multiclass_precision(
            predicted,
            query_y,
            num_classes=logits.shape[-1],
            average="weighted",
            multidim_average="samplewise",
            validate_args=False,
        )
        columns += [
            loss.view(query_y.shape).mean(dim=1),
            (predicted == query_y).to(loss.dtype).mean(dim=1),
            precision.to(loss.dtype),
        ]
    return dict(zip(NAMES, columns, strict=True))


def confidence_interval(values: Tensor) -> Tensor:
    """Half the width of the normal 95 % confidence interval of the mean of ``[T]`` values.

    1.96 standard errors over tasks, as few-shot papers report; NaN for a single task.
    """
    return 1.96 * values.std() / len(values) ** 0.5
