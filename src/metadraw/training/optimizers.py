"""The outer optimiser and its schedule: tested before a run, carried over when one resumes."""

from __future__ import annotations

import math
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
    """What a `ReduceLROnPlateau` watches: the objective's metric, or the loss if that has its mode.

    Raises:
        InputError: neither has the schedule's ``mode``.
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
    """An optimiser of copied parameters after one step, and its schedule after all of its steps.

    Args:
        parameters: what the optimiser is for; they do not change.
        make_optimizer: makes the optimiser.
        make_scheduler: makes its schedule, if there is one.
        epochs: how many steps a schedule takes that steps once per epoch. A copy of a
            `ReduceLROnPlateau` takes them, on a plateau: there is no metric yet.
        steps: how many steps a schedule takes that steps after every outer step.

    Raises:
        InputError: the optimiser or the schedule cannot be made, or cannot take its steps, or they
            lead to parameters that are not finite or to an impossible learning rate.
    """
    copies = [p.detach().clone().requires_grad_(p.requires_grad) for p in parameters]
    try:
        optimizer = make_optimizer(copies)
    except Exception as error:  # any error of another library, as below
        raise InputError(
            f"optimizer: {_name(make_optimizer)}: {_line(error)}{_given(make_optimizer)}"
        ) from error
    try:
        scheduler = make_scheduler(optimizer) if make_scheduler is not None else None
    except Exception as error:
        raise InputError(
            f"scheduler: {_name(make_scheduler)}: {_line(error)}{_given(make_scheduler)}"
        ) from error
    for copy in copies:
        copy.grad = torch.zeros_like(copy) if copy.requires_grad else None
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"optimizer: {_name(make_optimizer)} cannot take an outer step, which has dense "
            f"gradients and no closure ({_line(error)}): use another one, e.g. optimizer=adam"
            f"{_given(make_optimizer)}"
        ) from error
    if not all(copy.isfinite().all() for copy in copies):  # after a step with gradients of 0
        raise InputError(
            f"optimizer: {_name(make_optimizer)}: a step leads to parameters that are not finite"
            f"{_given(make_optimizer)}"
        )
    if scheduler is not None:
        try:
            rehearsed, step = scheduler, scheduler.step
            if isinstance(scheduler, ReduceLROnPlateau):
                rehearsed = deepcopy(scheduler)
                step = partial(rehearsed.step, 0.0)
            for _ in range(steps if interval(scheduler) == "step" else epochs):
                step()
                for group in rehearsed.optimizer.param_groups:
                    if not -1e-9 < group["lr"] < math.inf:  # 0 but for rounding is a rate
                        raise ValueError(f"leads to a learning rate of {float(group['lr']):g}")
        except Exception as error:
            raise InputError(
                f"scheduler: {_name(make_scheduler)}, which steps once {_once(scheduler)}: "
                f"{_line(error)}{_given(make_scheduler)}"
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
    """Make a checkpoint's optimiser and schedule follow the config of the resumed run.

    The optimiser's moments stay. Changed settings of the optimiser replace the checkpoint's. If the
    schedule or its learning rate changed, it continues as if it had been so from the first epoch. A
    `ReduceLROnPlateau` starts over, from the current learning rate.

    Args:
        checkpoint: of a run; its ``optimizer_states`` and ``lr_schedulers`` are changed.
        parameters: see `rehearse`.
        make_optimizer: see `rehearse`.
        make_scheduler: see `rehearse`.
        changed: which keys of the config differ, e.g. ``optimizer.lr``.
        epochs: how many epochs the checkpoint has completed.

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
            f"optimizer: {_name(make_optimizer)} cannot use the checkpoint's state with these "
            f"settings, it lacks {_line(error)}"
        ) from error


def _once(scheduler: LRScheduler) -> str:
    return "after every outer step" if interval(scheduler) == "step" else "per epoch"


def _name(maker: Any) -> str:
    made = maker.func if isinstance(maker, partial) else maker
    return getattr(made, "__name__", type(made).__name__)


def _given(maker: Any) -> str:
    """The settings in brackets: errors of other libraries seldom name what was wrong."""
    settings = maker.keywords if isinstance(maker, partial) else {}
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f" (given: {shown})" if shown else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
