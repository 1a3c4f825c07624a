"""How many operations a step takes, each one launch on a GPU: docs/operations.md.

``python tests/test_operations.py`` rewrites it.
"""

import pytest
import torch
from conftest import ALGORITHMS, ROOT, each_algorithm, tasks_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metadraw
from metadraw.training.factory import build_learner

TABLE = ROOT / "docs" / "operations.md"
TASKS, WAYS = 25, 5
NETWORKS = {"fused blocks": [], "PyTorch's layers": ["model.fused=false"]}


class Operations(TorchDispatchMode):
    """Counts operations that compute something, not views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        known = storages((args, kwargs))
        if func._schema.is_mutable or not storages(output) <= known:
            self.count += 1
        return output


def storages(values):
    return {x.untyped_storage()._cdata for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


def episodes():
    return tasks_of(*torch.rand(2, TASKS, WAYS, 1, 28, 28), WAYS)


def find(algorithm, network):
    """The counts of a meta-training and a meta-test step of all tasks at once."""
    learner = build_learner(metadraw.compose(f"algorithm={algorithm}", *NETWORKS[network]))
    learner.task_map.tasks_per_chunk = None
    learner.algorithm.begin_epoch(10**6)  # MAML++ starts at first order
    batch, found = episodes(), []
    trained = bool(learner.algorithm.meta_parameters())
    for step in (learner.meta_gradients if trained else None, learner.evaluate):
        with Operations() as operations:
            if step is not None:
                step(batch)
        found.append(operations.count)
    return found


TEXT = """# Operations

How many PyTorch operations a step takes. On a CPU they hardly matter; on a GPU each launches a
kernel, and many small ones take longer than the arithmetic. Counted for a step of 25 5-way 1-shot
tasks, all at once, with each algorithm's default settings, late in a run; views are not counted.

No operation reads a value back from the device or makes a tensor elsewhere: every algorithm's steps
run on PyTorch's `meta` device, where that would fail.

Measured with torch {torch} by `python tests/test_operations.py`, which writes this file. With that
version, the tests accept no more operations than these.

| algorithm | meta-training: fused blocks | PyTorch's layers | meta-test: fused blocks | PyTorch's layers |
| --- | --- | --- | --- | --- |
"""  # noqa: E501


def written():
    """The table's rows by algorithm, and whether they are of this version of PyTorch."""
    text = TABLE.read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    counts = {name: [int(cell.replace(",", "")) for cell in cells] for name, *cells in rows[2:]}
    return counts, f"torch {torch.__version__.partition('+')[0]} " in text


@pytest.mark.parametrize("algorithm", each_algorithm())
def test_no_more_operations_than_written(algorithm):
    (counts, same_version), found = written(), []
    for network in NETWORKS:
        found.append(find(algorithm, network))
    train, test = zip(*found, strict=True)
    slack = 1 if same_version else 1.2  # versions decompose some functions differently
    for count, ceiling in zip((*train, *test), counts[algorithm], strict=True):
        assert count <= slack * ceiling


def test_a_step_of_maml_stays_below_3000():
    assert written()[0]["maml"][0] < 3000


def test_views_are_not_counted():
    x = torch.rand(3, 4)
    with Operations() as operations:
        x.T.view(-1, 2, 3)[0].add_(1)
        (x + 1).sum()
    assert operations.count == 3


def main():
    rows = []
    for algorithm in ALGORITHMS:
        train, test = zip(*(find(algorithm, network) for network in NETWORKS), strict=True)
        rows.append(f"| {algorithm} | {' | '.join(f'{n:,}' for n in (*train, *test))} |\n")
    TABLE.write_text(TEXT.format(torch=torch.__version__.partition("+")[0]) + "".join(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
