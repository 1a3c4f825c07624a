"""The outer optimiser and its schedule: tried out before a run, carried over when one goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from metadraw.errors import InputError
from metadraw.objectives import Objective

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]

#: Their documentation asks for a step after every batch; all others step after an epoch.
_BY_STEP = (OneCycleLR, CyclicLR)


def interval(scheduler: LRScheduler) -> str:
    """When a schedule steps: after every outer ``step`` or every ``epoch``."""
    return "step" if isinstance(scheduler, _BY_STEP) else "epoch"


def monitored(scheduler: ReduceLROnPlateau, objective: Objective) -> str:
    """What a schedule of plateaus watches: the objective's metric, or with its ``mode`` the loss.

    Raises:
        InputError: nothing is better the way the schedule's ``mode`` says.
    """
    for metric in objective.shown():
        if metric.mode == scheduler.mode:
            return f"val/{metric.name}"
    raise InputError(
        f"scheduler.mode={scheduler.mode}: must be {objective.metric.mode} for "
        f"{objective.metric.title}"
    )


def rehearse(
    parameters: Iterable[Tensor],
    make_optimizer: MakeOptimizer,
    make_scheduler: MakeScheduler | None,
    *,
    epochs: int,
    steps: int,
) -> tuple[Optimizer, LRScheduler | None]:
    """An optimiser of copies of parameters after one step, and its schedule at a later time.

    Args:
        parameters: what the optimiser is for; they do not change.
        make_optimizer: makes the optimiser.
        make_scheduler: makes its schedule, if there is one.
        epochs: how many epochs the schedule is moved on, if it steps once an epoch. A schedule of
            plateaus is not moved: there is nothing yet for it to watch.
        steps: how many outer steps, if it steps after each.

    Raises:
        InputError: the optimiser or the schedule cannot be made, or cannot take its steps.
    """
    copies = [p.detach().clone().requires_grad_(p.requires_grad) for p in parameters]
    try:
        optimizer = make_optimizer(copies)
    except Exception as error:  # another library's, as are those below
        raise InputError(f"optimizer: {_name(make_optimizer)}: {_line(error)}") from error
    try:
        scheduler = make_scheduler(optimizer) if make_scheduler is not None else None
    except Exception as error:
        raise InputError(f"scheduler: {_name(make_scheduler)}: {_line(error)}") from error
    for copy in copies:
        copy.grad = torch.zeros_like(copy) if copy.requires_grad else None
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"optimizer: {_name(make_optimizer)} cannot take an outer step, which has dense "
            f"gradients and no closure ({_line(error)}): use another one, e.g. optimizer=adam"
        ) from error
    if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
        try:
            for _ in range(steps if interval(scheduler) == "step" else epochs):
                scheduler.step()
        except Exception as error:
            raise InputError(
                f"scheduler: {_name(make_scheduler)}, which steps once {_once(scheduler)}: "
                f"{_line(error)}"
            ) from error
    return optimizer, scheduler


def carry_over(
    checkpoint: dict[str, Any],
    parameters: Iterable[Tensor],
    make_optimizer: MakeOptimizer,
    make_scheduler: MakeScheduler | None,
    *,
    changed: set[str],
    epochs: int,
) -> None:
    """Make a checkpoint's optimiser and schedule follow the config of the run that goes on.

    The optimiser's moments stay. What was changed in its config replaces the checkpoint's, and a
    schedule that was changed, or whose learning rate was, is where it would be had it been so
    from the first epoch on. One of plateaus begins anew, from the learning rate at hand.

    Args:
        checkpoint: of a run; its ``optimizer_states`` and ``lr_schedulers`` are changed.
        parameters: as `rehearse`.
        make_optimizer: as `rehearse`.
        make_scheduler: as `rehearse`.
        changed: which keys of the config differ, e.g. ``optimizer.lr``.
        epochs: how many epochs the checkpoint has.

    Raises:
        InputError: the checkpoint's state does not fit the optimiser with its new settings.
    """
    settings = {key.partition(".")[2] for key in changed if key.startswith("optimizer.")}
    reschedule = any(key.startswith("scheduler") for key in changed)
    if not settings and not reschedule:
        return
    steps = checkpoint["global_step"]
    optimizer, scheduler = rehearse(
        parameters, make_optimizer, make_scheduler, epochs=epochs, steps=steps
    )
    if not isinstance(scheduler, ReduceLROnPlateau) and (reschedule or scheduler is not None):
        settings |= {key for key in optimizer.param_groups[0] if key != "params"}
    checkpoint["lr_schedulers"] = [] if scheduler is None else [scheduler.state_dict()]
    saved = checkpoint["optimizer_states"][0]["param_groups"]
    for group, as_typed in zip(saved, optimizer.param_groups, strict=True):
        group.update({key: as_typed[key] for key in settings if key in as_typed})
    try:  # a copy: a step changes the moments
        optimizer.load_state_dict(deepcopy(checkpoint["optimizer_states"][0]))
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"optimizer: {_name(make_optimizer)} cannot go on from the checkpoint's state with "
            f"other settings, it lacks {_line(error)}"
        ) from error


def _once(scheduler: LRScheduler) -> str:
    return "after every outer step" if interval(scheduler) == "step" else "an epoch"


def _name(maker: Any) -> str:
    made = maker.func if isinstance(maker, partial) else maker
    return getattr(made, "__name__", type(made).__name__)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
