"""Second-order MAML of the report's network in plain JAX, a peer for benchmarks/speed.py.

Images are channels-last, which is faster than channels-first on a CPU, and inner steps are
unrolled. The mean meta-gradient of a batch is compiled as one program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from metadraw.data.episode import Episode

Params = dict[str, Array]
Task = tuple[Array, Array, Array, Array]  # support x and y, query x and y


def lax_convolution(x: Array, weight: Array) -> Array:
    """XLA's own convolution, ``[B, H, W, I]`` by ``[O, I, 3, 3]`` -> ``[B, H, W, O]``."""
    return lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )


def window_product(x: Array, weight: Array) -> Array:
    """The same as one product with each pixel's 3x3 window: on a CPU several times as fast."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, axis=-1) @ weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


#: The faster one depends on the machine.
CONVOLUTIONS = {"convolution": lax_convolution, "product": window_product}


def logits(params: Params, x: Array, convolve: Callable[[Array, Array], Array]) -> Array:
    """`metadraw.models.conv4.Conv4` and a head, by the names in a `torch.nn.Sequential` of both."""
    for i in range(4):
        x = convolve(x, params[f"0.{i}.0.weight"]) + params[f"0.{i}.0.bias"]
        variance = x.var((0, 1, 2))
        x = (x - x.mean((0, 1, 2))) * lax.rsqrt(variance + 1e-5)
        x = jax.nn.relu(x * params[f"0.{i}.1.weight"] + params[f"0.{i}.1.bias"])
        images, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        # Not reduce_window, whose derivatives are slower.
        x = x.reshape(images, height // 2, 2, width // 2, 2, channels).max((2, 4))
    features = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return features @ params["1.weight"].T + params["1.bias"]


def mean_meta_gradient(
    how: str, convolution: str, steps: int, lr: float
) -> Callable[[Params, Task], Params]:
    """A function of meta-parameters and a batch that returns the mean meta-gradient.

    Args:
        how: ``jax_vmap``, all tasks at once, or ``jax_scan``, one after the other.
        convolution: of `CONVOLUTIONS`.
        steps: inner steps.
        lr: the inner learning rate.
    """

    def loss(params: Params, x: Array, y: Array) -> Array:
        chances = jax.nn.log_softmax(logits(params, x, CONVOLUTIONS[convolution]))
        return -jnp.take_along_axis(chances, y[:, None], 1).mean()

    def outer_loss(params: Params, task: Task) -> Array:
        support_x, support_y, query_x, query_y = task
        for _ in range(steps):
            gradient = jax.grad(loss)(params, support_x, support_y)
            params = jax.tree.map(lambda p, g: p - lr * g, params, gradient)
        return loss(params, query_x, query_y)

    of_task = jax.grad(outer_loss)

    def by_vmap(params: Params, batch: Task) -> Params:
        gradients = jax.vmap(of_task, (None, 0))(params, batch)
        return jax.tree.map(lambda g: g.mean(0), gradients)

    def by_scan(params: Params, batch: Task) -> Params:
        def add(total: Params, task: Task) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, of_task(params, task)), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, params), batch)
        return jax.tree.map(lambda g: g / len(batch[0]), total)

    return {"jax_vmap": by_vmap, "jax_scan": by_scan}[how]


def arguments(network: object, batch: Episode) -> tuple[Params, Task]:
    """The arguments of `mean_meta_gradient`, from a `Conv4` with its head and a batch."""
    params = {name: jnp.asarray(p.detach().cpu()) for name, p in network.named_parameters()}
    examples = (*batch.support[:2], *batch.query[:2])
    support_x, support_y, query_x, query_y = (jnp.asarray(field.cpu()) for field in examples)
    last = (0, 1, 3, 4, 2)  # channels
    return params, (support_x.transpose(last), support_y, query_x.transpose(last), query_y)


def peak_bytes() -> int | None:
    """The peak memory on the GPU, or `None` on the CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
