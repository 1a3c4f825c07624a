"""Ways and shots that differ from task to task, and from class to class, in one batch."""

import pytest
import torch
from conftest import equal, sampler_of, tiny_in
from matplotlib.figure import Figure
from test_meta_gradients import REFERENCES, SEMI_SUPERVISED, make_learner, relative_error

import metadraw
from metadraw import FewShot
from metadraw.data.episode import Episode
from metadraw.data.figures import draw_episode
from metadraw.data.tasks import EpisodeBatches
from metadraw.results.metrics import task_metrics
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

RANGES = {"ways": (3, 5), "shots": (1, 4), "queries": (2, 3)}


@pytest.fixture
def sampler(synthetic_images):
    return lambda **options: sampler_of(synthetic_images, **{"vary": "class"} | RANGES | options)


def counted(examples, ways=5):
    """How many examples of each class each task has, ``[T, N]``."""
    of_class = examples.y[..., None] == torch.arange(ways)
    return (of_class * examples.weight[..., None]).sum(dim=1).long()


def unpadded(task):
    """A task as one that was never part of a larger batch."""
    ways = int(task.support.extra["ways"][0])

    def real(examples):
        there = examples.weight > 0
        return examples._replace(x=examples.x[there], y=examples.y[there], extra={})

    sets = {name: real(examples) for name, examples in task.sets.items()}
    about = {"classes": task.about["classes"][:ways]}
    return Episode(real(task.support), real(task.query), task.number, sets, about)


def batch_of(task):
    """A batch of this task alone."""
    return torch.utils._pytree.tree_map(lambda values: values[None], task)


# ---- what is drawn -----------------------------------------------------------------------------


def test_every_number_of_the_range_as_often(sampler):
    number = torch.arange(4000)
    batch = sampler(vary="task")(number)
    support, query = counted(batch.support), counted(batch.query)
    ways = (support > 0).sum(dim=1)
    assert torch.equal(ways[:, None].expand_as(batch.support.y), batch.support.extra["ways"])
    # All classes that a task has are alike.
    for each in (support, query):
        assert torch.equal(each, each[:, :1] * (torch.arange(5) < ways[:, None]))
    for drawn, least, most in ((ways, 3, 5), (support[:, 0], 1, 4), (query[:, 0], 2, 3)):
        counts, numbers = drawn.bincount()[least:], most - least + 1
        assert len(counts) == numbers
        expected = len(number) / numbers
        assert (counts - expected).abs().max() < 6 * expected**0.5
    # Ways and shots are drawn independently.
    assert len(torch.stack([ways, support[:, 0]]).unique(dim=1).T) == 12


def test_shots_of_each_class_as_in_meta_dataset(synthetic_images):
    """Triantafillou et al. 2020: shares of the support set proportional to exp(alpha)."""
    sampler = sampler_of(synthetic_images, ways=(3, 8), shots=(2, 9), queries=1, vary="class")
    batch = sampler(torch.arange(500))
    support, ways = counted(batch.support, 8), batch.support.extra["ways"][:, 0]
    present = torch.arange(8) < ways[:, None]
    assert torch.equal(support > 0, present)
    assert (support.min(), support[present].min(), support.max()) == (0, 2, 9)
    # No task has more examples than its mean number of shots allows, nor all of its classes fewer
    # by more than rounding, unless a class has the maximum.
    even = sampler_of(synthetic_images, ways=(3, 8), shots=(2, 9), queries=1, vary="task")
    total, allowed = (counted(s(batch.number).support, 8).sum(dim=1) for s in (sampler, even))
    assert (total <= allowed).all()
    below = support.max(dim=1).values < 9
    assert (total > allowed - ways)[below].all()
    # Among classes with room, the largest share is at most four times the smallest.
    room = (allowed - 2 * ways).clamp(min=1)[:, None]
    shares = (support - 2) / room
    wide = (room[:, 0] > 20) & below
    largest = shares.where(present, 0).max(dim=1).values
    smallest = (shares.where(present, 1) + 1 / room).min(dim=1).values
    assert (largest / smallest)[wide].max() < 4
    assert (support.where(present, 9).min(dim=1).values < support.max(dim=1).values)[wide].all()


def test_more_only_adds_and_a_task_stays_what_it_is(sampler):
    batch, largest = sampler()(torch.arange(6)), sampler(ways=5, shots=4, queries=3)
    full = largest(torch.arange(6))
    assert torch.equal(batch.support.x, full.support.x)
    assert torch.equal(batch.about["classes"], full.about["classes"])
    # Alone, in another batch and on another rank, it is the same.
    assert equal(batch.task(3), sampler()(torch.tensor([3])).task(0))
    parts = [EpisodeBatches(sampler(), 6, rank, 2)[0] for rank in range(2)]
    assert torch.equal(torch.cat([part.support.weight for part in parts]), batch.support.weight)


def test_fixed_numbers_need_no_padding(sampler):
    fixed = {"ways": 4, "shots": 2, "queries": 3}
    varied, plain = (sampler(**fixed, vary=v)(torch.arange(3)) for v in ("class", "batch"))
    assert equal(varied, plain)
    assert not varied.support.extra


# ---- learning ----------------------------------------------------------------------------------


#: One of each kind of head, inner loop and outer loss.
LEARNERS = [
    *("maml", "maml_pp, epoch 3", "anil", "reptile", "proto_maml", "unicorn_maml", "self_training"),
    *("protonet", "soft_kmeans_protonet", "matching_net", "r2d2", "meta_baseline"),
    *("simple_shot", "lda", "qda", "baseline_pp", "logistic_regression"),
    *("cnp", "in_context", "mann", "cavia", "imaml", "meta_curvature"),
]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_mixed_batch_equals_its_tasks_one_by_one(name, sampler):
    """The same meta-gradient, loss and metrics as of the tasks without padding."""
    _, config, overrides, epoch = REFERENCES[name]
    unlabelled = 2 if name in SEMI_SUPERVISED else 0
    batch = sampler(unlabelled=unlabelled)(torch.arange(3)).to(torch.float64)
    assert len({tuple(row) for row in counted(batch.support).tolist()}) == 3
    fewer = ["algorithm.eval_inner_steps=2"] if name in ("unicorn_maml", "baseline_pp") else []
    learner = make_learner(config, 2, [*overrides, *fewer])
    learner.algorithm.begin_epoch(epoch)
    gradient, values = learner.meta_gradients(batch)
    outcome = learner.evaluate(batch)
    tested = task_metrics(learner.objective, outcome, batch.query)
    alone = [batch_of(unpadded(batch.task(position))) for position in range(3)]
    each = [learner.meta_gradients(task) for task in alone]
    expected = {n: torch.stack([g[n] for g, _ in each]).mean(dim=0) for n in gradient}
    assert relative_error(gradient, expected) < 1e-9
    again = [task_metrics(learner.objective, learner.evaluate(t), t.query) for t in alone]
    for found, reference in ((values, [v for _, v in each]), (tested, again)):
        if config in ("matching_net", "unicorn_maml", "self_training", "maml_pp"):
            # Before adaptation all classes tie, except for rounding.
            found = {n: v for n, v in found.items() if n == "loss_before" or "before" not in n}
        for metric, value in found.items():
            one_by_one = torch.cat([row[metric] for row in reference])
            torch.testing.assert_close(value, one_by_one, rtol=1e-9, atol=1e-12)
    # No example is ever of a class that its task does not have.
    absent = torch.arange(5) >= batch.query.extra["ways"][..., None]
    for logits in outcome:
        assert torch.equal(logits == torch.finfo(logits.dtype).min, absent)


VARIED = ["data.train_ways=[3,6]", "data.train_shots=[1,3]", "data.train_queries=2"]


def test_runs_with_such_batches(synthetic_folder, tmp_path):
    """Meta-training on them, tests of fixed and of varying size, and a resumed run."""

    def run(name, *overrides):
        own = [o for o in tiny_in(tmp_path / name, synthetic_folder) if "inner" not in o]
        varied = [*VARIED, "data.vary=class", "algorithm=protonet"]
        return train(metadraw.compose(*own, *varied, *overrides))

    def apart_from_time(found):
        return found["test"] | {"seconds": 0, "tasks_per_second": 0}

    whole = run("whole")
    run("first", "trainer.max_epochs=1")
    resumed = run("second", f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}")
    assert apart_from_time(resumed) == apart_from_time(whole)
    path = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    common = [f"ckpt_path={path}", "trainer=cpu", f"paths.output_dir={tmp_path / 'again'}"]
    again = evaluate(metadraw.compose(*common, config="eval"))
    assert apart_from_time(again) == apart_from_time(whole)
    ranges = ["data.ways=[3,6]", "data.shots=[1,3]", "data.vary=task"]
    other = evaluate(metadraw.compose(*common, *ranges, config="eval"))
    assert other["config"]["data"]["vary"] == "task"
    assert 0 < other["test"]["acc"] < 1
    assert (tmp_path / "again" / "episode.png").stat().st_size > 1000
    classes = FewShot(path).adapt({name: torch.rand(2, 28, 28) for name in "abcd"})
    assert classes.probabilities(torch.rand(3, 28, 28)).shape == (3, 4)


def test_an_unknown_choice(tiny):
    with pytest.raises(Exception, match=r"data.vary=epoch: must be batch, task or class"):
        metadraw.build(metadraw.compose(*tiny, "data.vary=epoch"))


def test_padding_is_not_drawn(sampler, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    batch = sampler()(torch.arange(6))
    for position in range(3):
        task, count = batch.task(position), counted(batch.support)[position]
        logits = torch.zeros(len(task.query.y), 5)
        draw_episode(task, [f"class {i}" for i in range(12)], tmp_path / "task.png", logits)
        drawn = [axes for axes in saved[-1].axes if axes.images]
        queries = counted(batch.query)[position]
        assert len(drawn) == count.clamp(max=3).sum() + queries.sum()
        assert len({axes.get_gridspec().ncols for axes in drawn}) == 1
        assert drawn[0].get_gridspec().ncols == (count > 0).sum()
