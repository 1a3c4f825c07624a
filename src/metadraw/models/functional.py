"""Calling a module with other parameters than its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call(module: nn.Module, params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`torch.func.functional_call`, also right where a weight or a layer has several names.

    PyTorch's own way of tying weights leaves a layer with two names with the given tensors instead
    of its parameters (PyTorch issue 164759).

    Args:
        module: called as it is, but for these parameters and buffers.
        params: tensors by the names that ``named_parameters`` gives; those of all other places of
            a shared weight follow.
        *args: what the module is called with.
        **kwargs: likewise, by name.

    Returns:
        What the module returns.
    """
    everywhere = dict(params)
    first: dict[int, str] = {}
    for path, layer in module.named_modules():  # a layer with two names comes once
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                name = f"{path}.{key}" if path else key
                shared = first.setdefault(id(parameter), name)
                if shared != name and shared in params:
                    everywhere[name] = params[shared]
    return functional_call(module, everywhere, args, kwargs, tie_weights=False)
