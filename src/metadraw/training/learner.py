"""The LightningModule: the outer step around any algorithm, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metadraw.algorithms import Algorithm, Outcome, State
from metadraw.algorithms.gradient import twice_differentiable
from metadraw.algorithms.inner_loop import Params
from metadraw.command.older import modernise
from metadraw.data.episode import Episode
from metadraw.errors import DivergedError, InputError, check_switch, is_number
from metadraw.models.batch_norm import batch_norms
from metadraw.objectives import Objective
from metadraw.results.metrics import task_metrics
from metadraw.training import optimizers, resume
from metadraw.training.cuda_graph import CudaGraph
from metadraw.training.evaluation import Evaluation
from metadraw.training.interrupts import ctrl_c_waits
from metadraw.training.map_tasks import TaskMap
from metadraw.training.ranks import mean_over_ranks

Result = TypeVar("Result")


class MetaLearner(L.LightningModule):
    """Meta-trains an algorithm by manual optimisation, and evaluates it.

    An outer step averages the algorithm's meta-gradient over the tasks of a batch, then steps the
    outer optimiser. Logs the objective's metrics after adaptation (``train/acc``) and before it
    (``train/acc_before``), averaged over tasks.

    Args:
        algorithm: how one task is learned; its parameters are the meta-parameters.
        optimizer: makes the outer optimiser from parameters.
        scheduler: makes its learning rate schedule, if any. It steps once per epoch, except that
            `OneCycleLR` and `CyclicLR` step after every outer step, and `ReduceLROnPlateau` after
            each epoch with validation, on the objective's metric or loss, whichever has its
            ``mode``.
        query_statistics: batch norm normalises the query set by its own statistics (``query``,
            transductive), by those of the ``support`` set, so that each image is predicted
            independently, or, in evaluation including its inner loop, by the algorithm's
            ``running`` ones.
        map_tasks: ``vmap``, all tasks of a chunk at once; ``loop``, one after the other, for
            networks that ``torch.vmap`` cannot map.
        tasks_per_chunk: with ``vmap``, how many tasks are computed at once, the whole batch if
            `None`; fewer take less memory, with the same result. ``auto``: as many as fit into
            about 2 GB, or an eighth of a GPU's memory, measured on one task.
        recompute_steps: recompute each inner step in the backward pass: memory does not grow with
            the number of inner steps, but an outer step takes longer.
        cuda_graph: on a GPU, capture the meta-gradient of a batch once per epoch and replay it, see
            `CudaGraph`.
        gradient_clip_norm: the maximum norm of the mean meta-gradient, unlimited if `None`.

    Raises:
        InputError: an invalid value of one of the last six.
    """

    #: The resolved config, kept in every checkpoint so that each one can be loaded by itself.
    config: dict[str, Any] | None = None

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        query_statistics: str = "query",
        map_tasks: str = "vmap",
        tasks_per_chunk: int | str | None = "auto",
        recompute_steps: bool = False,
        cuda_graph: bool = False,
        gradient_clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        if query_statistics not in ("query", "support", "running"):
            raise InputError(
                f"learner.query_statistics={query_statistics}: must be query, support or running"
            )
        normalised = batch_norms(algorithm.network)
        if query_statistics == "running" and normalised and not algorithm.running_statistics:
            raise InputError(
                f"learner.query_statistics=running: {type(algorithm).__name__} keeps no running "
                "statistics: must be query or support, or use algorithm=maml_pp with "
                "algorithm.per_step_statistics=true"
            )
        check_switch("learner.recompute_steps", recompute_steps)
        check_switch("learner.cuda_graph", cuda_graph)
        if cuda_graph and recompute_steps:
            raise InputError(
                "learner.cuda_graph=true: a graph cannot repeat random numbers, which "
                "learner.recompute_steps=true requires: one of them must be false"
            )
        if gradient_clip_norm is not None and not (
            is_number(gradient_clip_norm) and gradient_clip_norm > 0
        ):
            raise InputError(
                f"learner.gradient_clip_norm={gradient_clip_norm}: must be above 0, or null for "
                "no limit"
            )
        self.automatic_optimization = False
        self.algorithm = algorithm
        self.algorithm.recompute_steps = recompute_steps
        self.algorithm.support_statistics = query_statistics == "support"
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.query_statistics = query_statistics
        self.task_map = TaskMap(map_tasks, tasks_per_chunk)
        self.gradient_clip_norm = gradient_clip_norm
        self.cuda_graph = CudaGraph(self._meta_gradients) if cuda_graph else None
        self._evaluation = Evaluation(algorithm.objective)
        self._rows = torch.empty(0, 1)
        #: The number of outer steps before the latest meta-validation; -1 without one.
        self.validated_at = -1

    @property
    def objective(self) -> Objective:
        """The algorithm's objective."""
        return self.algorithm.objective

    @property
    def evaluated(self) -> Tensor:
        """The latest evaluation, float64 ``[tasks, 1 + metrics]``.

        The episode's number and its metrics in the order of `Objective.names`, sorted by number.
        """
        return self._rows[~self._rows[:, 0].isnan()]

    def make_room(self, tasks: int) -> None:
        """Make room for an evaluation of at most this many tasks.

        In shared memory: a strategy may evaluate in processes that it starts, of which nothing else
        comes back than the means.
        """
        rows = torch.full((tasks, 1 + len(self.objective.names())), torch.nan, dtype=torch.float64)
        self._rows = rows.share_memory_()

    # ---- what notebooks, tests and users call ------------------------------------------------

    def meta_gradients(self, batch: Episode) -> tuple[Params, dict[str, Tensor]]:
        """The mean meta-gradient of a batch of T tasks; changes nothing.

        Returns:
            The gradient by the algorithm's parameter names (with the mean of what it observes), and
            ``[T]`` values by metric name.
        """
        if self.cuda_graph is not None and batch.number.is_cuda:
            return self.cuda_graph(batch)
        return self._meta_gradients(batch)

    def _meta_gradients(self, batch: Episode) -> tuple[Params, dict[str, Tensor]]:
        meta = {name: p.detach() for name, p in self.algorithm.meta_parameters().items()}
        with self._mode(training=True):
            gradients, outcome = self._map(partial(self.algorithm.meta_gradient, meta), batch)
        mean = {name: value.mean(dim=0) for name, value in gradients.items()}
        return mean, task_metrics(self.objective, outcome, batch.query)

    @torch.no_grad()
    def adapt(self, task: Episode, steps: int | None = None) -> State:
        """Learn one task.

        Args:
            task: one task, whose query targets are ignored.
            steps: the algorithm's ``eval_inner_steps`` if `None`.

        Returns:
            The adapted state, for `predict` and `answer`.
        """
        return self.adapt_path(task, steps)[-1]

    @torch.no_grad()
    def adapt_path(self, task: Episode, steps: int | None = None) -> list[State]:
        """The states of `adapt` before adaptation and after each of its steps."""
        steps = self.algorithm.eval_inner_steps if steps is None else steps
        with self._mode(training=False):
            return self.algorithm.adapt(task.visible, steps)

    @torch.no_grad()
    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]`` in an adapted state."""
        with self._mode(training=False):
            return self.algorithm.predict(state, x)

    @torch.no_grad()
    def answer(self, state: State, task: Episode) -> Tensor:
        """Outputs for one task's query set, normalised as ``query_statistics`` says."""
        with self._mode(training=False):
            return self.algorithm.answer(state, task)

    @torch.no_grad()
    def features(self, state: State, task: Episode) -> Tensor:
        """Features ``[B, F]`` of one task's query set, normalised as ``query_statistics`` says."""
        with self._mode(training=False):
            return self.algorithm.query_features(state, task)

    @torch.no_grad()
    def evaluate(self, batch: Episode) -> Outcome:
        """The outcome of T tasks, such as query logits ``[T, N*Q, N]``; changes nothing."""

        def one(task: Episode) -> Outcome:
            path = self.algorithm.adapt(task.visible, self.algorithm.eval_inner_steps)
            return Outcome(*(self.algorithm.answer(path[i], task) for i in (0, -1)))

        with self._mode(training=False):
            return self._map(one, batch)

    def _map(self, function: Callable[[Episode], Result], batch: Episode) -> Result:
        """The results of a function for each task of a batch."""
        steps = self.algorithm.inner_steps, self.algorithm.eval_inner_steps
        return self.task_map(function, batch, kind=(self.training, steps))

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        """Temporarily set the mode, defer Ctrl-C, and let all layers be differentiated twice.

        In evaluation, too, batch norm uses batch statistics, unless ``query_statistics`` is
        ``running``.
        """
        modes = {module: module.training for module in self.modules()}
        self.train(training)
        for layer in batch_norms(self.algorithm.network).values():
            layer.train(training or self.query_statistics != "running")
        try:
            with ctrl_c_waits(), twice_differentiable(self.algorithm.network):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    # ---- what Lightning calls ----------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The outer optimiser, and its schedule if there is one."""
        optimizer = self.make_optimizer(self.outer_parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        return [optimizer], [{"scheduler": scheduler, "interval": optimizers.interval(scheduler)}]

    def outer_parameters(self) -> list[Tensor]:
        """The parameters that the outer optimiser updates: the meta-parameters.

        Without any, all parameters: Lightning needs an optimiser.
        """
        return list(self.algorithm.meta_parameters().values() or self.algorithm.parameters())

    def on_fit_start(self) -> None:
        """Start watching for a non-finite loss."""
        self._loss_sum = torch.zeros((), device=self.device, dtype=torch.float32)
        self.validated_at = -1

    def on_train_epoch_start(self) -> None:
        """Tell the algorithm the epoch, on which its steps may depend."""
        self._epoch_began_at = self.global_step
        self.task_map.forget()
        if self.cuda_graph is not None:
            self.cuda_graph.forget()
        self.algorithm.begin_epoch(self.current_epoch)

    def training_step(self, batch: Episode, batch_idx: int) -> None:
        """One outer step on this rank's tasks of the batch."""
        if not self.algorithm.meta_parameters():
            # An idle step, so that there is one epoch and a checkpoint.
            self.optimizers().step()  # type: ignore[union-attr]
            self.trainer.should_stop = True
            return
        gradients, values = self.meta_gradients(batch)
        logged = {f"train/{name}": value.mean() for name, value in values.items()}
        mean = mean_over_ranks(gradients | logged, len(batch.number), self.trainer.world_size)
        for name, parameter in self.algorithm.meta_parameters().items():
            parameter.grad = mean[name]
        if self.gradient_clip_norm is not None:
            clip_grad_norm_(self.algorithm.parameters(), self.gradient_clip_norm)
        self.algorithm.outer_step(mean, self.optimizers())  # type: ignore[arg-type]
        self._step_schedule("step")

        logged = {name: mean[name] for name in logged}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        name = self.objective.metric.name
        self.log(name, logged[f"train/{name}"], prog_bar=True, logger=False, on_step=True)
        self._loss_sum += logged["train/loss"]

    def on_train_batch_end(self, outputs: Any, batch: Episode, batch_idx: int) -> None:
        """Stop soon after a non-finite loss, and always before the next checkpoint.

        Raises:
            DivergedError: a loss since the last check was not finite.
        """
        # Not in every step: reading a number stalls an accelerator.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        look = self.trainer.is_last_batch or (every and (batch_idx + 1) % every == 0)
        if look and not self._loss_sum.isfinite():
            raise DivergedError(
                f"meta-training loss is not finite at step {self.global_step} (epoch "
                f"{self.current_epoch + 1}): lower algorithm.inner_lr or optimizer.lr, or set "
                "learner.gradient_clip_norm"
            )

    def on_train_epoch_end(self) -> None:
        """Step the outer learning rate's schedule."""
        self._step_schedule("epoch")

    def _step_schedule(self, interval: str) -> None:
        """Step the schedule, which manual optimisation leaves to us, if this is its interval."""
        if self.make_scheduler is None:
            return
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        if interval != optimizers.interval(scheduler):
            return
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif self.validated_at > self._epoch_began_at:
            value = self.trainer.callback_metrics[optimizers.monitored(scheduler, self.objective)]
            scheduler.step(value.item())

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        """Evaluate a batch of meta-validation tasks."""
        self._evaluation_step(batch)

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        """Evaluate a batch of meta-test tasks."""
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all meta-validation tasks, and what the algorithm has learned."""
        self._log_evaluation("val")
        if not self.trainer.sanity_checking:
            self.validated_at = self.global_step
        if (data := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            self.log("tasks_seen", float(self.global_step * data.tasks_of("train")), sync_dist=True)
        self.log_dict(self._learned(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the means over all meta-test tasks."""
        self._log_evaluation("test")

    def _evaluation_step(self, batch: Episode) -> None:
        values = task_metrics(self.objective, self.evaluate(batch), batch.query)
        self._evaluation.add(batch.number, values)

    def _log_evaluation(self, split: str) -> None:
        rows, logged = self._evaluation.finish(self.trainer.world_size)
        if len(rows) > len(self._rows):
            self.make_room(len(rows))
        self._rows.fill_(torch.nan)[: len(rows)] = rows
        # All ranks log the same numbers; sync_dist only avoids Lightning's warning.
        self.log_dict({f"{split}/{name}": value for name, value in logged.items()}, sync_dist=True)
        if split == "val":
            name = self.objective.metric.name
            self.log(f"val {name}", logged[name], prog_bar=True, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the config, and the metrics that were logged for these weights."""
        checkpoint["metadraw_config"] = self.config
        fresh = self.validated_at == self.global_step
        checkpoint["metadraw_metrics"] = {
            name: value.item()
            for name, value in self.trainer.callback_metrics.items()
            if fresh or not name.startswith("val/")
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """When a run resumes, apply its current settings, not the checkpoint's."""
        modernise(checkpoint)
        if self.trainer.training:
            resume.carry_over(checkpoint, self, self.trainer.callbacks)  # type: ignore[attr-defined]

    def logged_names(self) -> list[str]:
        """The names of the values that are logged and can be monitored."""
        names, chosen = self.objective.names(), self.objective.metric.name
        train = [f"train/{name}" for name in names]
        val = [f"val/{name}" for name in (*names, f"{chosen}_ci95", "tasks")]
        return [*val, *train, *self._learned()]

    def _learned(self) -> dict[str, Tensor]:
        """The values of `Algorithm.learned` as scalars by name."""
        scalars: dict[str, Tensor] = {}
        for name, value in self.algorithm.learned().items():
            by_step = {f"{name}/{step}": v for step, v in enumerate(value)} if value.ndim else {}
            scalars |= by_step or {name: value}
        return scalars
