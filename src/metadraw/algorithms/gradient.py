"""The gradient of one task's loss, and layers in a form that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from metadraw.algorithms.recompute import Params


def grad(function: Callable[[Params], Any], has_aux: bool = False) -> Callable[[Params], Any]:
    """``torch.func.grad`` of a function of parameters by name, for any layer of PyTorch.

    Within a transform of ``torch.func``, such as ``vmap``, it is exactly that. Elsewhere it uses
    plain ``torch.autograd``, which also handles what ``torch.func`` cannot, such as a custom
    ``torch.autograd.Function`` without a ``setup_context``, or checkpointing.

    Args:
        function: maps parameters to a scalar and, with ``has_aux``, other tensors.
        has_aux: whether ``function`` returns other tensors.

    Returns:
        A function that maps parameters to the gradient by name, and those tensors. The result can
        be differentiated again, unless it is computed under `torch.no_grad`.
    """

    def gradient(params: Params) -> Any:
        if torch._C._functorch.maybe_current_level() is not None:
            return torch.func.grad(function, has_aux=has_aux)(params)
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            # Copies, so that each has its own gradient even if one is computed from another.
            own = {name: _variable(p, keep) for name, p in params.items()}
            result = function(own)
            value, aux = result if has_aux else (result, None)
            gradients = (
                torch.autograd.grad(
                    value,
                    list(own.values()),
                    create_graph=keep,
                    allow_unused=True,
                    materialize_grads=True,
                )
                if own and value.requires_grad
                else [torch.zeros_like(p) for p in own.values()]
            )
        by_name = dict(zip(own, gradients, strict=True))
        if not keep:
            aux = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux)
        return (by_name, aux) if has_aux else by_name

    return gradient


def _variable(p: Tensor, keep: bool) -> Tensor:
    return p.clone() if keep and p.requires_grad else p.detach().requires_grad_()


@contextmanager
def twice_differentiable(network: nn.Module) -> Iterator[None]:
    """Within this context, PyTorch's layers use kernels that have second derivatives.

    The fused kernels of attention, of `torch.nn.TransformerEncoderLayer` in evaluation and of
    recurrent layers on a GPU have none, and no rule for ``torch.vmap``.

    Args:
        network: the one that will be called.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    cudnn, fused = torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled()
    torch.backends.cudnn.enabled = cudnn and not recurrent
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        torch.backends.mha.set_fastpath_enabled(fused)
