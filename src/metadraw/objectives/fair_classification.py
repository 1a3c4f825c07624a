"""Fair-MAML's regularised classification (Slack et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.errors import InputError, is_number
from metadraw.models.head import one_hot
from metadraw.objectives.base import Metric, exact
from metadraw.objectives.classification import Classification

CRITERIA = ("demographic_parity", "equal_opportunity")


class FairClassification(Classification):
    """Two classes, of which label 1 is the positive outcome, and examples of a protected group.

    Slack, Friedler and Givental 2020 ("Fairness Warnings and Fair-MAML: Learning Fairly with
    Minimal Data"): the loss is the cross-entropy plus gamma times a regulariser, in the
    inner loop and in the outer one. It is 1 minus the mean probability of the positive outcome over
    the protected examples (demographic parity), or over those of them whose label is positive
    (equal opportunity); 0 if there are none. So it only ever raises the outcomes of the protected
    group: it assumes that this is the group at a disadvantage.

    ``extra["protected"]`` says of each example whether it is of that group, ``[B]`` bool. The
    differences that are measured are those between the groups' shares of positive predictions, of
    all examples and of those whose label is positive, as absolute values; 0 where a group is
    missing.

    Args:
        gamma: the weight of the regulariser, at least 0.
        criterion: ``demographic_parity`` or ``equal_opportunity``.
        monitor: see `Objective`.
        mode: see `Objective`.

    Raises:
        InputError: an impossible gamma, or an unknown criterion; see also `Objective`.
    """

    measured: ClassVar = {
        **Classification.measured,
        "parity": Metric("parity", "demographic parity difference", "min", percent=True),
        "opportunity": Metric("opportunity", "equal opportunity difference", "min", percent=True),
    }

    def __init__(
        self, *, gamma: float, criterion: str, monitor: str = "acc", mode: str = "max"
    ) -> None:
        super().__init__(ways=2, monitor=monitor, mode=mode)
        if not is_number(gamma) or not gamma >= 0:
            raise InputError(f"objective.gamma={gamma}: must be a number of at least 0")
        if criterion not in CRITERIA:
            raise InputError(
                f"objective.criterion={criterion}: must be one of {', '.join(CRITERIA)}"
            )
        self.gamma, self.criterion = float(gamma), criterion

    def width(self, task: Episode) -> int:
        """2.

        Raises:
            InputError: tasks of other numbers of classes, or without a protected group.
        """
        ways = super().width(task)
        if ways != 2 or "protected" not in task.support.extra:
            what = f"{ways} classes" if ways != 2 else "no protected group"
            raise InputError(
                f"objective: these tasks have {what}: FairClassification needs two classes and "
                "examples of a protected group, e.g. data=fair_synthetic"
            )
        return ways

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The cross-entropy, in nats, plus gamma times the regulariser."""
        loss = super().loss(outputs, examples)
        return loss + self.gamma * self.unfairness(outputs, examples) if self.gamma else loss

    def unfairness(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The regulariser, a scalar in 0..1."""
        members = examples.extra["protected"]
        if self.criterion == "equal_opportunity":
            members = members & (examples.y == 1)
        rate, any_members = _rate(outputs.softmax(dim=-1)[:, 1], members, examples)
        return (1 - rate) * any_members

    def metrics(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Those of `Classification`, and the differences between the groups."""
        logits = exact(outputs)
        guess = one_hot(logits.argmax(dim=-1), 2)[:, 1].to(logits.dtype)
        protected = examples.extra["protected"]
        found = super().metrics(outputs, examples)
        for name, among in (("parity", protected | True), ("opportunity", examples.y == 1)):
            (ours, some), (theirs, others) = (
                _rate(guess, group & among, examples) for group in (protected, ~protected)
            )
            found[name] = (ours - theirs).abs() * some * others
        return found


def _rate(values: Tensor, members: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """The weighted mean of values ``[B]`` over some examples, and 1 if there are any, else 0."""
    weight = members.to(values.dtype)
    if examples.weight is not None:
        weight = weight * examples.weight
    total = weight.sum()
    return (values * weight).sum() / total.where(total > 0, 1), (total > 0).to(values.dtype)
