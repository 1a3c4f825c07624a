"""Calling a module with parameters other than its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call(module: nn.Module, params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`torch.func.functional_call`, also correct if a weight or a layer has several names.

    PyTorch's own weight tying fails to restore the parameters of a layer with two names (PyTorch
    issue 164759).

    Args:
        module: the module to call.
        params: parameters and buffers that replace its own, by their names in
            ``named_parameters``; all other uses of a shared weight follow.
        *args: arguments of the call.
        **kwargs: keyword arguments of the call.

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
