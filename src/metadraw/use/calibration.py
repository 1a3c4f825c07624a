"""Probabilities that mean something, and "none of these": both fitted on meta-validation tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from metadraw.data.episode import Episode
from metadraw.data.tasks import Sampler
from metadraw.training.learner import MetaLearner

#: Bins of confidence in the expected calibration error, as in Guo et al. 2017.
BINS = 15


class Calibration(NamedTuple):
    """What a checkpoint's logits mean.

    Guo et al. 2017 ("On Calibration of Modern Neural Networks", section 4.2) fit the temperature;
    Hendrycks et al. 2022 ("Scaling Out-of-Distribution Detection for Real-World Settings", section
    3) recognise what is of no class by its highest logit.
    """

    #: Logits are divided by it before the softmax.
    temperature: float = 1.0
    #: A picture whose highest logit is below is like none of the classes.
    threshold: float = float("-inf")


class Answers(NamedTuple):
    """The logits of a task's N classes for pictures of these classes, and of another class."""

    logits: Tensor  # [B, N]
    labels: Tensor  # [B] int64
    others: Tensor  # [B', N]


@torch.no_grad()
def answers(learner: MetaLearner, sampler: Sampler, tasks: int) -> list[Answers]:
    """The answers to the first tasks of a split, of which each leaves out the last class.

    Args:
        learner: which classifies each picture independently of the others.
        sampler: of tasks with one class more than are learned.
        tasks: how many.
    """
    return [_answer(learner, sampler(torch.tensor([i])).task(0)) for i in range(tasks)]


def _answer(learner: MetaLearner, task: Episode) -> Answers:
    ways = len(task.about["classes"]) - 1
    known = task.support.y < ways
    support = task.support._replace(x=task.support.x[known], y=task.support.y[known])
    learned = task._replace(support=support, about={"classes": task.about["classes"][:ways]})
    logits = learner.answer(learner.adapt(learned), learned)
    given = task.query.y < ways
    return Answers(logits[given], task.query.y[given], logits[~given])


def fit(found: Iterable[Answers], refused: float) -> Calibration:
    """The temperature of the smallest cross-entropy, and the threshold that refuses a share.

    Args:
        found: answers to meta-validation tasks.
        refused: the share of pictures of given classes that the threshold takes for none of them.
    """
    found = list(found)
    # In the inverse temperature, the cross-entropy is convex.
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.stack(
            [F.cross_entropy(each.logits.double() * inverse, each.labels) for each in found]
        ).mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    highest = torch.cat([each.logits.amax(dim=1) for each in found])
    return Calibration(1 / inverse.item(), torch.quantile(highest, refused).item())


def measure(found: Iterable[Answers], calibration: Calibration) -> dict[str, float]:
    """How well a calibration holds on tasks.

    Returns:
        By name: ``accuracy``; ``error_before`` and ``error``, the expected calibration error before
        and after (Guo et al. 2017, equation 3, with 15 bins); ``refused``, the share of pictures of
        given classes taken for none of them, and ``accepted``, the share of pictures of another
        class that are not; ``auroc``, the area under the curve of these two for all thresholds.
    """
    found = list(found)
    labels = torch.cat([each.labels for each in found])
    most = max(each.logits.shape[1] for each in found)
    errors = {}
    for name, temperature in (("error_before", 1.0), ("error", calibration.temperature)):
        chances = torch.cat(
            [
                F.pad(softmax, (0, most - softmax.shape[1]))  # no chance for classes of other tasks
                for softmax in ((each.logits / temperature).softmax(dim=1) for each in found)
            ]
        )
        errors[name] = multiclass_calibration_error(chances, labels, most, BINS).item()
    given, others = (
        torch.cat([logits.amax(dim=1) for logits in each])
        for each in zip(*((a.logits, a.others) for a in found), strict=True)
    )
    ranks = torch.cat([given, others]).argsort().argsort()  # scores in 0..1, as it expects
    same = torch.cat([torch.ones_like(given), torch.zeros_like(others)]).int()
    return {
        "accuracy": (chances.argmax(dim=1) == labels).double().mean().item(),
        **errors,
        "refused": (given < calibration.threshold).double().mean().item(),
        "accepted": (others >= calibration.threshold).double().mean().item(),
        "auroc": binary_auroc(ranks / len(ranks), same).item(),
    }
