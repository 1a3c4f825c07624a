"""From a config to objects: a data module and a learner, new or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metadraw.algorithms import Algorithm
from metadraw.command import keys
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.errors import InputError
from metadraw.training import optimizers
from metadraw.training.allocator import keep_freed_memory
from metadraw.training.learner import MetaLearner
from metadraw.training.options import batches_of
from metadraw.training.trial import see_an_image, try_step

#: The images of data and network, by the same keys in both; what they were before these were there.
_IMAGES = {"image_size": 28, "image_channels": 1}
#: Inner steps of the trial: enough for derivatives of one through another.
_TRIAL_STEPS = 2
#: Which tasks are tested: as trained with another data set, too, where nothing else is given.
_TASKS = ("ways", "shots", "queries", "tasks_per_batch", "test_batches", "seed", "eval_seed")
#: Where a checkpoint says that drawings are kept: in the cache of the machine that reads it.
_CACHE = "${oc.env:METADRAW_CACHE,'~/.cache/metadraw'}"


def build(
    cfg: DictConfig, splits: Sequence[str] = ("train", "val", "test")
) -> tuple[EpisodeDataModule, MetaLearner]:
    """The data module, with its drawings loaded, and the learner of a config, seeded.

    Args:
        cfg: the config.
        splits: which ones have to have the episodes asked for.

    Raises:
        InputError: an impossible value, or drawings that cannot be had.
    """
    keep_freed_memory()
    # The drawings come last: nothing is downloaded for a config that cannot work.
    data: EpisodeDataModule = instantiate(cfg.data)
    if not isinstance(data, EpisodeDataModule):
        raise InputError("data: this choice is no data set, but what data sets have in common")
    seed_everything(cfg.seed, workers=True, verbose=False)
    learner = build_learner(cfg)
    data.setup()
    for split in splits:
        data.episodes(split)
    return data, learner


def build_learner(cfg: DictConfig) -> MetaLearner:
    """The learner of a config, with the random state at hand, after a trial step of another.

    Raises:
        InputError: an impossible value, or a network that cannot take a step.
    """
    learner = _make_learner(cfg)
    # Now, and not in the middle of a run: an outer optimiser or schedule that does not work.
    epochs, most = cfg.trainer.max_epochs or 1, cfg.trainer.get("max_steps", -1)
    steps = epochs * batches_of(cfg.trainer, "train", cfg.data.train_batches)
    optimizers.rehearse(
        learner.outer_parameters(),
        learner.make_optimizer,
        learner.make_scheduler,
        epochs=epochs,
        steps=steps if most == -1 else min(steps, most),
    )

    def shortened(changes: dict[str, Any]) -> MetaLearner:
        trial = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
        for key in ("inner_steps", "eval_inner_steps"):
            if key in cfg.algorithm:
                trial.algorithm[key] = min(cfg.algorithm[key], _TRIAL_STEPS)
        for key, value in changes.items():
            OmegaConf.update(trial, key, value)
        return _make_learner(trial)

    try_step(
        shortened,
        ways=cfg.data.ways,
        shots=cfg.data.shots,
        queries=cfg.data.queries,
        image_shape=_image_shape(cfg),
        model=f"model.ways={cfg.model.ways}" if "ways" in cfg.model else "model",
    )
    return learner


def _make_learner(cfg: DictConfig) -> MetaLearner:
    network: nn.Module = instantiate(cfg.model)
    see_an_image(network, _image_shape(cfg))
    algorithm: Algorithm = instantiate(cfg.algorithm)(network)
    learner: MetaLearner = instantiate(
        cfg.learner, algorithm, instantiate(cfg.optimizer), instantiate(cfg.scheduler) or None
    )
    learner.config = portable(cfg)
    return learner


def _image_shape(cfg: DictConfig) -> tuple[int, int, int]:
    channels, size = (
        cfg.data.get(key, cfg.model.get(key, _IMAGES[key]))
        for key in ("image_channels", "image_size")
    )
    return channels, size, size


def load(path: str | Path, *overrides: str) -> tuple[EpisodeDataModule, MetaLearner]:
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
) -> tuple[EpisodeDataModule, MetaLearner]:
    """`load`, with the changes to its config as a config.

    Args:
        path: a checkpoint of a metadraw run.
        changes: to its config. Data with a ``_target_`` are another data set, whole but for the
            tasks and the size of the images: where these are null, they are as trained.
        splits: which ones have to have the episodes asked for.

    Raises:
        InputError: as `load`; also another number of ways than the algorithm can be tested with.
    """
    checkpoint = read_checkpoint(path)
    trained = OmegaConf.create(checkpoint["metadraw_config"])
    for key in changes.get("algorithm", {}):
        if key not in trained.algorithm:
            known = ", ".join(k for k in trained.algorithm if not k.startswith("_")) or "none"
            raise InputError(
                f"algorithm.{key}: {trained.algorithm._target_.rpartition('.')[2]} has no such "
                f"setting; it has {known}"
            )
    for key, default in _IMAGES.items():
        trained.data.setdefault(key, trained.model.get(key, default))
    given = changes.get("data", {})
    cfg = OmegaConf.merge(trained, changes)
    assert isinstance(cfg, DictConfig)
    if "_target_" in given:
        kept = [key for key in (*_TASKS, *_IMAGES) if given.get(key) is None]
        cfg.data = {**given, **{key: trained.data[key] for key in kept}}
    # The checkpoint's config is resolved: what followed another key has to follow it again.
    if given.get("queries") is None and trained.data.queries == trained.data.shots:
        cfg.data.queries = cfg.data.shots
    for key in ("ways", *_IMAGES):
        if key in cfg.model:
            cfg.model[key] = cfg.data[key]
    keys.check(cfg)
    data, learner = build(cfg, splits)
    if cfg.data.ways != trained.data.ways and not learner.algorithm.any_ways:
        raise InputError(
            f"data.ways={cfg.data.ways}: {type(learner.algorithm).__name__} was trained with "
            f"{trained.data.ways} ways and can be tested with no other number"
        )
    check_parameters(path, checkpoint, learner)
    learner.load_state_dict(checkpoint["state_dict"])
    return data, learner.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a metadraw run, read without running any code in it.

    Its config names the cache of this machine, also where an older one brings that of another.

    Raises:
        InputError: not there, or not such a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"ckpt_path={path}: there is no such file") from error
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"ckpt_path={path}: not a readable checkpoint") from error
    config = checkpoint.get("metadraw_config") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise InputError(f"ckpt_path={path}: not a checkpoint of a metadraw run")
    _use_own_cache(config)
    return checkpoint


def _use_own_cache(config: dict[str, Any]) -> None:
    if "cache_dir" in config["data"]:
        config["data"]["cache_dir"] = _CACHE


def check_parameters(path: str | Path, checkpoint: dict[str, Any], learner: MetaLearner) -> None:
    """Check that a checkpoint's parameters fit a learner.

    Raises:
        InputError: they do not; it names the first that differs.
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
    """The plain values of what makes a result: without folders and trackers, the same anywhere.

    Where drawings are kept is left to the machine that uses them.
    """
    parts = ["algorithm_name", "seed", "data", "model", "algorithm", "optimizer", "scheduler"]
    parts += ["learner", "trainer"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, parts), resolve=True)
    assert isinstance(plain, dict)
    config = {str(key): value for key, value in plain.items()}
    _use_own_cache(config)
    return config
