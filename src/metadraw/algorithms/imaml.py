"""Implicit MAML (Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.gradient import grad
from metadraw.algorithms.inner_loop import positive, whole
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class IMAML(MAML):
    """MAML that stays near its start, with a meta-gradient that depends on where it ends alone.

    The inner loop minimises the support loss plus lambda / 2 times the squared distance from the
    start (equation 3), by gradient steps. At the minimum phi, the meta-gradient is
    (I + H / lambda)^-1 v (lemma 1), where H is the Hessian of the support loss and v the gradient
    of the query loss, both at phi. Conjugate gradients solve this system by products of H with
    vectors (equation 7, algorithm 2). The path to phi is not differentiated, so memory does not
    grow with the number of inner steps.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        proximal: lambda, above 0. The system is positive definite if -lambda is below all
            eigenvalues of H.
        solver_steps: steps of the conjugate gradients.
        **inner: see `InnerLoop`; enough steps to come near the minimum.

    Raises:
        InputError: a lambda that is not above 0, or a number of steps below 1; see also `MAML`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        proximal: float,
        solver_steps: int,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner, first_order=True)
        self.proximal = positive(proximal=proximal)
        self.solver_steps = whole(solver_steps=solver_steps)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        loss, start = self.loss_on(task.support), self.start(task)
        constant = {name: p.detach() for name, p in start.items()}

        def near(params: Params) -> Tensor:
            apart = [(p - constant[name]).square().sum() for name, p in params.items()]
            return loss(params) + self.proximal / 2 * torch.stack(apart).sum()

        return self.inner.path(near, start, steps)

    def outer_loss(self, path: list[State], task: Episode) -> tuple[Tensor, Tensor]:
        """A scalar with the implicit gradient, and the query outputs; see `Algorithm.outer_loss`.

        The gradient with respect to the start is the solution of equation 7, a constant here; the
        chain rule leads from the start to the meta-parameters.
        """
        start = path[0]
        with torch.no_grad():
            end = {name: path[-1][name].detach() for name in start}
            outputs = self.answer(end, task)
            v = grad(lambda p: self.objective.loss(self.answer(p, task), task.query))(end)
            slope = grad(self.loss_on(task.support))

            def product(vector: Params) -> Params:
                h = grad(lambda params: dot(slope(params), vector))(end)
                return {name: each + h[name] / self.proximal for name, each in vector.items()}

            solution = conjugate_gradients(product, v, self.solver_steps)
        return dot(start, {name: each.detach() for name, each in solution.items()}), outputs


def dot(one: Params, other: Params) -> Tensor:
    """The inner product of two vectors, each a set of tensors by name."""
    return torch.stack([(each * other[name]).sum() for name, each in one.items()]).sum()


def conjugate_gradients(product: Callable[[Params], Params], b: Params, steps: int) -> Params:
    """Solve ``A x = b`` for a symmetric A (Hestenes and Stiefel 1952), starting at ``x = b``.

    Where A is the identity, that is the solution. It stops in a direction in which A is not
    positive, and at the solution: later steps then change nothing, and no number is read back.

    Args:
        product: maps a vector to A times it.
        b: a vector, as tensors by name.
        steps: at most as many as the vector has elements are useful.
    """

    def plus(one: Params, scale: Tensor | float, other: Params) -> Params:
        return {name: each + scale * other[name] for name, each in one.items()}

    x = b
    residual = plus(b, -1.0, product(x))
    direction, square = residual, dot(residual, residual)
    going = square > 0
    for _ in range(steps):
        image = product(direction)
        curvature = dot(direction, image)
        going = going & (curvature > 0)
        length = torch.where(going, square / torch.where(going, curvature, 1), 0)
        x = plus(x, length, direction)
        residual = plus(residual, -length, image)
        last, square = square, dot(residual, residual)
        turn = torch.where(going, square / torch.where(going, last, 1), 0)
        direction = plus(residual, turn, direction)
    return x
