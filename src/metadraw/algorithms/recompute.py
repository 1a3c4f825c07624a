"""The gradient through an inner loop, with the graph of one recomputed step at a time.

Plain backpropagation keeps the graphs of all K inner steps. This keeps the parameters after each
step and, in the backward pass, the graph of one step: Griewank and Walther 2000, "Algorithm 799:
revolve", with as many checkpoints as steps. A recomputed step draws the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

Params = dict[str, Tensor]
_Step = Callable[[], Params]

#: What to do with a step: by default, take it.
_take: ContextVar[Callable[[_Step], Params]] = ContextVar("take", default=lambda step: step())


def can_be_recomputed(step: Callable[..., Params]) -> Callable[..., Params]:
    """Let `grad_by_steps` intercept each call of this function."""

    @wraps(step)
    def taken(*args: Any, **kwargs: Any) -> Params:
        return _take.get()(partial(step, *args, **kwargs))

    return taken


def grad_by_steps(
    function: Callable[[Params], tuple[Tensor, Any]],
) -> Callable[[Params], tuple[Params, Any]]:
    """``torch.func.grad(function, has_aux=True)`` with memory for one step.

    Args:
        function: maps parameters to a scalar and other tensors. It calls functions that
            `can_be_recomputed`, always the same number in the same order. The inputs of a call may
            depend on the parameters and on the result of the previous call; if they depend on an
            earlier result, the gradient is NaN. The scalar may depend on all results.

    Returns:
        A function that maps parameters to the gradient and those tensors. It calls ``function``
        once to take the steps, once with all steps given, and once for each step, up to that step.
    """

    def gradient(params: Params) -> tuple[Params, Any]:
        steps: list[Params] = []
        random = _Random(params)
        after: list[list[Tensor]] = []  # random states after each step

        def keep(step: _Step) -> Params:
            steps.append(step())
            after.append(random.state())
            return steps[-1]

        def give(step: Params, number: int) -> Params:
            random.go_to(after[number])
            return step

        start = random.state()
        with _taking(keep):
            function(params)

        def with_steps(params: Params, steps: list[Params]) -> tuple[Tensor, Any]:
            given = (give(step, number) for number, step in enumerate(steps))
            random.go_to(start)
            with _taking(lambda _: next(given)):
                return function(params)

        def one_step(number: int) -> Callable[[Params, Params], Params]:
            def take_one(params: Params, before: Params) -> Params:
                given = [*(_unknown(step) for step in steps[: number - 1]), before][:number]
                passed = iter(enumerate(given))

                def take(step: _Step) -> Params:
                    for place, params in passed:
                        return give(params, place)
                    raise _Taken(step())

                random.go_to(start)

                try:
                    with _taking(take):
                        function(params)
                except _Taken as taken:
                    return taken.params
                raise RuntimeError("the function took fewer steps than the first time")

            return take_one

        gradients, aux = grad(with_steps, argnums=(0, 1), has_aux=True)(params, steps)
        end = random.state()
        total, by_steps = gradients
        while steps:
            steps.pop()
            before = steps[-1] if steps else {}
            again, pull_back = vjp(one_step(len(steps)), params, before)  # type: ignore[misc]
            by_params, by_before = pull_back(by_steps.pop())
            # 0, or NaN if the step depended on an unknown result.
            unknown = torch.stack([p.sum() for p in again.values()]).sum() * 0
            total = {name: g + by_params[name] + unknown for name, g in total.items()}
            if steps:
                last = by_steps[-1]
                by_steps[-1] = {name: g + by_before[name] for name, g in last.items()}
        random.go_to(end)
        return total, aux

    return gradient


class _Random:
    """The random number generators of the CPU and of the GPUs that hold some tensors."""

    def __init__(self, params: Params) -> None:
        self.gpus = {p.device for p in params.values() if p.is_cuda}

    def state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self.gpus)]

    def go_to(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for gpu, of_gpu in zip(self.gpus, state[1:], strict=True):
            torch.cuda.set_rng_state(of_gpu, gpu)


class _Taken(Exception):  # noqa: N818  (not an error)
    """The requested step has been taken."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.params = params


@contextmanager
def _taking(take: Callable[[_Step], Params]) -> Iterator[None]:
    before = _take.set(take)
    try:
        yield
    finally:
        _take.reset(before)


def _unknown(params: Params) -> Params:
    """NaN of the same shapes, expanded from scalars to take no memory."""
    return {name: p.new_full((), torch.nan).expand(p.shape) for name, p in params.items()}
