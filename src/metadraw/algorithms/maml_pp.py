"""MAML++ (Antoniou, Edwards and Storkey 2019, "How to Train Your MAML"), change by change.

The sixth change, cosine annealing of the outer learning rate, is ``scheduler=cosine``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_step
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.models.batch_norm import batch_norms, batch_statistics


class MAMLpp(Algorithm):
    """MAML with any of the changes of the paper's section 4; without all of them it is MAML.

    What goes by the step has one set for every point of the inner loop's path, K + 1 of them: the
    paper's K and one for the adapted network. An evaluation with more steps than K stays with
    the last.

    Args:
        network: see `Algorithm`.
        inner_lr: alpha, above 0; what learned rates start from.
        multi_step_epochs: epochs over which the outer loss goes from the mean of the query losses
            after each inner step to the last one's alone; 0: the last one's from the start.
        first_order_epochs: epochs without second derivatives at the start.
        per_step_statistics: keep running batch norm statistics for each inner step, by which
            ``learner.query_statistics=running`` normalises in evaluation, the inner loop included.
            (The paper's published code keeps them and never uses them.)
        per_step_norm: learn batch norm's weights and biases for each inner step, where the inner
            loop then leaves them alone.
        learned_rates: learn an inner learning rate for each layer and step (LSLR).
        inner_steps: see `Algorithm`.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0, a negative number of epochs, or
            something for batch norm with a network that has none; see also `Algorithm`.
    """

    #: Of the running statistics, PyTorch's default.
    momentum = 0.1

    def __init__(
        self,
        network: nn.Module,
        *,
        inner_lr: float,
        multi_step_epochs: int,
        first_order_epochs: int,
        per_step_statistics: bool,
        per_step_norm: bool,
        learned_rates: bool,
        inner_steps: int,
        eval_inner_steps: int,
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        epochs = {"multi_step_epochs": multi_step_epochs, "first_order_epochs": first_order_epochs}
        for key, value in epochs.items():
            if not isinstance(value, int) or value < 0:
                raise InputError(f"algorithm.{key}={value}: must be a whole number, 0 for never")
        norms = batch_norms(network)
        named = self.network_parameters()
        of_norms = [name for name in named if name.rpartition(".")[0] in norms]
        if per_step_statistics and not norms:
            raise InputError(
                "algorithm.per_step_statistics=true: the network has no batch norm by the "
                "statistics of the batch: must be false"
            )
        if per_step_norm and not of_norms:
            raise InputError(
                "algorithm.per_step_norm=true: the network has no batch norm with a weight to "
                "learn: must be false"
            )
        self.multi_step_epochs, self.first_order_epochs = multi_step_epochs, first_order_epochs
        self.running_statistics = per_step_statistics

        self.per_step = of_norms if per_step_norm else []
        self.adapted = [name for name in named if name not in self.per_step]
        # Lists, in the order of those names, because a dict of parameters takes no dots.
        self.per_step_values = nn.ParameterList(
            named[name].detach().repeat(inner_steps + 1, 1) for name in self.per_step
        )
        self.inner_lr = positive(inner_lr=inner_lr)
        self.inner_lrs = nn.ParameterList(
            torch.full((inner_steps,), inner_lr) for name in self.adapted if learned_rates
        )
        self.statistics: list[str] = []  # of each layer, its mean and its variance
        if per_step_statistics:
            for name, layer in norms.items():
                self.statistics += [f"{name}.running_mean", f"{name}.running_var"]
                shape = inner_steps + 1, layer.num_features
                self.register_buffer(_buffer(self.statistics[-2]), torch.zeros(shape))
                self.register_buffer(_buffer(self.statistics[-1]), torch.ones(shape))
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Anneal the weights of the outer loss and the order of derivatives, by the epoch."""
        # "Derivative-Order Annealing (DA)" of section 4.
        self.first_order = epoch < self.first_order_epochs
        # "Multi-Step Loss Optimization (MSL)" of section 4: the importance weights v_i of the query
        # losses, which go from 1/K each to the last one alone.
        share = max(0.0, 1 - epoch / self.multi_step_epochs) if self.multi_step_epochs else 0.0
        weights = [share / self.inner_steps] * self.inner_steps
        weights[-1] += 1 - share
        self.step_weights = weights

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """Everything `predict` needs before and after each gradient step; see `Algorithm.adapt`."""
        everything = self.network_parameters()
        params = {name: everything[name] for name in self.adapted}
        loss_on_support = self.loss_on(support_x, support_y)
        path = [params | self._of_step(0)]
        for step in range(steps):

            def loss(params: Params, step: int = step) -> Tensor:
                return loss_on_support(params | self._of_step(step))

            params = gradient_step(
                loss,
                params,
                lr=self._rates(step),
                first_order=self.first_order,
            )
            path.append(params | self._of_step(step + 1))
        return path

    def _of_step(self, step: int) -> Params:
        """Batch norm's weights, biases and running statistics after so many steps."""
        step = min(step, self.inner_steps)
        learned = zip(self.per_step, self.per_step_values, strict=True)
        found = {name: values[step] for name, values in learned}
        # The network only looks at these in evaluation mode, as any PyTorch batch norm.
        return found | {name: self.get_buffer(_buffer(name))[step] for name in self.statistics}

    def _rates(self, step: int) -> float | Params:
        """The inner learning rates of one step ("LSLR" of section 4)."""
        if not len(self.inner_lrs):
            return self.inner_lr
        step = min(step, self.inner_steps - 1)
        return {name: rate[step] for name, rate in zip(self.adapted, self.inner_lrs, strict=True)}

    def outer_loss(self, path: list[Params], episode: Episode) -> tuple[Tensor, Tensor]:
        """The weighted sum of the query losses after each step; see `Algorithm.outer_loss`."""
        loss = episode.query_x.new_zeros(())
        for weight, params in zip(self.step_weights, path[1:], strict=True):
            if weight:
                logits = self.classify(params, episode)
                loss = loss + weight * F.cross_entropy(logits, episode.query_y)
        return loss, logits

    def observe(self, path: list[Params], episode: Episode) -> Params:
        """The batch statistics of the support set before each step, of the query set after all.

        Those are the batches that evaluation normalises at these points of the path.
        """
        if not self.running_statistics:
            return {}
        batches = [episode.support_x] * self.inner_steps + [episode.query_x]
        seen = []
        for params, batch in zip(path, batches, strict=True):
            with batch_statistics(self.network) as found:
                self.predict(params, batch)
            seen.append(found)
        return {name: torch.stack([found[name] for found in seen]) for name in self.statistics}

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step of the outer optimiser and of the running statistics."""
        optimizer.step()
        for name in self.statistics:
            self.get_buffer(_buffer(name)).lerp_(means[name], self.momentum)

    def learned(self) -> dict[str, Tensor]:
        """Rates and batch norm's values by layer and step, the latter as means over channels."""
        rates = zip(self.adapted, self.inner_lrs, strict=False)  # there may be none
        watched: dict[str, Tensor] = {f"inner_lr/{name}": rate for name, rate in rates}
        for name, values in zip(self.per_step, self.per_step_values, strict=True):
            layer, _, kind = name.rpartition(".")
            watched[f"norm_{kind}/{layer}"] = values.mean(dim=1)
        for name in self.statistics:
            layer, _, kind = name.rpartition(".")
            watched[f"{kind}/{layer}"] = self.get_buffer(_buffer(name)).mean(dim=1)
        return watched


def _buffer(name: str) -> str:
    """A buffer's name may have no dots."""
    return name.replace(".", "-")
