"""Reinforcement learning: the expected return of a policy, by its score function."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.errors import InputError, check_positive, is_number
from metadraw.objectives.base import Metric, Objective, exact, mean

#: Of the linear baseline, relative to its number of steps.
_RIDGE = 1e-5


class Environment(Protocol):
    """What actions lead to."""

    def step(
        self, observation: Tensor, action: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next observations ``[B, O]``, rewards ``[B]``, and which were the last, bool ``[B]``.

        Args:
            observation: ``[B, O]``.
            action: ``[B, size]``.
            goal: ``[B, ...]``, the targets of the examples.
        """
        ...


class PolicyGradient(Objective):
    """Rollouts of a Gaussian policy, whose mean the network gives for an observation.

    An example is a rollout: its first observation ``x``, the goal ``y`` that the environment needs,
    and its ``extra["noise"]``, ``[H, size]``, standard normal. The same policy and noise give the
    same rollout. Each inner step rolls out the policy of the moment anew, with the same noise.

    The loss is the surrogate whose gradient is REINFORCE (Williams 1992), with discounted rewards
    to go, a linear baseline fitted to each set of rollouts, and normalised advantages, as the MAML
    paper's own experiments have them (Finn et al. 2017, equation 4). Through an inner step, the
    meta-gradient differentiates the surrogate's log-probabilities at fixed rollouts. It thus lacks
    the terms for how the first policy's rollouts depend on it: this is the estimator of Finn et
    al.'s experiments, which Rothfuss et al. 2019 ("ProMP", section 4) show to be biased.

    Args:
        size: number of values of an action.
        environment: see `Environment`.
        std: the standard deviation of each value of an action, above 0.
        discount: the weight of a reward one step later, above 0 and at most 1.
        monitor: see `Objective`.
        mode: see `Objective`.

    Raises:
        InputError: an invalid value; see also `Objective`.
    """

    measured: ClassVar = {
        "loss": Metric("loss", "surrogate loss", "min"),
        "return": Metric("return", "mean return", "max"),
    }

    def __init__(
        self,
        *,
        size: int,
        environment: Environment,
        std: float,
        discount: float,
        monitor: str = "return",
        mode: str = "max",
    ) -> None:
        super().__init__(size=size, monitor=monitor, mode=mode)
        check_positive("objective.std", std)
        if not is_number(discount) or not 0 < discount <= 1:
            raise InputError(f"objective.discount={discount}: must be above 0 and at most 1")
        self.environment, self.std, self.discount = environment, std, discount

    def width(self, task: Episode) -> int:
        """The number of values of an action.

        Raises:
            InputError: the tasks have no rollouts, or actions of another size.
        """
        noise = task.query.extra.get("noise")
        if noise is None:
            raise InputError(
                "objective: these tasks have no rollouts: choose another one, or data=navigation"
            )
        if noise.shape[-1] != self.size:
            raise InputError(
                f"objective.size={self.size}: actions have {noise.shape[-1]} values here"
            )
        return self.size

    def shape(self, task: Episode) -> tuple[int, ...]:
        """That of `outputs` for the query rollouts."""
        return *task.query.extra["noise"].shape[:2], 3 + task.query.x.shape[-1]

    def outputs(self, predict: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
        """Roll out the policy whose mean actions are ``predict``.

        Returns:
            ``[R, H, 3 + O]``, for each step of each rollout: the logarithm of the action's
            probability without its constant part, which alone depends on the policy's parameters;
            the reward; 1 until the episode has ended, then 0; and the observation before it.
        """
        rows = []
        with torch.no_grad():
            observation = examples.x
            going = torch.ones_like(observation[:, 0])
            for noise in examples.extra["noise"].unbind(1):
                action = predict(observation) + self.std * noise
                after, reward, last = self.environment.step(observation, action, examples.y)
                rows.append((action, torch.stack([reward * going, going], dim=1), observation))
                observation, going = after, going * ~last
        action, known, observed = (torch.stack(each, dim=1) for each in zip(*rows, strict=True))
        mean = predict(observed.flatten(0, 1)).unflatten(0, observed.shape[:2])
        log_probability = -((action - mean) / self.std).square().sum(dim=-1, keepdim=True) / 2
        return torch.cat([log_probability, known, observed], dim=-1)

    def encode(self, y: Tensor, width: int) -> Tensor:
        """There is nothing to encode.

        Raises:
            InputError: always.
        """
        raise InputError(
            "objective: PolicyGradient has no targets that a network could read: choose another "
            "algorithm, e.g. algorithm=maml"
        )

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """Minus the mean over steps of log-probability times advantage.

        Raises:
            InputError: the outputs are not those of rollouts.
        """
        if outputs.ndim != 3:
            raise InputError(
                f"objective: outputs of shape {list(outputs.shape)} are no rollouts: where a "
                "policy leads depends on each step, so features cannot be computed once: choose "
                "another algorithm, e.g. algorithm=maml"
            )
        counts = outputs[..., 2].detach()
        if examples.weight is not None:
            counts = counts * examples.weight[:, None]
        share = counts / counts.sum()
        with torch.no_grad():
            advantage = self._advantage(outputs, share.double()).to(outputs.dtype)
        return -(outputs[..., 0] * advantage * share).sum()

    def metrics(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """The loss, and the sum of a rollout's rewards, without discount."""
        rollouts = exact(outputs)
        total = mean(rollouts[..., 1].sum(dim=1), examples)
        return {"loss": self.loss(rollouts, examples), "return": total}

    def _advantage(self, outputs: Tensor, share: Tensor) -> Tensor:
        """How much better than the baseline each step went on, ``[R, H]``, normalised.

        Args:
            outputs: as `outputs` returns them.
            share: ``[R, H]``, each step's share of the loss.
        """
        # In double precision: far from the goal, squares and sums differ by many digits.
        reward, observed = outputs[..., 1].double(), outputs[..., 3:].double()
        time = torch.arange(reward.shape[1], dtype=reward.dtype, device=reward.device)
        later = time - time[:, None]  # [H, H], of the columns' steps after the rows'
        # Sums instead of matrix products, which mixed precision would round.
        weight = self.discount**later * (later >= 0)
        return_to_go = (reward[:, None] * weight).sum(dim=-1)
        # Duan et al. 2016 ("Benchmarking deep reinforcement learning"): linear in the observation,
        # its square, and powers of time.
        powers = (time / len(time))[:, None] ** torch.arange(4, device=time.device)  # [H, 4]
        parts = [observed, observed.square(), powers.expand(*reward.shape, 4)]
        features = torch.cat(parts, dim=-1)  # [R, H, F]
        weighted = features * share[..., None]
        gram = (features[..., None] * weighted[..., None, :]).sum(dim=(0, 1))  # [F, F]
        ridge = _RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        projected = (weighted * return_to_go[..., None]).sum(dim=(0, 1))
        # `solve_ex` reads nothing back from a GPU.
        fit, _ = torch.linalg.solve_ex(gram + ridge, projected)
        advantage = return_to_go - (features * fit).sum(dim=-1)
        advantage = advantage - (advantage * share).sum()
        return advantage / ((advantage.square() * share).sum().sqrt() + 1e-8)
