"""In-context learning: a transformer that reads the support set (Fifty et al. 2024, "CAML")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, State
from metadraw.algorithms.inner_loop import whole
from metadraw.data.episode import Episode
from metadraw.data.hashing import fold, mix
from metadraw.errors import InputError
from metadraw.objectives import Objective
from metadraw.objectives.classification import Classification


class InContext(Algorithm):
    """Labelled examples and a query are one sequence; the query's last state is its answer.

    Nothing is adapted: learning a task is a forward pass over its support set. The token of an
    example is a projection of its features plus the code of its label (Fifty et al. concatenate
    the two); that of a query lacks the code, and its last state is scored against the codes.
    Examples attend to all examples and a query to the examples alone: each query is answered by
    itself, and examples have no order, unlike in SNAIL, which reads them one after the other
    (Mishra et al. 2018, "A Simple Neural Attentive Meta-Learner"). Real values are encoded by the
    same codes, one for each value of a target.

    In meta-training each task gives its N labels different codes out of ``max_ways``, chosen by a
    hash of the episode's number, so that all codes are learned and none stands for a class (Kirsch
    et al. 2022, "General-Purpose In-Context Learning by Meta-Learning Transformers", permute labels
    for the same reason). Elsewhere labels have the first N codes, so that a task's result depends
    on nothing but its examples. Before adaptation all outputs are zero.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: see `Algorithm`.
        max_ways: the maximum number of ways, or of values of a target.
        width: size of a token, a multiple of ``heads``.
        heads: attention heads of a layer.
        layers: transformer layers.

    Raises:
        InputError: a size that is not a whole number of at least 1, a width that the heads do not
            divide, or more ways than ``max_ways``; see also `Algorithm`.
    """

    any_ways = True
    learns_head = False

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        max_ways: int,
        width: int,
        heads: int,
        layers: int,
    ) -> None:
        super().__init__(network, head, objective)
        self.max_ways = whole(max_ways=max_ways)
        if whole(width=width) % whole(heads=heads):
            raise InputError(
                f"algorithm.width={width}: must be a multiple of algorithm.heads={heads}"
            )
        self._check(objective.size)
        self.embedding = nn.Linear(head.in_features, width)
        self.codes = nn.Parameter(torch.randn(max_ways, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(whole(layers=layers)))
        self.norm = nn.LayerNorm(width)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """What queries attend to, ``[layers, B, width]``, and codes; see `Algorithm.adapt`."""
        support, codes = task.support, self._codes_of(task)
        features = self.embed(support)
        labels = self.objective.encode(support.y, len(codes)).to(features.dtype)
        tokens = self._tokens(features) + labels @ codes
        read = []
        for layer in self.layers:
            read.append(tokens)
            tokens = layer(tokens, tokens, support.weight)
        known: State = {"examples": torch.stack(read)}
        if support.weight is not None:
            known["weight"] = support.weight
        return [known | {"codes": each} for each in (torch.zeros_like(codes), codes)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]``, each attending to the examples alone."""
        tokens = self._tokens(self.features(x))
        for layer, examples in zip(self.layers, state["examples"], strict=True):
            tokens = layer(tokens, examples, state.get("weight"))
        # Divided, as the dot products of attention are, so that outputs start at about 1.
        return self.norm(tokens) @ state["codes"].T / tokens.shape[1] ** 0.5

    def _tokens(self, features: Tensor) -> Tensor:
        """Tokens ``[B, width]`` of features, in full precision even where products are not.

        PyTorch's ``vmap`` of layer norm needs the type of its weights.
        """
        tokens: Tensor = self.embedding(features).to(self.norm.weight.dtype)
        return tokens

    def _codes_of(self, task: Episode) -> Tensor:
        """The codes ``[N, width]`` of a task's labels, or of the values of its targets."""
        ways = self.objective.width(task)
        self._check(ways)
        if not (self.training and isinstance(self.objective, Classification)):
            return self.codes[:ways]
        place = torch.arange(self.max_ways, device=task.number.device)
        return self.codes[fold(mix(task.number), place).argsort()[:ways]]

    def _check(self, ways: int) -> None:
        if ways > self.max_ways:
            raise InputError(
                f"algorithm.max_ways={self.max_ways}: must be at least {ways}, the number of ways "
                "of a task; it cannot be changed after meta-training"
            )


class Layer(nn.Module):
    """Attention to given tokens, then two linear layers, each with its input normalised first.

    Args:
        width: of a token.
        heads: of the attention, which divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads)
        # At first each token attends to examples like itself and copies them, code and all, as a
        # matching network does. Random matrices would have to learn this first.
        with torch.no_grad():
            query, key, value = self.attention.in_proj_weight.chunk(3)
            key.copy_(query)
            value.copy_(torch.eye(width))
            self.attention.out_proj.weight.copy_(torch.eye(width))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, examples: Tensor, weight: Tensor | None) -> Tensor:
        """The next ``[B, width]`` tokens, from those of E examples with weights ``[E]``."""
        read = self.before(examples)
        # An example of weight 2 is one that comes twice, and one of weight 0 is not there.
        mask = None if weight is None else weight.log().expand(len(tokens), -1)
        found, _ = self.attention(
            self.before(tokens), read, read, attn_mask=mask, need_weights=False
        )
        tokens = tokens + found
        return tokens + self.mlp(tokens)
