"""Damaged files and random configs: a right result or a clear error, nothing else."""

import resource

import numpy as np
import pytest
from conftest import ALGORITHMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data import cache
from metadraw.data.sources import folder as path_source
from metadraw.errors import InputError
from metadraw.results.compare import read as read_run
from metadraw.results.sweep import read_sweep
from metadraw.training.factory import read_checkpoint
from metadraw.training.train import train

EXAMPLES = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,  # the same examples every time, so that failures do not depend on luck
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damage(draw):
    """A function of bytes: truncate, change some, insert some, or replace all."""
    kind = draw(st.sampled_from(["cut", "changed", "inserted", "others", "none"]))
    where = draw(st.floats(0, 1))
    # Mostly at both ends, where headers and directories are.
    where = draw(st.sampled_from([where * 0.02, where, 1 - where * 0.02]))
    extra = draw(st.binary(min_size=1, max_size=16))

    def damaged(data):
        place = int(where * (len(data) - 1))
        return {
            "cut": data[:place],
            "changed": data[:place] + extra + data[place + len(extra) :],
            "inserted": data[:place] + extra + data[place:],
            "others": extra,
            "none": data,
        }[kind]

    return damaged


@pytest.fixture(scope="module")
def finished(synthetic_folder, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    sizes = ["data.tasks_per_batch=2", "data.train_batches=1", "data.val_batches=1"]
    sizes += ["data.test_batches=2", "trainer.max_epochs=1", "model.hidden_channels=2"]
    where = ["data.source=path", f"data.path={synthetic_folder}", "data.samples_per_class=20"]
    where += ["trainer=cpu", f"paths.output_dir={folder}"]
    train(metadraw.compose(*sizes, *where, "callbacks.progress_bar.refresh_rate=0"))
    return folder


def attempt(read):
    """The result and no error, or `None` and the error in one line."""
    try:
        return read(), ""
    except (InputError, cache.DamagedError) as error:
        line = str(error)
    assert "\n" not in line
    return None, line


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@EXAMPLES
@given(damage=damage())
def test_checkpoint(finished, tmp_path, damage):
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(damage((finished / "checkpoints" / "best.ckpt").read_bytes()))
    before = memory()
    found, error = attempt(lambda: read_checkpoint(path))
    assert found["metadraw_config"] if found else str(path) in error
    assert memory() - before < 200 * 2**20


@EXAMPLES
@given(damage=damage(), name=st.sampled_from(["config.yaml", "metrics.csv", "results.json"]))
def test_sweep_and_comparison(finished, tmp_path, damage, name):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    for path in finished.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(damage((finished / name).read_bytes()))
    for read in (lambda: read_sweep(tmp_path), lambda: read_run(folder, "acc")):
        attempt(read)


@EXAMPLES
@given(damage=damage())
def test_npy_files(tmp_path, damage):
    path = tmp_path / "cat.npy"
    np.save(path, np.arange(5 * 784).reshape(5, 784).astype(np.uint8))
    path.write_bytes(damage(path.read_bytes()))
    before = memory()
    found, error = attempt(lambda: path_source.load(tmp_path, ["cat"], 3, 0))
    assert "cat.npy" in error if found is None else found.shape == (1, 3, 28, 28)
    assert memory() - before < 200 * 2**20


@EXAMPLES
@given(damage=damage(), name=st.sampled_from(["drawings.npy", "meta.json"]))
def test_a_cache_is_right_or_known_to_be_damaged(tmp_path, damage, name):
    images = np.arange(2 * 3 * 784).reshape(2, 3, 28, 28).astype(np.uint8)
    stored = tmp_path / "stored"
    if not stored.exists():
        cache.write(stored, images, images.shape, ["cat", "dog"], {"source": "synthetic"})
    right = (stored / name).read_bytes()
    (stored / name).write_bytes(damage(right))
    origin = {"source": "synthetic"}
    found, _ = attempt(lambda: cache.read(stored, ["cat", "dog"], (3, 28, 28), origin)[0])
    (stored / name).write_bytes(right)
    assert found is None or np.array_equal(found, images)


# ---- configs ---------------------------------------------------------------------------------

CHOICES = {
    "data.ways": [2, 3, 5],
    "data.shots": [1, 2],
    "data.queries": [1, 3],
    "data.tasks_per_batch": [1, 3],
    "data.new_classes": ["none", "rotations"],
    "data.shift": [0, 3],
    "data.mirror": ["false", "true"],
    "data.train_samples_per_class": ["null", 12],
    "model.norm": ["batch", "layer", "none"],
    "model.fused": ["true", "false"],
    "model.hidden_channels": [1, 3],
    "optimizer": ["adam", "sgd"],
    "scheduler": ["none", "cosine"],
    "learner.query_statistics": ["query", "support"],
    "learner.map_tasks": ["vmap", "loop"],
    "learner.tasks_per_chunk": ["auto", "null", 1],
    "learner.recompute_steps": ["false", "true"],
    "learner.gradient_clip_norm": ["null", 1.0],
}
VALID = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in CHOICES.items()})


@settings(EXAMPLES, max_examples=8)
@given(algorithm=st.sampled_from(ALGORITHMS), steps=st.sampled_from([1, 3]), chosen=VALID)
def test_any_combination_takes_a_step(tiny_for, algorithm, steps, chosen):
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    base = tiny_for(algorithm)
    if any(o.startswith("algorithm.inner_steps") for o in base):
        overrides.append(f"algorithm.inner_steps={steps}")
    if algorithm == "maml_pp" and chosen["model.norm"] != "batch":
        overrides += ["algorithm.per_step_statistics=false", "algorithm.per_step_norm=false"]
    if hasattr(metadraw.compose(*base).algorithm, "classes"):
        overrides.append("algorithm.classes=2760")  # 345 in eight orientations
    data, learner = metadraw.build(metadraw.compose(*base, *overrides))
    learner.algorithm.check_classes(data.class_count)
    gradients, values = learner.meta_gradients(next(iter(data.train_dataloader())))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert values["loss"].isfinite().all()
    outcome = learner.evaluate(next(iter(data.val_dataloader())))
    assert outcome.after.isfinite().all()


WRONG = {
    "data.ways": [0, 1, -2, 1.5, "many", "null", 400],
    "data.shots": [0, -1, "one", 19, "[1]"],
    "data.queries": [0, "true", 1000],
    "data.tasks_per_batch": [0, -5, "x"],
    "data.source": ["ftp", 7],
    "data.new_classes": ["all", 1],
    "data.shift": [-1, 28, 0.5],
    "data.mirror": ["sometimes", 2],
    "data.train_samples_per_class": [0, 1, 100, "few"],
    "algorithm": ["mamml", 3],
    "algorithm.inner_steps": [0, -1, 2.5, "five"],
    "algorithm.inner_lr": [0, -0.1, "fast"],
    "model.norm": ["group", 0],
    "model.hidden_channels": [0, -4],
    "optimizer.lr": [-1.0],
    "scheduler": ["linear"],
    "learner.query_statistics": ["none", 1],
    "learner.map_tasks": ["both", 1],
    "learner.tasks_per_chunk": [0, "some", 1.5],
    "learner.recompute_steps": ["maybe", 1],
    "learner.gradient_clip_norm": [0, -1],
    "trainer.max_epochs": [0, -1],
    "no.such.key": [1],
    "data.shotz": [1],
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values_are_told_in_one_line(tiny, key):
    for value in WRONG[key]:
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            train(metadraw.compose(*tiny, f"{key}={value}"))
        line = str(stopped.value)
        assert line.startswith("error: "), (value, line)
        assert "\n" not in line
        assert len(line) < 500, line
