"""Every option of Lightning's Trainer and checkpoints, every callback, optimiser and schedule.

Each works as documented, and the results are those of the saved weights, or it is refused in one
line before anything starts. Options are enumerated from the signatures, so those that a new version
adds are tested, too.
"""

import csv
import inspect
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import every_fifth
from lightning.pytorch import callbacks as shipped
from omegaconf import OmegaConf

import metadraw
from metadraw import InputError
from metadraw.command.cli import explain
from metadraw.training.evaluate import evaluate
from metadraw.training.train import make_trainer, train

SIZES = ["data.train_batches=4", "data.val_batches=2", "data.test_batches=2"]
REFUSED = "refused"


@pytest.fixture
def attempt(tiny_for, tmp_path):
    """Run with these overrides: `REFUSED`, in one line and before anything, or the results.

    A run is evaluated again: its results must be those of the checkpoint that they name.
    """

    def run(*overrides, algorithm="protonet", splits=("val",), **config):
        cfg = metadraw.compose(*tiny_for(algorithm), *SIZES, *overrides)
        for key, value in config.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        folder = Path(cfg.paths.output_dir)
        try:
            found = train(cfg)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
        else:
            line = None
        if line is not None:
            assert "\n" not in line
            assert not (folder / "metrics.csv").exists(), line
            return REFUSED, line
        assert json.loads((folder / "results.json").read_text()) == found
        for split in splits:
            same = again(cfg, folder / found["checkpoint"], split)
            for name in ("acc", "acc_ci95", "loss", "precision", "acc_before", "tasks"):
                assert same[name] == pytest.approx(found[split][name], abs=1e-6), (split, name)
        return found, folder

    def again(trained, checkpoint, split):
        where = [f"split={split}", f"paths.output_dir={tmp_path / split}", "trainer=cpu"]
        cfg = metadraw.compose(f"ckpt_path='{checkpoint}'", *where, config="eval")
        limits = {"test": ["limit_test_batches"], "val": ["overfit_batches", "limit_val_batches"]}
        for limit in [trained.trainer.get(name) for name in limits[split]]:
            if limit:
                OmegaConf.update(cfg, "trainer.limit_test_batches", limit, force_add=True)
        found = evaluate(cfg)
        assert found["config"]["trainer"]["precision"] == trained.trainer.precision
        return found["test"]

    return run


def options_of(kind):
    """The options of a constructor, with their defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {one.name: one.default for one in parameters if one.kind in named and one.name != "self"}


def cases(kind, samples):
    """Every option of a constructor with each of its samples."""
    for name in options_of(kind):
        if name in samples:
            right, wrong = samples[name]
            for value in right:
                yield pytest.param(name, value, True, id=f"{name}={value}")
            for value in wrong:
                yield pytest.param(name, value, False, id=f"{name}={value}-refused")


# ---- the Trainer -----------------------------------------------------------------------------

INTERVAL = inspect.signature(L.Trainer.__init__).parameters["val_check_interval"]
TIMED = ["00:01:00:00"] if "timedelta" in str(INTERVAL.annotation) else []  # in newer ones
#: Values that change the run, and values that are refused.
TRAINER = {
    "accelerator": ([], ["nonsense"]),
    "strategy": ([], ["nonsense", "fsdp", "deepspeed"]),
    "devices": ([], [0]),
    "precision": (
        ["64-true", "bf16-true", "bf16-mixed"],
        ["16-mixed", "16-true", "nonsense"],
    ),
    "logger": ([], [True]),
    "callbacks": ([], ["nonsense"]),
    "fast_dev_run": ([], [True, 2]),
    "max_epochs": ([1], [0, -1, None, 1.5, "ten"]),
    "max_steps": ([2, 6], [0, -3]),
    "max_time": (["00:00:00:01"], ["nonsense", "00:00:00:00"]),
    "limit_train_batches": ([2, 0.5], [0, 0.1]),
    "limit_val_batches": ([1, 0.5], [0, 0.1]),
    "limit_test_batches": ([0.5], [0, 0.1]),
    "overfit_batches": ([1, 0.5], [0.1]),
    "val_check_interval": ([3, 0.5, *TIMED], [5, 0, 1.5]),
    "check_val_every_n_epoch": ([2], [3, 0]),
    "enable_checkpointing": ([], [False]),
    "accumulate_grad_batches": ([], [2]),
    "gradient_clip_val": ([], [1.0, 0]),
    "gradient_clip_algorithm": ([], ["norm"]),
    "inference_mode": ([], [True]),
    "use_distributed_sampler": ([], [True]),
    "profiler": ([], ["nonsense"]),
    "barebones": ([], [True]),
    "sync_batchnorm": ([], [True]),
    "default_root_dir": ([], ["elsewhere"]),
}
#: Values that do not change the run, all at once.
HARMLESS = {
    "accelerator": "cpu",
    "strategy": "auto",
    "devices": "1",
    "num_nodes": 1,
    "min_epochs": 2,
    "max_steps": -1,
    "min_steps": 3,
    "max_time": {"hours": 1},
    "limit_train_batches": 1.0,
    "val_check_interval": 1.0,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "enable_checkpointing": True,
    "enable_model_summary": True,
    "deterministic": True,
    "benchmark": True,
    "profiler": "simple",
    "detect_anomaly": True,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_autolog_hparams": False,
    "model_registry": "name",
}
#: The progress bar has its own tests.
LEFT_OUT = ["enable_progress_bar"]


@pytest.fixture
def deterministic_again():
    """An option sets this for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("deterministic_again")
@pytest.mark.parametrize(("name", "value", "works"), every_fifth(cases(L.Trainer, TRAINER)))
def test_trainer(attempt, name, value, works):
    more = {"algorithm": "maml"} if name == "precision" else {}
    splits = ("val", "test") if name in ("precision", "limit_test_batches") else ("val",)
    found, said = attempt(**{f"trainer__{name}": value}, splits=splits, **more)
    assert (found != REFUSED) == works, said
    if not works:
        assert said.startswith("trainer")
    if name == "precision" and works:  # three digits of bfloat16 cannot be a multiple of 1/5
        for split in ("val", "test"):
            correct = found[split]["acc"] * 5 * found[split]["tasks"]
            assert correct == pytest.approx(round(correct), abs=1e-3)


def measured(folder):
    """The rows of metrics.csv, without their durations."""
    with open(folder / "metrics.csv") as file:
        return [row | {"seconds": None} for row in csv.DictReader(file)]


@pytest.mark.usefixtures("deterministic_again")
def test_options_that_change_nothing(attempt):
    """Including every unknown option of a newer Lightning, at its default."""
    known = {*TRAINER, *HARMLESS, *LEFT_OUT}
    new = {name: value for name, value in options_of(L.Trainer).items() if name not in known}
    given = {f"trainer__{name}": value for name, value in (new | HARMLESS).items()}
    _, folder = attempt(algorithm="maml", splits=())
    found, other = attempt(
        f"paths.output_dir={folder.parent / 'other'}", algorithm="maml", splits=(), **given
    )
    assert found != REFUSED, other
    assert measured(folder) == measured(other)
    assert (folder / "tasks.csv").read_text() == (other / "tasks.csv").read_text()


def test_an_overfitted_run_sees_the_same_tasks_in_every_epoch(tiny_for):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
            seen.append(batch.number.tolist())

    cfg = metadraw.compose(*tiny_for("protonet"), "+trainer.overfit_batches=2")
    data, learner = metadraw.build(cfg)
    trainer = make_trainer(cfg, learner)
    trainer.callbacks.append(Watch())
    trainer.fit(learner, data)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


# ---- checkpoints -----------------------------------------------------------------------------

BEST = {
    "dirpath": (["{folder}/elsewhere"], []),
    "filename": (["{{epoch}}-{{val/acc:.3f}}"], []),
    "monitor": (["val/precision", "train/acc", None], ["val_acc"]),
    "save_last": ([], [True, "link"]),
    "save_top_k": ([], [0, 2, -1, -2]),
    "save_on_exception": ([], [True]),
    "save_weights_only": ([True], []),
    "mode": ([], ["min", "nonsense"]),
    "every_n_train_steps": ([], [2]),
    "train_time_interval": ([], ["00:00:00:01"]),
    "every_n_epochs": ([2, 3], [-1]),
    "save_on_train_epoch_end": ([True, False], []),
}
BEST_HARMLESS = {"verbose": True, "auto_insert_metric_name": False, "enable_version_counter": True}


@pytest.mark.parametrize(
    ("name", "value", "works"), every_fifth(cases(shipped.ModelCheckpoint, BEST))
)
def test_best_checkpoint(attempt, tmp_path, name, value, works):
    """Including meta-validation in the middle of an epoch, which is harder."""
    value = value.format(folder=tmp_path) if isinstance(value, str) else value
    found, said = attempt("+trainer.val_check_interval=3", **{f"callbacks__best__{name}": value})
    assert (found != REFUSED) == works, said
    if not works:
        assert said.startswith("callbacks.best"), said


def test_options_of_checkpoints_that_change_nothing(attempt, tmp_path):
    options = options_of(shipped.ModelCheckpoint).items()
    given = {name: value for name, value in options if name not in BEST} | BEST_HARMLESS
    plain, _ = attempt(splits=())
    more = {f"callbacks__{key}__{n}": v for key in ("best", "last") for n, v in given.items()}
    found, said = attempt(paths__output_dir=str(tmp_path / "other"), splits=(), **more)
    assert found != REFUSED, said
    assert found["val"] == plain["val"]
    assert found["test"]["acc"] == plain["test"]["acc"]


@pytest.mark.parametrize("name", ["best-{epoch}", "{epoch}-{step}"])
def test_several_best_checkpoints(attempt, name):
    best = {"filename": name, "save_top_k": 2}
    found, folder = attempt(
        "trainer.max_epochs=3", **{f"callbacks__best__{key}": best[key] for key in best}
    )
    kept = [p for p in (folder / "checkpoints").iterdir() if p.name != "last.ckpt"]
    assert len(kept) == 2
    scores = [torch.load(p, weights_only=True)["metadraw_metrics"]["val/acc"] for p in kept]
    assert found["val"]["acc"] == pytest.approx(max(scores), abs=1e-6)


LAST = {
    "filename": (["other"], []),
    "monitor": (["val/loss"], ["nonsense"]),
    "save_last": ([True], []),
    "save_top_k": ([0, -1], [2]),
    "save_on_exception": ([], [True]),
    "every_n_train_steps": ([], [2]),
    "train_time_interval": ([], ["00:00:00:01"]),
    "every_n_epochs": ([2], []),
}


@pytest.mark.parametrize(
    ("name", "value", "works"), every_fifth(cases(shipped.ModelCheckpoint, LAST))
)
def test_last_checkpoint(attempt, name, value, works):
    found, said = attempt(**{f"callbacks__last__{name}": value}, splits=())
    assert (found != REFUSED) == works, said
    if not works:
        assert said.startswith("callbacks.last"), said


def test_checkpoints_within_an_epoch_beside_the_others(attempt):
    snap = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "every_n_train_steps": 3}
    snap |= {"save_top_k": -1, "filename": "{step}", "dirpath": "${paths.output_dir}/snaps"}
    _, folder = attempt("trainer.max_epochs=2", callbacks__snap=snap)
    assert {p.name for p in (folder / "snaps").iterdir()} == {"step=3.ckpt", "step=6.ckpt"}
    found, said = attempt(
        "trainer.max_epochs=4",
        f"ckpt_path='{folder / 'snaps' / 'step=6.ckpt'}'",
        f"paths.output_dir={folder.parent / 'resumed'}",
    )
    assert found == REFUSED
    assert "was saved in the middle of epoch 2" in said


# ---- callbacks -------------------------------------------------------------------------------

NO_OPTIONS = {}
CALLBACKS = {
    "BackboneFinetuning": [(NO_OPTIONS, False)],
    "BaseFinetuning": [(NO_OPTIONS, False)],
    "BasePredictionWriter": [],  # for Trainer.predict
    "Callback": [],
    "Checkpoint": [],
    "BatchSizeFinder": [(NO_OPTIONS, False)],
    "DeviceStatsMonitor": [(NO_OPTIONS, False)],
    "EarlyStopping": [
        ({"monitor": "val/acc", "mode": "max"}, True),
        ({"monitor": "val/loss"}, True),
        ({"monitor": "val/acc"}, False),
        ({"monitor": "val_acc"}, False),
        ({"monitor": "val/loss", "check_on_train_epoch_end": True, "patience": 0}, True),
    ],
    "GradientAccumulationScheduler": [({"scheduling": {0: 2}}, False)],
    "LearningRateFinder": [(NO_OPTIONS, False)],
    "LearningRateMonitor": [(NO_OPTIONS, False)],
    "ModelCheckpoint": [({"monitor": "val/loss", "dirpath": "${paths.output_dir}/x"}, True)],
    "ModelPruning": [({"pruning_fn": "l1_unstructured"}, False)],
    "OnExceptionCheckpoint": [({"dirpath": "${paths.output_dir}/x"}, True)],
    "ProgressBar": [],  # see TQDMProgressBar
    "RichProgressBar": [],
    "SpikeDetection": [(NO_OPTIONS, False)],
    "StochasticWeightAveraging": [({"swa_lrs": 0.1}, False)],
    "ThroughputMonitor": [
        ({"batch_size_fn": {"_target_": "hydra.utils.get_method", "path": "len"}}, False)
    ],
    "ModelSummary": [(NO_OPTIONS, True)],
    "TQDMProgressBar": [],
    "Timer": [({"duration": {"minutes": 5}}, True), ({"interval": "epoch"}, True)],
    "EMAWeightAveraging": [({"decay": 0.5}, True)],
}


def callback_cases():
    for name in shipped.__all__:
        # An unknown one may be either.
        for options, works in CALLBACKS.get(name, [(NO_OPTIONS, None)]):
            yield pytest.param(name, options, works, id=f"{name}-{options}")


@pytest.mark.parametrize(("name", "options", "works"), every_fifth(callback_cases()))
def test_callback(attempt, name, options, works):
    node = {"_target_": f"lightning.pytorch.callbacks.{name}", **options}
    splits = ("val",) if options else ()
    found, said = attempt(splits=splits, callbacks__tried=node)
    assert works is None or (found != REFUSED) == works, said
    if found == REFUSED:
        assert said.startswith("callbacks.tried"), said


def test_watching_the_learning_rate(attempt):
    pytest.importorskip("tensorboard")
    node = {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}
    found, _ = attempt("logger=tensorboard", "scheduler=cosine", callbacks__tried=node)
    assert found != REFUSED


@pytest.mark.parametrize("name", ["best", "last", "curves", "early_stopping"])
def test_a_callback_that_is_null_is_off(attempt, name):
    found, folder = attempt("callbacks=early_stopping", f"callbacks.{name}=null")
    assert found["train"]["epochs"] == 2
    kept = {path.stem for path in (folder / "checkpoints").iterdir()}
    assert kept == {"best", "last"} - {name}
    assert (folder / "metrics.csv").exists() == (name != "curves")


def test_without_any_callback(attempt):
    found, _ = attempt(callbacks=None)
    assert found["train"]["epochs"] == 2


# ---- optimisers and schedules ----------------------------------------------------------------

OPTIMISERS = [
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
]
#: A closure, sparse gradients, matrices alone.
NOT_OURS = ["LBFGS", "SparseAdam", "Muon"]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser(tiny_for, name):
    given = [*tiny_for("protonet"), f"optimizer._target_=torch.optim.{name}", "optimizer.lr=0.1"]
    try:
        _, learner = metadraw.build(metadraw.compose(*given))
    except InputError as error:
        refused = str(error)
    else:
        refused = None
    assert (refused is not None) == (name in NOT_OURS), refused
    if refused is not None:
        assert refused.startswith(f"optimizer: {name}")
        return
    before = [p.detach().clone() for p in learner.parameters()]
    optimizer = learner.configure_optimizers()
    for p in learner.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p != b).any() for p, b in zip(learner.parameters(), before, strict=True))


#: Required options of each, and the rates in four epochs of three steps, from 0.1.
SCHEDULES = {
    "StepLR": ({"step_size": 2, "gamma": 0.1}, [0.1, 0.1, 0.01, 0.01]),
    "MultiStepLR": ({"milestones": [1, 3], "gamma": 0.1}, [0.1, 0.01, 0.01, 0.001]),
    "ConstantLR": ({"factor": 0.5, "total_iters": 2}, [0.05, 0.05, 0.1, 0.1]),
    "LinearLR": ({"start_factor": 0.25, "total_iters": 3}, [0.025, 0.05, 0.075, 0.1]),
    "ExponentialLR": ({"gamma": 0.5}, [0.1, 0.05, 0.025, 0.0125]),
    "PolynomialLR": ({"total_iters": 4}, [0.1, 0.075, 0.05, 0.025]),
    "CosineAnnealingLR": ({"T_max": 2}, [0.1, 0.05, 0.0, 0.05]),
    "CosineAnnealingWarmRestarts": ({"T_0": 2}, [0.1, 0.05, 0.1, 0.05]),
    # These two step after every outer step: here the rates at the start of each epoch.
    "CyclicLR": ({"base_lr": 0.1, "max_lr": 0.7, "step_size_up": 6}, [0.1, 0.4, 0.7, 0.4]),
    "OneCycleLR": (
        {
            "max_lr": 0.6,
            "total_steps": 14,
            "anneal_strategy": "linear",
            "pct_start": 0.5,
            "div_factor": 6.0,
        },
        None,
    ),
    "ReduceLROnPlateau": (
        {"mode": "max", "patience": 0, "threshold": 1.0},
        [0.1, 0.1, 0.01, 0.001],
    ),
}
SCHEDULERS = [
    name
    for name, kind in vars(torch.optim.lr_scheduler).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
    and not name.startswith("_")
]


class Rates(L.Callback):
    """The outer learning rate at the start of every epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, learner):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(tiny_for, scheduler, *overrides):
    given = ["optimizer=sgd", "optimizer.lr=0.1", "trainer.max_epochs=4", "data.val_batches=1"]
    cfg = metadraw.compose(*tiny_for("protonet"), *given, *overrides)
    OmegaConf.update(cfg, "scheduler", scheduler | {"_partial_": True}, force_add=True)
    data, learner = metadraw.build(cfg)
    trainer = make_trainer(cfg, learner)
    trainer.callbacks.append(watch := Rates())
    trainer.fit(learner, data)
    return watch.seen


#: Made from functions or other schedules, which a config cannot hold, or from nothing.
NOT_TYPED = ["LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"]


@pytest.mark.parametrize("name", every_fifth(map(pytest.param, SCHEDULERS)))
def test_schedule(tiny_for, name):
    options, expected = SCHEDULES.get(name, ({}, None))
    node = {"_target_": f"torch.optim.lr_scheduler.{name}", **options}
    try:
        seen = rates(tiny_for, node)
    except InputError as error:
        seen, refused = [], str(error)
    if not seen:
        assert name not in SCHEDULES
        assert refused.startswith(f"scheduler: {name}: ")
        assert len(refused) > len(f"scheduler: {name}: ")
        return
    assert name not in NOT_TYPED
    if expected is not None:
        assert seen == pytest.approx(expected)
    elif name == "OneCycleLR":
        assert seen[0] == pytest.approx(0.1)
        assert max(seen) == seen[2] == pytest.approx(0.6)


def test_a_schedule_that_ends_too_early_is_refused_before_the_run(tiny_for):
    node = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.6, "total_steps": 11}
    with pytest.raises(InputError, match="once after every outer step: Tried to step 12 times"):
        rates(tiny_for, node)


def test_a_schedule_of_plateaus_steps_only_after_validation(tiny_for):
    node = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "threshold": 1.0}
    node |= {"mode": "max", "patience": 0}
    seen = rates(tiny_for, node, "+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=6")
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
