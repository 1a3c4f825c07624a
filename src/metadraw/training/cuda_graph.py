"""A step on a GPU as one CUDA graph: its kernels are launched together, not one by one.

https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_leaves, tree_map

from metadraw.data.episode import Episode
from metadraw.errors import InputError

_Result = TypeVar("_Result")
_WARM_UPS = 3  # calls in which libraries choose their kernels and allocate memory


class _Captured(NamedTuple, Generic[_Result]):
    graph: torch.cuda.CUDAGraph
    batch: Episode  # which the graph reads
    result: _Result  # which it writes


class CudaGraph(Generic[_Result]):
    """A function of a batch of episodes, captured for each shape and replayed.

    Everything else that the function reads (parameters, settings) is fixed at capture, except the
    values of tensors that keep their address.

    Args:
        function: maps a batch on a GPU to tensors in any structure of tuples and dicts, without
            reading values back from the GPU. Each replay draws new random numbers.
    """

    def __init__(self, function: Callable[[Episode], _Result]) -> None:
        self._function = function
        self._captured: dict[object, _Captured[_Result]] = {}

    def __call__(self, batch: Episode) -> _Result:
        """The function's result for a batch.

        Raises:
            InputError: it cannot be captured.
        """
        kind = tuple((values.shape, values.dtype) for values in tree_leaves(batch))
        if kind not in self._captured:
            self._captured[kind] = self._capture(batch)
        captured = self._captured[kind]
        for into, values in zip(tree_leaves(captured.batch), tree_leaves(batch), strict=True):
            into.copy_(values)
        captured.graph.replay()
        result: _Result = tree_map(torch.clone, captured.result)  # the next replay overwrites it
        return result

    def forget(self) -> None:
        """Discard all graphs, because the function has changed."""
        self._captured.clear()

    def _capture(self, batch: Episode) -> _Captured[_Result]:
        batch = tree_map(torch.clone, batch)
        try:
            with isolate_rng():  # the first step's random numbers do not change
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UPS):
                        self._function(batch)
                torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._function(batch)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"learner.cuda_graph=true: a step cannot be captured ({reason}): it must be false"
            ) from error
        return _Captured(graph, batch, result)
