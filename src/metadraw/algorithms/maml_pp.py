"""MAML++ (Antoniou, Edwards and Storkey 2019, "How to Train Your MAML"), change by change.

The sixth change, cosine annealing of the outer learning rate, is ``scheduler=cosine``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State, place
from metadraw.algorithms.inner_loop import gradient_step
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode
from metadraw.errors import InputError, check_switch, is_whole
from metadraw.models.batch_norm import batch_norms, batch_statistics
from metadraw.objectives import Objective


class MAMLpp(MAML):
    """MAML with any of the changes of the paper's section 4; with none of them it is MAML.

    Per-step values have one set for each of the K + 1 points of the inner loop's path: the paper's
    K, and one for the adapted network. Evaluation with more than K steps reuses the last set.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        multi_step_epochs: epochs over which the outer loss is annealed from the mean of the query
            losses after each inner step to the last one alone; 0: the last one from the start.
        first_order_epochs: epochs without second derivatives at the start.
        per_step_statistics: keep running batch norm statistics for each inner step;
            ``learner.query_statistics=running`` normalises by them in evaluation, including its
            inner loop. (The paper's published code keeps them and never uses them.)
        per_step_norm: meta-learn batch norm's weights and biases for each inner step; the inner
            loop then does not adapt them.
        learned_rates: learn an inner learning rate for each layer and step (LSLR).
        **inner: see `InnerLoop`.

    Raises:
        InputError: a negative number of epochs, a switch that is neither true nor false, or a batch
            norm option for a network without batch norm; see also `MAML`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        multi_step_epochs: int,
        first_order_epochs: int,
        per_step_statistics: bool,
        per_step_norm: bool,
        learned_rates: bool,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner)
        epochs = {"multi_step_epochs": multi_step_epochs, "first_order_epochs": first_order_epochs}
        for key, value in epochs.items():
            if not is_whole(value, 0):
                raise InputError(f"algorithm.{key}={value}: must be a whole number, 0 for never")
        check_switch("algorithm.learned_rates", learned_rates)
        norms = {f"network.{name}" for name in batch_norms(network)}
        named = self.adaptable()
        of_norms = [name for name in named if name.rpartition(".")[0] in norms]
        if check_switch("algorithm.per_step_statistics", per_step_statistics) and not norms:
            raise InputError(
                "algorithm.per_step_statistics=true: the network has no batch norm that uses "
                "batch statistics: must be false"
            )
        if check_switch("algorithm.per_step_norm", per_step_norm) and not of_norms:
            raise InputError(
                "algorithm.per_step_norm=true: the network has no batch norm with a weight to "
                "learn: must be false"
            )
        self.multi_step_epochs, self.first_order_epochs = multi_step_epochs, first_order_epochs
        self.per_step = of_norms if per_step_norm else []
        self.adapted = [name for name in named if name not in self.per_step]
        # Lists, in the order of those names, because ParameterDict allows no dots in names.
        self.per_step_values = nn.ParameterList(
            named[name].detach().repeat(self.inner_steps + 1, 1) for name in self.per_step
        )
        self.inner_lrs = nn.ParameterList(
            torch.full((self.inner_steps,), float(self.inner.inner_lr))
            for name in self.adapted
            if learned_rates
        )
        if per_step_statistics:
            self.keep_statistics(self.inner_steps + 1)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Set this epoch's weights of the outer loss and order of derivatives."""
        # "Derivative-Order Annealing (DA)" of section 4.
        self.first_order = epoch < self.first_order_epochs
        # "Multi-Step Loss Optimization (MSL)" of section 4: the importance weights v_i of the query
        # losses, which go from 1/K each to the last one alone.
        share = max(0.0, 1 - epoch / self.multi_step_epochs) if self.multi_step_epochs else 0.0
        weights = [share / self.inner_steps] * self.inner_steps
        weights[-1] += 1 - share
        self.step_weights = weights

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The state before and after each gradient step; see `Algorithm.adapt`."""
        start = self.start(task)
        params = {name: start[name] for name in self.adapted}
        loss_on_support = self.loss_on(task.support)
        path = [params | self._of_step(0)]
        for step in range(steps):

            def loss(params: Params, step: int = step) -> Tensor:
                return loss_on_support(params | self._of_step(step))

            params = gradient_step(
                loss,
                params,
                lr=self._rates(step),
                first_order=self.first_order,
                optimizer=self.inner.inner_optimizer,
            )
            path.append(params | self._of_step(step + 1))
        return path

    def _of_step(self, step: int) -> Params:
        """Batch norm's weights, biases and running statistics after ``step`` steps."""
        step = min(step, self.inner_steps)
        learned = zip(self.per_step, self.per_step_values, strict=True)
        of_norms = {name: values[step] for name, values in learned}
        # Like any PyTorch batch norm, the network uses these in evaluation mode only.
        return of_norms | {name: values[step] for name, values in self.running().items()}

    def _rates(self, step: int) -> float | Params:
        """The inner learning rates of one step ("LSLR" of section 4)."""
        if not len(self.inner_lrs):
            return self.inner.inner_lr
        step = min(step, self.inner_steps - 1)
        return {name: rate[step] for name, rate in zip(self.adapted, self.inner_lrs, strict=True)}

    def outer_loss(self, path: list[State], task: Episode) -> tuple[Tensor, Tensor]:
        """The weighted sum of the query losses after each step; see `Algorithm.outer_loss`."""
        loss = path[0][self.adapted[0]].new_zeros(())
        for weight, state in zip(self.step_weights, path[1:], strict=True):
            if weight:
                outputs = self.answer(state, task)
                loss = loss + weight * self.objective.loss(outputs, task.query)
        return loss, outputs

    def observe(self, path: list[State], task: Episode) -> Params:
        """Batch statistics of the support set before each step, of the query set after the last.

        Evaluation normalises the same batches at these points of the path.
        """
        if not self.running_statistics:
            return {}
        batches = [task.support] * self.inner_steps + [task.query]
        seen = []
        for state, batch in zip(path, batches, strict=True):
            with self.weighted(batch), batch_statistics(self.network, batch.weight) as statistics:
                self.features(batch.x, state)
            seen.append({f"network.{name}": values for name, values in statistics.items()})
        return {name: torch.stack([each[name] for each in seen]) for name in self.statistics}

    def learned(self) -> dict[str, Tensor]:
        """Rates, and batch norm's values as means over channels, by layer and step."""
        rates = zip(self.adapted, self.inner_lrs, strict=False)  # there may be none
        watched: dict[str, Tensor] = {f"inner_lr/{place(name)}": rate for name, rate in rates}
        for name, values in zip(self.per_step, self.per_step_values, strict=True):
            layer, _, kind = place(name).rpartition(".")
            watched[f"norm_{kind}/{layer}"] = values.mean(dim=1)
        for name, values in self.running().items():
            layer, _, kind = place(name).rpartition(".")
            watched[f"{kind}/{layer}"] = values.mean(dim=1)
        return watched
