"""Step times and memory of metadraw and its peers, each in its own process, on one machine.

pip install '.[benchmarks]'
python benchmarks/speed.py settings data.source=npm      # the report's six shapes of a task
python benchmarks/speed.py algorithms data.source=npm    # every algorithm, 5-way 1-shot
python benchmarks/speed.py memory data.source=npm        # many inner steps, kept and recomputed

Tables go to benchmarks/results/speed-<table>.md. A step is the meta-gradient of 25 tasks; every
way of computing it is checked to give the same result. With trainer=gpu everything is measured on a
GPU, including JAX if it was installed as jax[cuda12]; benchmarks/gpu.py measures more there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.command.config import CONFIGS
from metadraw.data.episode import Episode

RESULTS = Path(__file__).resolve().parent / "results"
TASKS = 25
PLAIN = ["model.fused=false"]
#: Overrides for each way of computing; all but metadraw's use PyTorch's own layers.
WAYS = {
    "metadraw": [],
    "vmap": [*PLAIN, "learner.tasks_per_chunk=5"],  # as fast as all 25, in a fifth of the memory
    "loop": PLAIN,
    "higher": PLAIN,
    "torchopt": PLAIN,
    "jax_vmap": PLAIN,
    "jax_scan": PLAIN,
}
#: How the JAX peers may compute convolutions (see benchmarks/maml_in_jax.py).
JAX_CONVOLUTIONS = ("convolution", "product")


def whole_network(algorithm: nn.Module) -> nn.Module:
    """Network and head, for those that make no difference between them."""
    return nn.Sequential(algorithm.network, *([algorithm.head] if algorithm.head else []))


def maml_by_loop(network: nn.Module, algorithm: nn.Module, task: Episode) -> list[Tensor]:
    """The plainest MAML: one task's meta-gradient by `torch.autograd.grad`."""
    meta = dict(network.named_parameters())
    fast, first_order = meta, algorithm.inner.first_order
    for _ in range(algorithm.inner_steps):
        loss = F.cross_entropy(functional_call(network, fast, (task.support.x,)), task.support.y)
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        rows = zip(fast.items(), gradients, strict=True)
        fast = {name: p - algorithm.inner.inner_lr * g for (name, p), g in rows}
    loss = F.cross_entropy(functional_call(network, fast, (task.query.x,)), task.query.y)
    return list(torch.autograd.grad(loss, list(meta.values())))


def evaluate_by_loop(network: nn.Module, algorithm: nn.Module, task: Episode) -> list[Tensor]:
    """The plainest evaluation: one task's query logits before and after adaptation."""
    before = dict(network.named_parameters())
    fast = before
    for _ in range(algorithm.eval_inner_steps):
        loss = F.cross_entropy(functional_call(network, fast, (task.support.x,)), task.support.y)
        rows = zip(fast.items(), torch.autograd.grad(loss, list(fast.values())), strict=True)
        stepped = {name: p - algorithm.inner.inner_lr * g for (name, p), g in rows}
        fast = {name: p.detach().requires_grad_() for name, p in stepped.items()}
    with torch.no_grad():
        return [functional_call(network, params, (task.query.x,)) for params in (before, fast)]


def maml_by_higher(network: nn.Module, algorithm: nn.Module, task: Episode) -> list[Tensor]:
    """One task's meta-gradient by `higher`."""
    import higher

    inner = torch.optim.SGD(network.parameters(), lr=algorithm.inner.inner_lr)
    with higher.innerloop_ctx(
        network,
        inner,
        copy_initial_weights=False,
        track_higher_grads=not algorithm.inner.first_order,
    ) as (fast, optimizer):
        for _ in range(algorithm.inner_steps):
            optimizer.step(F.cross_entropy(fast(task.support.x), task.support.y))
        loss = F.cross_entropy(fast(task.query.x), task.query.y)
        return list(torch.autograd.grad(loss, list(network.parameters())))


def maml_by_torchopt(network: nn.Module, algorithm: nn.Module, task: Episode) -> list[Tensor]:
    """One task's meta-gradient by `torchopt`."""
    import torchopt

    meta = list(network.parameters())
    inner = torchopt.MetaSGD(network, lr=algorithm.inner.inner_lr)
    start = torchopt.extract_state_dict(network, by="reference")
    for _ in range(algorithm.inner_steps):
        inner.step(F.cross_entropy(network(task.support.x), task.support.y))
    loss = F.cross_entropy(network(task.query.x), task.query.y)
    gradient = list(torch.autograd.grad(loss, meta))
    torchopt.recover_state_dict(network, start)
    return gradient


LOOPS = {"loop": maml_by_loop, "higher": maml_by_higher, "torchopt": maml_by_torchopt}


def median_ms(work: Callable[[], object], seconds: float) -> float:
    """The median time of ``work()`` over at least 3 calls, after one that does not count."""
    work()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 20):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure(way: str, overrides: list[str]) -> dict[str, float]:
    """Meta-train and meta-test step time in ms, peak memory in GB, and the gradient's norm.

    For JAX, meta-train step time, memory, norm, and the seconds of compilation.
    """
    warnings.filterwarnings("ignore")
    torch.backends.cudnn.allow_tf32 = False  # as for JAX, and as PyTorch does for products
    cfg = metadraw.compose("trainer=cpu", *overrides, *WAYS[way.partition("/")[0]])
    data, learner = metadraw.build(cfg)
    on_gpu = cfg.trainer.accelerator == "gpu"
    learner.to("cuda" if on_gpu else "cpu")
    batch = data.episodes("train", learner.device)(torch.arange(TASKS))
    algorithm = learner.algorithm
    network = whole_network(algorithm)
    if way.startswith("jax"):
        return measure_jax(*way.split("/"), network, algorithm, batch)
    if way in LOOPS:
        tasks = [batch.task(i) for i in range(TASKS)]

        def step() -> list[Tensor]:
            parts = [LOOPS[way](network, algorithm, task) for task in tasks]
            return [torch.stack(rows).mean(0) for rows in zip(*parts, strict=True)]
    else:

        def step() -> list[Tensor]:
            gradient, _ = learner.meta_gradients(batch)
            return [gradient[name] for name, _ in algorithm.named_parameters()]

    gradient: list[Tensor] = []

    def keep() -> None:
        gradient[:] = step()
        if on_gpu:
            torch.cuda.synchronize()

    found = {"train": median_ms(keep, 8)}
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if on_gpu:
        found["memory"] = torch.cuda.max_memory_allocated() / 2**30
    found["norm"] = torch.cat([g.flatten() for g in gradient]).norm().item()

    def evaluate() -> None:
        if way == "loop":
            for task in tasks:
                evaluate_by_loop(network, algorithm, task)
        else:
            learner.evaluate(batch)
        if on_gpu:
            torch.cuda.synchronize()

    if way in ("metadraw", "vmap", "loop"):
        found["test"] = median_ms(evaluate, 4)
    return found


def measure_jax(
    how: str, convolution: str, network: nn.Module, algorithm: nn.Module, batch: Episode
) -> dict[str, float]:
    """`measure` of one of the JAX peers."""
    # XLA uses one thread per core of the process, and has no setting for that.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])
    import jax

    jax.config.update("jax_platforms", "cuda" if batch.number.is_cuda else "cpu")
    jax.config.update("jax_default_matmul_precision", "float32")  # a GPU would round to TF32
    import maml_in_jax  # beside this file

    step = maml_in_jax.mean_meta_gradient(
        how, convolution, algorithm.inner_steps, algorithm.inner.inner_lr
    )
    arguments = maml_in_jax.arguments(network, batch)
    start = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    found = {"compile": time.perf_counter() - start}
    found["train"] = median_ms(lambda: jax.block_until_ready(compiled(*arguments)), 8)
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    found["memory"] = (maml_in_jax.peak_bytes() or of_process) / 2**30
    gradients = compiled(*arguments)
    return found | {"norm": float(sum((g**2).sum() for g in gradients.values()) ** 0.5)}


def in_process(way: str, overrides: list[str], threads: int) -> dict[str, float] | None:
    """`measure` in a new process; `None` if it fails, after printing its last line."""
    done = subprocess.run(
        [sys.executable, __file__, "measure", way, *overrides],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(way, *overrides, "failed:", (done.stderr.strip().splitlines() or ["killed"])[-1])
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(way, *overrides, found, flush=True)
    return found


def fastest(way: str, overrides: list[str], threads: int) -> dict[str, float] | None:
    """`in_process`; for the JAX peers, the faster of their convolutions."""
    variants = [f"{way}/{c}" for c in JAX_CONVOLUTIONS] if way.startswith("jax") else [way]
    rows = [row for each in variants if (row := in_process(each, overrides, threads))]
    return min(rows, key=lambda row: row["train"], default=None)


def floor_gflop(ways: int, shots: int, steps: int = 5) -> float:
    """Arithmetic of the convolutions in second-order MAML, 25 tasks, as many queries as shots.

    A convolution and its derivatives with respect to images and to weights cost the same. A step
    needs each of them once, then four for the derivatives of the latter two and two for those of
    the first; the first layer has no derivative with respect to images. A query set needs three.
    """
    layers = [(784, 1), (196, 20), (49, 20), (9, 20)]  # output pixels, input channels
    step = [4, 9, 9, 9]
    query = [2, 3, 3, 3]
    per_image = [2 * pixels * channels * 9 * 20 for pixels, channels in layers]
    images = TASKS * ways * shots
    return (
        images
        * sum(f * (steps * s + q) for f, s, q in zip(per_image, step, query, strict=True))
        / 1e9
    )


def convolution_rate(device: str) -> float:
    """GFLOP/s of the network's second convolution, one for all images."""
    x = torch.randn(125, 20, 14, 14, device=device)
    weight = torch.randn(20, 20, 3, 3, device=device)

    def convolve(x: Tensor) -> None:
        F.conv2d(x, weight, padding=1)
        if device == "cuda":
            torch.cuda.synchronize()

    layouts = (torch.contiguous_format, torch.channels_last)
    with torch.no_grad():
        fastest = min(median_ms(partial(convolve, x.to(memory_format=m)), 1) for m in layouts)
    return 2 * 125 * 196 * 20 * 20 * 9 / 1e6 / fastest


def settings_table(threads: int, overrides: list[str]) -> Iterator[str]:
    """Second-order MAML at the report's shapes of a task; 100 or 20 samples take the same time."""
    rate = in_process("rate", overrides, threads)["rate"]
    yield (
        f"The floor is the arithmetic of the convolutions at {rate:.0f} GFLOP/s, the rate of one "
        "of them on this machine. Of the JAX peers, XLA's convolution or the product with 3x3 "
        "windows, whichever is faster in a step, on as many cores as threads; compiling comes "
        "before the steps that are timed."
    )
    yield ""
    compiled = [way for way in WAYS if way.startswith("jax")]
    yield (
        "| task | floor, ms | " + " | ".join(f"{way}, ms" for way in WAYS) + " | loop / metadraw "
        "| fastest peer / metadraw | metadraw / floor | metadraw, tasks a second | "
        "meta-test: metadraw, ms | meta-test: vmap, ms | meta-test: loop, ms | "
        + " | ".join(f"{way}, GB" for way in WAYS)
        + "".join(f" | {way}, s to compile" for way in compiled)
        + " |"
    )
    yield "| --- " * (9 + 2 * len(WAYS) + len(compiled)) + "|"
    for ways in (5, 10):
        for shots in (1, 5, 10):
            task = [f"data.ways={ways}", f"data.shots={shots}"]
            found = {way: fastest(way, [*task, *overrides], threads) for way in WAYS}
            times = {way: row["train"] for way, row in found.items() if row}
            norms = [row["norm"] for row in found.values() if row]
            assert max(norms) < 1.005 * min(norms), f"different meta-gradients: {norms}"
            ours, floor = times.pop("metadraw"), 1000 * floor_gflop(ways, shots) / rate
            cells = [f"{ways}-way {shots}-shot", f"{floor:,.0f}"]
            cells += [f"{row['train']:,.0f}" if row else "failed" for row in found.values()]
            cells += [f"{times['loop'] / ours:.1f}", f"{min(times.values()) / ours:.1f}"]
            cells += [f"{ours / floor:.1f}", f"{1000 * TASKS / ours:.0f}"]
            cells += [f"{found[way]['test']:,.0f}" for way in ("metadraw", "vmap", "loop")]
            cells += [f"{row['memory']:.1f}" if row else "failed" for row in found.values()]
            rows = [found[way] for way in compiled]
            cells += [f"{row['compile']:.1f}" if row else "failed" for row in rows]
            yield f"| {' | '.join(cells)} |"


def algorithms_table(threads: int, overrides: list[str]) -> Iterator[str]:
    """Every algorithm with its default steps, 5-way 1-shot, by fused blocks and without."""
    yield (
        "| algorithm | meta-train, ms | by PyTorch's layers, ms | tasks a second | meta-test, ms | "
        "by PyTorch's layers, ms | GB |"
    )
    yield "| --- " * 7 + "|"
    for name in sorted(path.stem for path in (CONFIGS / "algorithm").glob("*.yaml")):
        if name == "scratch":  # nothing to meta-train
            continue
        ours, plain = (
            in_process(way, [f"algorithm={name}", *overrides], threads)
            for way in ("metadraw", "vmap")
        )
        if ours and plain:
            yield (
                f"| `{name}` | {ours['train']:,.0f} | {plain['train']:,.0f} | "
                f"{1000 * TASKS / ours['train']:,.0f} | {ours['test']:,.0f} | "
                f"{plain['test']:,.0f} | {ours['memory']:.1f} |"
            )
    yield ""
    for name in ("maml", "fomaml"):
        if loop := in_process("loop", [f"algorithm={name}", *overrides], threads):
            yield (
                f"`{name}` in a per-task loop: meta-train {loop['train']:,.0f} ms, "
                f"meta-test {loop['test']:,.0f} ms."
            )


def memory_table(threads: int, overrides: list[str]) -> Iterator[str]:
    """Second-order MAML, 5-way 1-shot, by inner steps, kept and computed again."""
    yield "| inner steps | kept: ms | GB | computed again: ms | GB |"
    yield "| --- " * 5 + "|"
    for steps in (5, 10, 20, 50):
        cells = [str(steps)]
        for again in ("false", "true"):
            how = [f"algorithm.inner_steps={steps}", f"learner.recompute_steps={again}"]
            # All tasks at once: memory is what is measured.
            row = in_process(
                "metadraw", [*how, "learner.tasks_per_chunk=null", *overrides], threads
            )
            cells += [f"{row['train']:,.0f}", f"{row['memory']:.2f}"] if row else ["failed"] * 2
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure one way in this process, or write a table."""
    if sys.argv[1:2] == ["measure"]:
        way, overrides = sys.argv[2], sys.argv[3:]
        if way == "rate":
            device = "cuda" if "trainer=gpu" in overrides else "cpu"
            print(json.dumps({"rate": convolution_rate(device)}))
        else:
            print(json.dumps(measure(way, overrides)))
        return
    tables = {"settings": settings_table, "algorithms": algorithms_table, "memory": memory_table}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=list(tables))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("overrides", nargs="*", help="for all, e.g. data.source=npm")
    given = parser.parse_args()
    table = tables[given.table]
    lines = [
        f"# Speed: {given.table}",
        "",
        f"`python benchmarks/speed.py {' '.join(sys.argv[1:])}`, {given.threads} threads, "
        f"{platform.machine()} CPU with {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if 'trainer=gpu' in given.overrides else 'no GPU'}.",
        f"{table.__doc__} Medians of a step of {TASKS} tasks, peak memory of the process.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    for line in table(given.threads, given.overrides):
        lines.append(line)
        (RESULTS / f"speed-{given.table}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
