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
    """What a checkpoint's logits mean, after learning from k examples a class.

    Guo et al. 2017 ("On Calibration of Modern Neural Networks", section 4.2) fit the temperature;
    Hendrycks et al. 2022 ("Scaling Out-of-Distribution Detection for Real-World Settings", section
    3) recognise what is of no class by its highest logit. Both are linear in 1 / k here: a picture
    of variance v about its class's mean has variance v (1 + 1 / k) about the mean of k examples.
    """

    #: What logits are divided by before the softmax, for many examples; its slope in 1 / k.
    temperature: float = 1.0
    temperature_slope: float = 0.0
    #: A picture whose highest logit is below is like none of the classes; its slope in 1 / k.
    threshold: float = float("-inf")
    threshold_slope: float = 0.0

    def at(self, inverse_shots: float) -> tuple[float, float]:
        """Temperature and threshold.

        Args:
            inverse_shots: 1 / k, the mean over classes.
        """
        return (
            self.temperature + self.temperature_slope * inverse_shots,
            self.threshold + self.threshold_slope * inverse_shots,
        )


class Answers(NamedTuple):
    """The logits of a task's N classes for pictures of these classes, and of another class."""

    inverse_shots: float  # 1 / k
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
    return Answers(ways / len(support.y), logits[given], task.query.y[given], logits[~given])


def fit(found: Iterable[Answers], refused: float) -> Calibration:
    """The temperature of the smallest cross-entropy, and the threshold that refuses a share.

    Args:
        found: answers to meta-validation tasks.
        refused: the share of pictures of given classes that the threshold takes for none of them.
    """
    by_shots: dict[float, list[Answers]] = {}
    for each in found:
        exact = each._replace(logits=each.logits.double())
        by_shots.setdefault(each.inverse_shots, []).append(exact)
    inverses = torch.tensor(list(by_shots), dtype=torch.float64)
    # Without different shots there is no slope to fit.
    powers = 2 if len(by_shots) > 1 else 1

    # Logarithms of the temperatures of many examples and of one: positive, and so are all between.
    ends = torch.zeros(powers, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([ends], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        temperatures = torch.lerp(ends[0].exp(), ends[-1].exp(), inverses)
        losses = [
            F.cross_entropy(each.logits / temperature, each.labels)
            for temperature, group in zip(temperatures, by_shots.values(), strict=True)
            for each in group
        ]
        value = torch.stack(losses).mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    many, one = ends[0].exp().item(), ends[-1].exp().item()

    highest = [torch.cat([a.logits.amax(dim=1) for a in group]) for group in by_shots.values()]
    thresholds = torch.stack([torch.quantile(each, refused) for each in highest])
    # Least squares, each number of shots by its tasks.
    tasks = torch.tensor([len(group) for group in by_shots.values()], dtype=torch.float64)
    weight = tasks.sqrt()
    design = torch.stack([inverses**power for power in range(powers)], dim=1)
    line = torch.linalg.lstsq(weight[:, None] * design, weight * thresholds).solution.tolist()
    return Calibration(many, one - many, *line, *[0.0] * (2 - powers))


def measure(found: Iterable[Answers], calibration: Calibration) -> dict[str, float]:
    """How well a calibration holds on tasks.

    Returns:
        By name: ``accuracy``; ``error_before`` and ``error``, the expected calibration error before
        and after (Guo et al. 2017, equation 3, with 15 bins); ``refused``, the share of pictures of
        given classes taken for none of them, and ``accepted``, the share of pictures of another
        class that are not; ``auroc``, the area under the curve of these two for all thresholds.
    """
    found = list(found)
    known = [calibration.at(each.inverse_shots) for each in found]
    labels = torch.cat([each.labels for each in found])
    most = max(each.logits.shape[1] for each in found)
    errors = {}
    for name, temperatures in (
        ("error_before", [1.0] * len(found)),
        ("error", [temperature for temperature, _ in known]),
    ):
        chances = torch.cat(
            [
                # No chance for the classes of larger tasks.
                F.pad((each.logits / temperature).softmax(dim=1), (0, most - each.logits.shape[1]))
                for each, temperature in zip(found, temperatures, strict=True)
            ]
        )
        errors[name] = multiclass_calibration_error(chances, labels, most, BINS).item()
    # By how much the highest logit is above the threshold.
    given, others = (
        torch.cat([logits.amax(dim=1) - low for logits, (_, low) in zip(each, known, strict=True)])
        for each in ([a.logits for a in found], [a.others for a in found])
    )
    ranks = torch.cat([given, others]).argsort().argsort()  # scores in 0..1, as it expects
    same = torch.cat([torch.ones_like(given), torch.zeros_like(others)]).int()
    return {
        "accuracy": (chances.argmax(dim=1) == labels).double().mean().item(),
        **errors,
        "refused": (given < 0).double().mean().item(),
        "accepted": (others >= 0).double().mean().item(),
        "auroc": binary_auroc(ranks / len(ranks), same).item(),
    }
