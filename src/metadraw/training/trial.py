"""A trial step before a run: one line names the layer that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from metadraw.algorithms.gradient import grad
from metadraw.data.episode import Episode
from metadraw.errors import InputError, is_out_of_memory
from metadraw.models.functional import call
from metadraw.training.learner import MetaLearner

#: Settings that may help if a step fails.
_REMEDIES: list[dict[str, Any]] = [
    {"learner.map_tasks": "loop"},
    {"learner.map_tasks": "loop", "learner.recompute_steps": False},
    {"algorithm.first_order": True},
    {"learner.map_tasks": "loop", "algorithm.first_order": True},
]


def try_step(make: Callable[[dict[str, Any]], MetaLearner], batch: Episode) -> None:
    """Take an outer step and evaluate some tasks, with a separate learner.

    Random states do not change.

    Args:
        make: makes a new learner with some settings changed, given by config key.
        batch: T tasks.

    Raises:
        InputError: a step fails, with the layer and a remedy; or the network changes one of its
            buffers.
    """
    with isolate_rng(include_cuda=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself repeats them
        torch.manual_seed(0)
        learner, task = make({}), batch.task(0)
        try:
            outputs = _forward(learner, task)
        except Exception as error:
            if _is_clear(error):
                raise
            raise InputError(_line(error, learner.algorithm.network, learner.algorithm)) from error
        expected = list(learner.objective.shape(task))
        if list(outputs.shape) != expected:
            raise InputError(
                f"algorithm: {type(learner.algorithm).__name__} gives outputs of shape "
                f"{list(outputs.shape)} for a query set of {expected[0]}: must be {expected}"
            )
        try:
            _step(learner, batch)
        except Exception as error:
            if _is_clear(error):
                raise
            raise InputError(_explain(error, learner, make, batch)) from error


def count_features(network: nn.Module, x: Tensor) -> int:
    """The number of a network's features; initialises lazy layers, such as `torch.nn.LazyLinear`.

    Args:
        network: maps inputs to features.
        x: some inputs, ``[B, ...]``.

    Raises:
        InputError: the network cannot take such inputs, or does not return ``[B, F]``.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()  # which changes no buffer
    lazy = any(is_lazy(parameter) for parameter in network.parameters())
    try:
        # A lazy layer draws its parameters now, from the run's random state; nothing else may.
        with torch.no_grad(), nullcontext() if lazy else isolate_rng(include_cuda=False):
            features = network(torch.zeros_like(x))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(_line(error, network, network)) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    name = f"model: {type(network).__name__}"
    if not isinstance(features, Tensor):
        kind = type(features).__name__
        raise InputError(f"{name} returns a {kind}: it must return one tensor of features")
    if features.ndim != 2 or len(features) != len(x):
        raise InputError(
            f"{name} returns features of shape {list(features.shape)} for {len(x)} inputs: must be "
            f"[{len(x)}, F]"
        )
    return features.shape[1]


def _forward(learner: MetaLearner, task: Episode) -> Tensor:
    """The outputs for a task's query set, without any derivative or map."""
    return learner.answer(learner.adapt(task, steps=0), task)


def _step(learner: MetaLearner, batch: Episode) -> None:
    """Everything that a run computes for a batch.

    Raises:
        InputError: a buffer has changed.
    """
    learner.task_map.tasks_per_chunk = 1  # little memory, and nothing to measure
    network = learner.algorithm.network
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    if learner.algorithm.meta_parameters():
        learner.meta_gradients(batch)
    learner.evaluate(batch)
    for name, buffer in network.named_buffers():
        if not torch.equal(buffer, before[name]):
            layer, _, own = name.rpartition(".")
            raise InputError(
                f"{_place(network, network.get_submodule(layer))} changes its buffer {own} in "
                "the forward pass, which would leak one task into the next: build it so that its "
                "buffers do not change"
            )


def _explain(
    error: Exception,
    learner: MetaLearner,
    make: Callable[[dict[str, Any]], MetaLearner],
    batch: Episode,
) -> str:
    """One line: the layer, what is wrong with it, and what helps, if anything."""
    # An error in the backward pass is not raised within any layer.
    otherwise = _layer_without_derivatives(learner, batch) or learner.algorithm
    line = _line(error, learner.algorithm.network, otherwise)
    for remedy in _REMEDIES:
        try:
            _step(make(remedy), batch)
        except InputError as reason:  # a clearer message than vmap's
            return str(reason)
        except Exception:  # it does not help
            continue
        settings = " ".join(f"{key}={str(value).lower()}" for key, value in remedy.items())
        return f"{line}: it works with {settings}"
    return line


def _is_clear(error: Exception) -> bool:
    """Whether an error needs no word about a layer: it is one line already, or about memory."""
    return isinstance(error, InputError) or is_out_of_memory(error)


def _line(error: Exception, network: nn.Module, otherwise: nn.Module) -> str:
    """The layer that raised an error, or another module, and the start of the error."""
    place = _place(network, _layer_of(error, network) or otherwise)
    reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0].rstrip(" .:")
    return f"{place} fails in a trial step: {shorten(reason, 160, placeholder='...')}"


def _place(network: nn.Module, module: nn.Module) -> str:
    """A module's name in a message: a layer of the network, or the algorithm."""
    names = {module: name for name, module in network.named_modules()}
    kind = type(module).__name__
    if module not in names:
        return f"algorithm: {kind}"
    return f"model: layer {names[module]} ({kind})" if names[module] else f"model: {kind}"


def _layer_of(error: Exception, network: nn.Module) -> nn.Module | None:
    """The innermost module whose method was running when an error was raised."""
    modules, innermost, trace = set(network.modules()), None, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in modules:
            innermost = owner
        trace = trace.tb_next
    return innermost


def _layer_without_derivatives(learner: MetaLearner, batch: Episode) -> nn.Module | None:
    """The innermost layer that cannot be differentiated twice on its own, mapped over tasks."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        calls.append((module, args, kwargs))

    modules = list(learner.algorithm.network.modules())
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    _forward(learner, batch.task(0))
    for hook in hooks:
        hook.remove()
    for each in calls:  # in the order in which they returned: inner ones first
        try:
            _differentiate_twice(learner.task_map.how, *each)
        except Exception:
            return each[0]
    return None


def _differentiate_twice(
    how: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Differentiate a module's output twice, with respect to its input and parameters."""

    def square(values: Any) -> Tensor:
        return torch.stack([x.square().sum() for x in tree_leaves(values) if _is_float(x)]).sum()

    def size(variables: dict[str, Tensor]) -> Tensor:
        own = {name: variables[name] for name, _ in module.named_parameters()}
        inputs = [variables.get(str(place), x) for place, x in enumerate(args)]
        return square(call(module, own, *inputs, **kwargs))

    given = {str(place): x for place, x in enumerate(args) if _is_float(x)}
    given |= {name: p.detach() for name, p in module.named_parameters()}
    twice = grad(lambda variables: square(grad(size)(variables)))
    if how == "vmap":
        twice = vmap(twice, randomness="different")
        given = {name: x.expand(2, *x.shape) for name, x in given.items()}
    twice(given)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
