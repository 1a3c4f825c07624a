"""MANN (Santoro et al. 2016, "Meta-Learning with Memory-Augmented Neural Networks")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, State, linear
from metadraw.algorithms.inner_loop import whole
from metadraw.data.episode import Episode
from metadraw.models.head import cosine
from metadraw.objectives import Objective

_DECAY = 0.95  # gamma of equation 5, as in the paper


class MANN(Algorithm):
    """An LSTM that reads labelled examples one by one and writes them to an external memory.

    Nothing is adapted: a task is learned by what state and memory hold after its support set, in
    the order given. Each example comes with its label, whereas the paper presents a label one step
    later and scores every step. A query comes without a label; it reads, but writes nothing, so
    each query is answered by itself. One head reads and writes, where the paper has four, and its
    reading is as sharp as a learned key strength makes it (Graves et al. 2014, "Neural Turing
    Machines", equation 5): without it, a softmax of cosines is nearly uniform. Before adaptation
    nothing has been read.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: see `Algorithm`.
        controller: units of the LSTM.
        slots: rows of the memory.
        slot_width: size of a row.

    Raises:
        InputError: a size that is not a whole number of at least 1; see also `Algorithm`.
    """

    learns_head = False

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        controller: int,
        slots: int,
        slot_width: int,
    ) -> None:
        super().__init__(network, head, objective)
        self.controller = whole(controller=controller)
        self.slots, self.slot_width = whole(slots=slots), whole(slot_width=slot_width)
        inputs = head.in_features + objective.size + slot_width
        self.gates = nn.Linear(inputs + controller, 4 * controller)
        self.key = nn.Linear(controller, slot_width)
        self.log_strength = nn.Parameter(torch.tensor(10.0).log())
        self.write_gate = nn.Parameter(torch.tensor(0.0))
        self.output = nn.Linear(controller + slot_width, objective.size)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """Controller and memory before and after the support set; see `Algorithm.adapt`."""
        support, width = task.support, self.objective.width(task)
        features = self.embed(support)
        labels = self.objective.encode(support.y, width).to(features.dtype)
        labels = nn.functional.pad(labels, (0, self.objective.size - width))
        before = state = self._empty(features)
        for place in range(len(features)):
            now = self._read(state, features[place : place + 1], labels[place : place + 1])
            if support.weight is not None:  # an example of weight 0 is not there
                there = support.weight[place] > 0
                now = {name: torch.where(there, each, state[name]) for name, each in now.items()}
            state = now
        head = {f"head.{name}": p[:width] for name, p in self.output.named_parameters()}
        return [before | head, state | head]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]``, each read without a label."""
        features = self.features(x)
        hidden, _, key = self._control(state, features, features.new_zeros(1, self.objective.size))
        found = self._attention(key, state["memory"]) @ state["memory"]
        return linear(torch.cat([hidden, found], dim=1), state)

    def _empty(self, features: Tensor) -> State:
        sizes = {"hidden": self.controller, "cell": self.controller}
        sizes |= {"found": self.slot_width, "attention": self.slots, "usage": self.slots}
        state = {name: features.new_zeros(1, size) for name, size in sizes.items()}
        return state | {"memory": features.new_zeros(self.slots, self.slot_width)}

    def _control(
        self, state: State, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden state, cell and key ``[B, ...]`` of B examples, each next after the same state."""
        read = [features, labels, state["found"], state["hidden"]]
        inputs = torch.cat([each.expand(len(features), -1) for each in read], dim=1)
        # Written out: torch.vmap cannot map PyTorch's LSTM.
        enter, keep, leave, new = self.gates(inputs).split(self.controller, dim=1)
        cell = keep.sigmoid() * state["cell"] + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        return hidden, cell, self.key(hidden)

    def _attention(self, key: Tensor, memory: Tensor) -> Tensor:
        """Read weights ``[B, slots]`` of keys ``[B, slot_width]`` (equations 2 and 3)."""
        return (self.log_strength.exp() * cosine(key, memory)).softmax(dim=1)

    def _read(self, state: State, features: Tensor, labels: Tensor) -> State:
        """The state after one more example, ``[1, F]`` features and ``[1, size]`` label."""
        hidden, cell, key = self._control(state, features, labels)
        usage = state["usage"]
        slot = torch.arange(self.slots, device=usage.device)
        # Equation 6: the slot that was used least.
        least = (slot == usage.argmin(dim=1, keepdim=True)).to(usage.dtype)
        # Equation 7: write where the last step read, or to that slot, which is erased.
        gate = self.write_gate.sigmoid()
        write = gate * state["attention"] + (1 - gate) * least
        # Equation 8.
        memory = state["memory"] * (1 - least.T) + write.T @ key
        attention = self._attention(key, memory)
        return {
            "hidden": hidden,
            "cell": cell,
            "found": attention @ memory,  # equation 4
            "attention": attention,
            "usage": _DECAY * usage + attention + write,  # equation 5
            "memory": memory,
        }
