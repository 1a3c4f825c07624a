"""How many tasks are computed at once, by bytes of memory."""

import pytest
import torch
from conftest import tasks_of
from test_meta_gradients import relative_error

import metadraw
from metadraw.training import chunks
from metadraw.training.factory import build_learner

FLOATS = 1000  # in an image


def episodes(tasks, images, shape):
    return tasks_of(*torch.rand(2, tasks, images, *shape), ways=min(images, 5))


def one_after_the_other(episode):
    x = episode.support.x
    for _ in range(9):
        x = x * 2
    return x  # the previous one lives until then


def all_are_kept(episode):
    return [episode.support.x * factor for factor in range(9)]


def kept_for_the_way_back(episode):
    def loss(x):
        for _ in range(9):
            x = x.sin()
        return x.sum()

    return torch.func.grad(loss)(episode.support.x)


@pytest.mark.parametrize(
    ("function", "least", "most"),
    [
        (one_after_the_other, 2, 2),
        (all_are_kept, 9, 9),
        # The backward pass needs the sines, and of each its cosine and their product.
        (kept_for_the_way_back, 9, 27),
    ],
)
def test_bytes_of_a_task(function, least, most):
    batch = episodes(3, 1, (FLOATS,))
    before = torch.get_rng_state()
    found = chunks.bytes_of_a_task(function, batch)
    assert least <= found // (4 * FLOATS) <= most
    assert torch.equal(torch.get_rng_state(), before)
    assert chunks.bytes_of_a_task(function, batch) == found


@pytest.mark.parametrize(
    ("tasks", "size", "chunk"),
    [(25, 1, 25), (25, chunks.BYTES // 13, 13), (25, chunks.BYTES // 12, 9), (3, 1 << 40, 1)],
)
def test_chunks_are_as_large_as_fits_and_alike(tasks, size, chunk):
    assert chunks.tasks_at_once(tasks, size) == chunk


@pytest.mark.parametrize("how", ["maml", "fomaml", "protonet"])
def test_what_a_task_takes_is_measured_of_its_images_and_network(how):
    def taken(shape, *overrides):
        sizes = [f"data.image_size={shape[1]}", f"data.image_channels={shape[0]}"]
        learner = build_learner(metadraw.compose(f"algorithm={how}", *sizes, *overrides))
        learner.meta_gradients(episodes(2, 5, shape))
        (found,) = learner.task_map._bytes.values()
        return found

    small = taken((1, 28, 28))
    assert 3 < taken((1, 56, 56)) / small < 5
    assert 1.5 < taken((1, 28, 28), "model.hidden_channels=40") / small < 3
    if how == "maml":
        assert taken((1, 28, 28), "algorithm.inner_steps=10") > 1.5 * small
        assert taken((1, 28, 28), "learner.recompute_steps=true") < 0.7 * small


def test_auto_gives_the_same_in_chunks(monkeypatch):
    batch = episodes(5, 5, (1, 28, 28))
    learner = build_learner(metadraw.compose("algorithm=maml"))
    whole, values = learner.meta_gradients(batch)
    outcome = learner.evaluate(batch)
    assert len(learner.task_map._bytes) == 2  # a step and an evaluation
    monkeypatch.setattr(chunks, "BYTES", 2 * max(learner.task_map._bytes.values()))
    parts, values_of_parts = learner.meta_gradients(batch)
    assert relative_error(parts, whole) < 1e-4
    torch.testing.assert_close(values_of_parts, values)
    torch.testing.assert_close(learner.evaluate(batch).after, outcome.after)


def test_measured_anew_in_every_epoch():
    """MAML++ is first-order in its first epochs, and takes more memory later."""
    batch = episodes(2, 5, (1, 28, 28))
    learner = build_learner(metadraw.compose("algorithm=maml_pp"))
    found = []
    for epoch in (0, 1000):
        learner.algorithm.begin_epoch(epoch)
        learner.task_map._bytes.clear()  # as on_train_epoch_start does
        learner.meta_gradients(batch)
        found += learner.task_map._bytes.values()
    assert found[1] > 1.2 * found[0]
