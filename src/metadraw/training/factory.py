"""Builds a data module and a learner from a config or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from metadraw.algorithms import Algorithm
from metadraw.algorithms.base import buffer_of
from metadraw.algorithms.distillation import Teacher
from metadraw.algorithms.pretrained import Pretrained
from metadraw.command import keys
from metadraw.command.older import modernise
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.episode import Episode
from metadraw.data.tasks import TaskDataModule
from metadraw.errors import InputError, check_seed
from metadraw.models.batch_norm import freeze_statistics
from metadraw.objectives import Objective
from metadraw.training import optimizers
from metadraw.training.allocator import keep_freed_memory
from metadraw.training.learner import MetaLearner
from metadraw.training.options import batches_of
from metadraw.training.trial import count_features, try_step

#: Keys that data and network share, with their values in checkpoints that lack them.
_IMAGES = {"image_size": 28, "image_channels": 1}
#: Inner steps of the trial: enough to differentiate one through another.
_TRIAL_STEPS = 2
#: Examples of a task from which its trial step takes long.
_LARGE = 1000
#: Keys of the tested tasks: those not set stay as trained, even with another data set.
_TASKS = (
    *("ways", "shots", "queries", "vary", "unlabelled", "distractors"),
    *("tasks_per_batch", "test_batches", "seed", "eval_seed"),
)
#: How the names of running statistics end.
_STATISTICS = ("running_mean", "running_var")
#: The cache folder in a checkpoint's config: that of the machine that reads it.
_CACHE = "${oc.env:METADRAW_CACHE,'~/.cache/metadraw'}"


def build(
    cfg: DictConfig,
    splits: Sequence[str] = ("train", "val", "test"),
    *,
    restored: bool = False,
) -> tuple[TaskDataModule, MetaLearner]:
    """The data module, with its data loaded, and the learner of a config, seeded.

    Args:
        cfg: the config.
        splits: those that must have enough data for the episodes.
        restored: whether all parameters will come from a checkpoint.

    Raises:
        InputError: an impossible value, or drawings that cannot be loaded.
    """
    keep_freed_memory()
    check_seed("seed", cfg.seed)
    data = instantiate(cfg.data)
    if not isinstance(data, TaskDataModule):
        raise InputError("data: this choice is not a data set, but a base config of data sets")

    def check_data() -> None:
        data.setup()
        for split in splits:
            data.episodes(split)

    # A trial of tasks that the data are too small for might need more memory than there is.
    if data.examples_of_a_task > _LARGE:
        check_data()
    seed_everything(cfg.seed, workers=True, verbose=False)
    learner = build_learner(cfg, data, restored=restored)
    other_ways = isinstance(data, EpisodeDataModule) and data.train_ways != data.ways
    if other_ways and not learner.algorithm.any_ways:
        raise InputError(
            f"data.train_ways={cfg.data.train_ways}: {type(learner.algorithm).__name__} learns a "
            f"head for data.ways={cfg.data.ways}: must be null"
        )
    # Only now, so that nothing is downloaded for a config that cannot work.
    check_data()
    return data, learner


def build_learner(
    cfg: DictConfig, data: TaskDataModule | None = None, *, restored: bool = False
) -> MetaLearner:
    """The learner of a config, from the current random state, after a trial step of a copy.

    Args:
        cfg: the config.
        data: its data module, which need not be set up; built if `None`.
        restored: whether all parameters will come from a checkpoint. A network whose target has an
            argument of this name then need not read the weights that it starts from.

    Raises:
        InputError: an impossible value, or a network that cannot take a step.
    """
    with isolate_rng(include_cuda=False):
        example = (data or instantiate(cfg.data)).example(tasks=2)
    learner = _make_learner(cfg, example, restored)
    # An outer optimiser or schedule that does not work fails now, not in the middle of a run.
    epochs, most = cfg.trainer.max_epochs or 1, cfg.trainer.get("max_steps", -1)
    steps = epochs * batches_of(cfg.trainer, "train", cfg.data.train_batches)
    _, scheduler = optimizers.rehearse(
        learner.outer_parameters(),
        learner.make_optimizer,
        learner.make_scheduler,
        epochs=epochs,
        steps=steps if most == -1 else min(steps, most),
    )
    if isinstance(scheduler, ReduceLROnPlateau):
        optimizers.monitored(scheduler, learner.objective)

    def shortened(changes: dict[str, Any]) -> MetaLearner:
        trial = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
        for key in ("inner_steps", "eval_inner_steps"):
            if key in cfg.algorithm:
                trial.algorithm[key] = min(cfg.algorithm[key], _TRIAL_STEPS)
        for key, value in changes.items():
            OmegaConf.update(trial, key, value)
        return _make_learner(trial, example, restored)

    try_step(shortened, example)
    return learner


def _check_that_choices_fit(cfg: DictConfig) -> None:
    """Check that the data have all keys that objective and model take from them.

    Raises:
        InputError: a key is missing.
    """
    for group in ("objective", "model"):
        for key in cfg[group]:
            try:
                cfg[group][key]
            except InterpolationKeyError as error:
                wanted = cfg[group]._get_node(key)._value()
                raise InputError(
                    f"{group}.{key}: is {wanted}, which this choice of data does not have: choose "
                    f"another {group}"
                ) from error


def _frozen(cfg: DictConfig) -> bool:
    """Whether the network keeps the statistics of the checkpoint that it started from.

    Raises:
        InputError: an unknown choice.
    """
    choice = cfg.get("init_statistics", "batch")  # which older checkpoints lack
    if choice not in ("batch", "frozen"):
        raise InputError(f"init_statistics={choice}: must be batch or frozen")
    return choice == "frozen"


def _make_learner(cfg: DictConfig, example: Episode, restored: bool = False) -> MetaLearner:
    _check_that_choices_fit(cfg)
    objective: Objective = instantiate(cfg.objective)
    knows = "restored" in (keys.settings(cfg.model._target_) or ())
    network: nn.Module = instantiate(cfg.model, **({"restored": restored} if knows else {}))
    head = nn.Linear(count_features(network, example.support.x[0]), objective.size)
    if _frozen(cfg):
        try:
            freeze_statistics(network)
        except InputError as error:
            raise InputError(f"init_statistics=frozen: {error}: must be batch") from error
    algorithm: Algorithm = instantiate(cfg.algorithm)(network, head, objective)
    # Schedules may divide by the number of epochs.
    scheduler = instantiate(cfg.scheduler) or None if cfg.trainer.max_epochs != 0 else None
    learner: MetaLearner = instantiate(
        cfg.learner, algorithm, instantiate(cfg.optimizer), scheduler
    )
    learner.config = portable(cfg)
    return learner


def load(path: str | Path, *overrides: str) -> tuple[TaskDataModule, MetaLearner]:
    """The data module and the trained learner of a checkpoint.

    Args:
        path: a checkpoint of a metadraw run.
        *overrides: changes to the config it was trained with, e.g. ``"data.shots=5"``.

    Raises:
        InputError: no such checkpoint, or a network that does not fit it.
    """
    return restore(path, OmegaConf.from_dotlist(list(overrides)))


def restore(
    path: str | Path, changes: DictConfig, splits: Sequence[str] = ("train", "val", "test")
) -> tuple[TaskDataModule, MetaLearner]:
    """`load`, with the changes given as a config.

    Args:
        path: a checkpoint of a metadraw run.
        changes: changes to its config. ``data`` with a ``_target_`` replaces the data set, except
            that task and image settings that are null stay as trained.
        splits: those that must have enough data for the episodes.

    Raises:
        InputError: as `load`; also a number of ways that the algorithm cannot be tested with.
    """
    checkpoint = read_checkpoint(path)
    trained = OmegaConf.create(checkpoint["metadraw_config"])
    # Also those that have been added since the run.
    target = trained.algorithm._target_
    settings = {*trained.algorithm, *(keys.settings(target, "algorithm") or ())}
    for key in changes.get("algorithm", {}):
        if key not in settings:
            known = ", ".join(k for k in trained.algorithm if not k.startswith("_")) or "none"
            raise InputError(
                f"algorithm.{key}: {target.rpartition('.')[2]} has no such setting; it has {known}"
            )
    if "ways" in trained.data:
        for key, default in _IMAGES.items():
            trained.data.setdefault(key, trained.model.get(key, default))
    given = changes.get("data", {})
    cfg = OmegaConf.merge(trained, changes)
    assert isinstance(cfg, DictConfig)
    if "_target_" in given:
        if ("ways" in given) != ("ways" in trained.data):
            other, own = (d._target_.rpartition(".")[2] for d in (given, trained.data))
            raise InputError(
                f"data={other}: ckpt_path={path} was trained on tasks of another kind, {own}: "
                f"must have {'classes' if 'ways' in trained.data else 'no classes'}"
            )
        kept = [k for k in (*_TASKS, *_IMAGES) if given.get(k) is None and k in trained.data]
        kept.append("train_batches")  # by which the schedule of the outer rate was planned
        cfg.data = {**given, **{key: trained.data[key] for key in kept}}
    # The checkpoint's config is resolved, so keys that follow others are set again.
    if given.get("queries") is None and trained.data.queries == trained.data.shots:
        cfg.data.queries = cfg.data.shots
    for key in _IMAGES:
        if key in cfg.model:
            cfg.model[key] = cfg.data[key]
    if "ways" in cfg.objective:
        cfg.objective.ways = cfg.data.ways
    keys.check(cfg)
    data, learner = build(cfg, splits, restored=True)
    ways = cfg.data.get("ways")
    if ways != trained.data.get("ways") and not learner.algorithm.any_ways:
        raise InputError(
            f"data.ways={ways}: {type(learner.algorithm).__name__} was trained with "
            f"{trained.data.ways} ways and can be tested with no other number"
        )
    check_parameters(path, checkpoint, learner)
    learner.load_state_dict(checkpoint["state_dict"])
    return data, learner.eval()


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """A checkpoint of a metadraw run, read without running any code in it.

    Its config names the cache of this machine, even if an older one names another machine's.

    Args:
        path: the checkpoint.
        key: of the config, which named it.

    Raises:
        InputError: there is no such file, or it is not such a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{key}={path}: there is no such file") from error
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"{key}={path}: not a readable checkpoint") from error
    config = checkpoint.get("metadraw_config") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise InputError(f"{key}={path}: not a checkpoint of a metadraw run")
    modernise(checkpoint)
    _use_own_cache(checkpoint["metadraw_config"])
    return checkpoint


def _use_own_cache(config: dict[str, Any]) -> None:
    def visit(node: Any) -> None:  # data sets may be within others
        if isinstance(node, dict):
            if "cache_dir" in node:
                node["cache_dir"] = _CACHE
            for each in node.values():
                visit(each)

    visit(config["data"])


def start_from(path: str | Path, learner: MetaLearner) -> None:
    """Give a learner the network of a checkpoint, of whatever algorithm.

    Heads and learned rates are the algorithm's own, and stay as they are. Running statistics come
    along where both keep them, and as those of a network whose statistics are frozen.

    Args:
        path: a checkpoint of a metadraw run.
        learner: which is changed.

    Raises:
        InputError: no such checkpoint, or one of another network, or one without the statistics of
            a network whose statistics are frozen.
    """
    saved, own = read_checkpoint(path, "init_from")["state_dict"], learner.state_dict()
    network = {n for n in own.keys() | saved.keys() if n.startswith("algorithm.network.")}
    start = {}
    for name in sorted(n for n in network if not n.endswith((*_STATISTICS, "num_batches_tracked"))):
        shapes = [tuple(s[name].shape) if name in s else "missing" for s in (saved, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"init_from={path}: of another network: {name.removeprefix('algorithm.')} is "
                f"{shapes[0]} there and {shapes[1]} here"
            )
        start[name] = saved[name]
    for name in (n for n in own if n.endswith(_STATISTICS)):
        place = name.removeprefix("algorithm.")
        value = saved.get(name, saved.get(f"algorithm.{buffer_of(place)}"))
        if value is not None and value.shape == own[name].shape:
            start[name] = value
        elif name in network:
            raise InputError(
                f"init_statistics=frozen: init_from={path} kept no running statistics of "
                f"{place.rpartition('.')[0]}: must be batch"
            )
    learner.load_state_dict(start, strict=False)


def trained(
    checkpoint: dict[str, Any],
    path: str | Path,
    cfg: DictConfig | None = None,
    data: TaskDataModule | None = None,
) -> MetaLearner:
    """The learner of a checkpoint, without its data.

    Args:
        checkpoint: its contents.
        path: of the checkpoint.
        cfg: to build it with; the checkpoint's own if `None`.
        data: see `build_learner`.

    Raises:
        InputError: parameters that do not fit.
    """
    own = OmegaConf.create(checkpoint["metadraw_config"]) if cfg is None else cfg
    learner = build_learner(own, data, restored=True)
    check_parameters(path, checkpoint, learner)
    learner.load_state_dict(checkpoint["state_dict"])
    return learner


def imitate(cfg: DictConfig, learner: MetaLearner) -> None:
    """Give a learner the classifier of a checkpoint as its teacher.

    Args:
        cfg: ``ckpt_path``, ``share`` and ``temperature``, see `Teacher`.
        learner: the student.

    Raises:
        InputError: no such checkpoint, an impossible setting, or a student or teacher that is no
            classifier of all classes.
    """
    path = cfg.ckpt_path
    checkpoint = read_checkpoint(path, "teacher.ckpt_path")
    with isolate_rng(include_cuda=False):
        teacher = trained(checkpoint, path)
    student, classifier = learner.algorithm, teacher.algorithm
    if not (isinstance(student, Pretrained) and isinstance(classifier, Pretrained)):
        names = " and ".join(type(each).__name__ for each in (student, classifier))
        raise InputError(
            f"teacher.ckpt_path={path}: student and teacher must be classifiers of all classes, as "
            f"experiment=pretrain trains them, but are {names}"
        )
    classifier.float().eval().requires_grad_(False)
    student.learn_from(Teacher(classifier, cfg.share, cfg.temperature))


def check_parameters(path: str | Path, checkpoint: dict[str, Any], learner: MetaLearner) -> None:
    """Check that a checkpoint's parameters fit a learner.

    Raises:
        InputError: they do not; the error names the first difference.
    """
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    here = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
    for name in sorted(saved.keys() | here.keys()):
        if saved.get(name) != here.get(name):
            raise InputError(
                f"ckpt_path={path}: of another network or algorithm: {name} is "
                f"{saved.get(name, 'missing')} there and {here.get(name, 'missing')} here"
            )


def portable(cfg: DictConfig) -> dict[str, Any]:
    """The plain config values that determine a result, without folders and trackers.

    The cache folder is left to the machine that uses the checkpoint, and a file of weights is only
    named: the checkpoint has its own.
    """
    parts = ["algorithm_name", "seed", "data", "objective", "model", "algorithm", "optimizer"]
    parts += ["scheduler", "learner", "trainer", "init_statistics"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, parts), resolve=True)
    assert isinstance(plain, dict)
    config = {str(key): value for key, value in plain.items()}
    _use_own_cache(config)
    if isinstance(weights := config["model"].get("weights"), str):
        config["model"]["weights"] = Path(weights).name
    return config
