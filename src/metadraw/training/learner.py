"""The LightningModule: the outer step around any algorithm, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_leaves

from metadraw.algorithms import Algorithm, Outcome, State
from metadraw.algorithms.gradient import twice_differentiable
from metadraw.algorithms.inner_loop import Params
from metadraw.command.older import modernise
from metadraw.data.episode import Episode
from metadraw.errors import DivergedError, InputError
from metadraw.models.batch_norm import batch_norms
from metadraw.objectives import Objective
from metadraw.results import metrics
from metadraw.training import optimizers, resume
from metadraw.training.chunks import bytes_of_a_task, tasks_at_once
from metadraw.training.cuda_graph import CudaGraph
from metadraw.training.interrupts import ctrl_c_waits
from metadraw.training.map_tasks import CHOICES, map_tasks

Result = TypeVar("Result")


class MetaLearner(L.LightningModule):
    """Meta-trains an algorithm by manual optimisation, and evaluates it.

    One outer step: the mean over a batch's tasks of the algorithm's meta-gradient, then a step
    of the outer optimiser. Logs the objective's metrics after adaptation (``train/acc``) and before
    it (``train/acc_before``), means over tasks.

    Args:
        algorithm: how one task is learned; its parameters are the meta-parameters.
        optimizer: makes the outer optimiser from parameters.
        scheduler: makes its learning rate schedule, or none. It steps once an epoch, a
            `OneCycleLR` or `CyclicLR` after every outer step, and a `ReduceLROnPlateau` after an
            epoch with validation, by the objective's metric or loss, as its ``mode`` says.
        query_statistics: batch norm normalises the query set by its own statistics (``query``,
            transductive), by those of the ``support`` set, as if each image had come alone, or, in
            evaluation and the inner loop too, by the algorithm's ``running`` ones.
        map_tasks: ``vmap``, all tasks of a chunk at once; ``loop``, one after the other, for
            networks that ``torch.vmap`` cannot map.
        tasks_per_chunk: with ``vmap``, tasks computed at once, all of a batch if none: less
            memory, same result. ``auto``: as many as fit into about 2 GB, or an eighth of a GPU's
            memory, as measured of one.
        recompute_steps: keep no more than one inner step for the way back, and compute each again:
            memory does not grow with inner steps, a step takes longer.
        cuda_graph: on a GPU, the meta-gradient of a batch is captured once an epoch and then
            replayed, see `CudaGraph`.
        gradient_clip_norm: the largest norm of the mean meta-gradient, unlimited if none.

    Raises:
        InputError: a wrong value of the last six.
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
        if query_statistics == "running" and not algorithm.running_statistics:
            raise InputError(
                f"learner.query_statistics=running: {type(algorithm).__name__} keeps no running "
                "statistics: must be query or support, or use algorithm=maml_pp with "
                "algorithm.per_step_statistics=true"
            )
        if map_tasks not in CHOICES:
            raise InputError(f"learner.map_tasks={map_tasks}: must be vmap or loop")
        if tasks_per_chunk not in ("auto", None) and not _is_count(tasks_per_chunk):
            raise InputError(
                f"learner.tasks_per_chunk={tasks_per_chunk}: must be a whole number of at least 1, "
                "auto, or null for no limit"
            )
        for key, value in {"recompute_steps": recompute_steps, "cuda_graph": cuda_graph}.items():
            if not isinstance(value, bool):
                raise InputError(f"learner.{key}={value}: must be true or false")
        if cuda_graph and recompute_steps:
            raise InputError(
                "learner.cuda_graph=true: a graph cannot go back to earlier random numbers, as "
                "learner.recompute_steps=true has to: one of them must be false"
            )
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
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
        self.map_tasks = map_tasks
        self.tasks_per_chunk = tasks_per_chunk
        self.gradient_clip_norm = gradient_clip_norm
        self.cuda_graph = CudaGraph(self._meta_gradients) if cuda_graph else None
        self._bytes: dict[Any, int] = {}  # of a task, by what is computed
        self._evaluated: list[Tensor] = []
        #: Of the latest evaluation, float64 ``[tasks, 1 + metrics]``: the episode's number and its
        #: metrics in the order of `Objective.names`, sorted by number.
        self.evaluated = torch.empty(0)
        #: After how many outer steps meta-validation was run last; -1 if not yet.
        self.validated_at = -1

    @property
    def objective(self) -> Objective:
        """What the tasks are about: the algorithm's objective."""
        return self.algorithm.objective

    # ---- what notebooks, tests and users call ------------------------------------------------

    def meta_gradients(self, batch: Episode) -> tuple[Params, dict[str, Tensor]]:
        """The mean meta-gradient of a batch of T tasks; changes nothing.

        Returns:
            The gradient by the algorithm's parameter names (with the means of what it observes),
            and ``[T]`` values by metric name.
        """
        if self.cuda_graph is not None and batch.number.is_cuda:
            return self.cuda_graph(batch)
        return self._meta_gradients(batch)

    def _meta_gradients(self, batch: Episode) -> tuple[Params, dict[str, Tensor]]:
        meta = {name: p.detach() for name, p in self.algorithm.meta_parameters().items()}
        with self._mode(training=True):
            gradients, outcome = self._map(partial(self.algorithm.meta_gradient, meta), batch)
        mean = {name: value.mean(dim=0) for name, value in gradients.items()}
        return mean, metrics.task_metrics(self.objective, outcome, batch.query)

    @torch.no_grad()
    def adapt(self, task: Episode, steps: int | None = None) -> State:
        """Learn one task.

        Args:
            task: one task, whose query targets are not looked at.
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
    def evaluate(self, batch: Episode) -> Outcome:
        """The outcome of T tasks, such as query logits ``[T, N*Q, N]``; changes nothing."""

        def one(task: Episode) -> Outcome:
            path = self.algorithm.adapt(task.visible, self.algorithm.eval_inner_steps)
            return Outcome(*(self.algorithm.answer(path[i], task) for i in (0, -1)))

        with self._mode(training=False):
            return self._map(one, batch)

    def _map(self, function: Callable[[Episode], Result], batch: Episode) -> Result:
        """The results of a function for each task, in chunks as ``tasks_per_chunk`` says."""
        chunk = self.tasks_per_chunk
        if isinstance(chunk, str):
            chunk = self._chunk(function, batch) if self.map_tasks == "vmap" else None
        return map_tasks(function, batch, self.map_tasks, chunk)

    def _chunk(self, function: Callable[[Episode], Any], batch: Episode) -> int:
        """How many tasks fit into memory; measured once for all batches of the same kind."""
        steps = self.algorithm.inner_steps, self.algorithm.eval_inner_steps
        kind = self.training, steps, *(values.shape[1:] for values in tree_leaves(batch))
        if kind not in self._bytes:
            self._bytes[kind] = bytes_of_a_task(function, batch)
        return tasks_at_once(len(batch.number), self._bytes[kind], batch.number.device)

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        """Within this context: training or evaluation mode, whatever it was, and no Ctrl-C.

        All layers can be differentiated twice. In evaluation, batch norm goes by batches all the
        same, unless by running statistics.
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
        """What the outer optimiser is for: the meta-parameters.

        With nothing to meta-train, there is still an optimiser for Lightning to keep.
        """
        return list(self.algorithm.meta_parameters().values() or self.algorithm.parameters())

    def on_fit_start(self) -> None:
        """Start watching for a loss that is not finite."""
        self._loss_sum = torch.zeros((), device=self.device, dtype=torch.float32)
        self.validated_at = -1

    def on_train_epoch_start(self) -> None:
        """Tell the algorithm the epoch, by which its steps may change."""
        self._epoch_began_at = self.global_step
        self._bytes.clear()
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
        mean = self._mean_over_ranks(gradients | logged, tasks=len(batch.number))
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

    def _mean_over_ranks(self, means: Params, tasks: int) -> Params:
        """Means over all ranks' tasks from each rank's: ``torch.func`` bypasses DDP's averaging.

        Ranks may have different numbers of tasks, so sums are added up and divided once.
        """
        if self.trainer.world_size == 1:
            return means
        flat = torch.cat([mean.flatten() for mean in means.values()])
        total = torch.cat([flat * tasks, flat.new_tensor([tasks])])
        torch.distributed.all_reduce(total)
        parts = (total[:-1] / total[-1]).split([mean.numel() for mean in means.values()])
        return {
            name: part.view_as(mean).to(mean.dtype)
            for (name, mean), part in zip(means.items(), parts, strict=True)
        }

    def on_train_batch_end(self, outputs: Any, batch: Episode, batch_idx: int) -> None:
        """Stop at a loss that is not finite, soon and always before the next checkpoint.

        Raises:
            DivergedError: some loss since the last look was not finite.
        """
        # Not every step: reading a number from an accelerator would hold it up.
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
            self.log("tasks_seen", float(self.global_step * data.tasks_per_batch), sync_dist=True)
        self.log_dict(self._learned(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the means over all meta-test tasks."""
        self._log_evaluation("test")

    def _evaluation_step(self, batch: Episode) -> None:
        values = metrics.task_metrics(self.objective, self.evaluate(batch), batch.query)
        # In double before they meet: a float32 column would round large episode numbers.
        columns = [column.double() for column in (batch.number, *values.values())]
        self._evaluated.append(torch.stack(columns, dim=1))

    def _log_evaluation(self, split: str) -> None:
        rows = torch.cat(self._evaluated).cpu()  # [tasks of this rank, 1 + metrics]
        self._evaluated = []
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            rows = torch.cat(parts)
        # In the order of the episodes, so that sums do not depend on how tasks were divided.
        self.evaluated = rows[rows[:, 0].argsort()]
        values = dict(zip(self.objective.names(), self.evaluated[:, 1:].T, strict=True))
        logged = {name: value.mean() for name, value in values.items()}
        name = self.objective.metric.name
        logged[f"{name}_ci95"] = metrics.confidence_interval(values[name])
        logged["tasks"] = torch.tensor(len(rows), dtype=torch.float64)
        # All ranks log the same numbers; sync_dist is what Lightning wants to hear.
        self.log_dict({f"{split}/{name}": value for name, value in logged.items()}, sync_dist=True)
        if split == "val":
            self.log(f"val {name}", logged[name], prog_bar=True, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the config into the checkpoint, and the means that were logged of these weights."""
        checkpoint["metadraw_config"] = self.config
        fresh = self.validated_at == self.global_step
        checkpoint["metadraw_metrics"] = {
            name: value.item()
            for name, value in self.trainer.callback_metrics.items()
            if fresh or not name.startswith("val/")
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Where a run goes on: what is typed now is used, and not what the checkpoint had."""
        modernise(checkpoint)
        if self.trainer.training:
            resume.carry_over(checkpoint, self, self.trainer.callbacks)  # type: ignore[attr-defined]

    def logged_names(self) -> list[str]:
        """What can be monitored: the names of the values that meta-training logs."""
        names, chosen = self.objective.names(), self.objective.metric.name
        train = [f"train/{name}" for name in names]
        val = [f"val/{name}" for name in (*names, f"{chosen}_ci95", "tasks")]
        return [*val, *train, *self._learned()]

    def _learned(self) -> dict[str, Tensor]:
        """What the algorithm has learned, a scalar by name."""
        found: dict[str, Tensor] = {}
        for name, value in self.algorithm.learned().items():
            by_step = {f"{name}/{step}": v for step, v in enumerate(value)} if value.ndim else {}
            found |= by_step or {name: value}
        return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
