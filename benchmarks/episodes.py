"""What a batch of episodes costs, beside the meta-training step that uses it.

python benchmarks/episodes.py data.shots=5
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

import metadraw


def median_ms(work: Callable[[int], object], repetitions: int) -> float:
    """The median time of ``work(i)`` in milliseconds, after one call that does not count."""
    work(0)
    seconds = []
    for i in range(repetitions):
        start = time.perf_counter()
        work(i)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    cfg = metadraw.compose("trainer=cpu", *sys.argv[1:])
    data, learner = metadraw.build(cfg)
    sampler, tasks = data.episodes("train"), cfg.data.tasks_per_batch
    batch = sampler(torch.arange(tasks))
    sampling = median_ms(lambda i: sampler(torch.arange(i * tasks, (i + 1) * tasks)), 100)
    step = median_ms(lambda _: learner.meta_gradients(batch), 7)
    print(
        f"{cfg.data.ways}-way {cfg.data.shots}-shot, {tasks} tasks, "
        f"{' '.join(sys.argv[1:]) or 'defaults'}, {torch.get_num_threads()} threads: "
        f"sampling {sampling:.2f} ms, meta-gradients {step:.0f} ms: {sampling / step:.2%}"
    )
