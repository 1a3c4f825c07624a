"""Networks of the timm library, untrained or with its weights."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metadraw.errors import InputError
from metadraw.models.batch_norm import TaskBatchNorm2d, freeze_statistics


def create(
    *,
    name: str,
    image_channels: int = 1,
    image_size: int = 28,
    weights: str | Path | None = None,
    statistics: str | None = None,
    restored: bool = False,
) -> nn.Module:
    """A network of Wightman 2019 ("PyTorch Image Models"), without its classifier.

    Args:
        name: as ``timm.list_models()`` has it, such as ``resnet18``.
        image_channels: channels of an image; the first convolution of given weights is adapted, as
            timm does.
        image_size: height and width of an image in pixels.
        weights: `None`, untrained; ``pretrained``, those that timm downloads; or a file of
            parameters by name, ``.safetensors`` or of `torch.save`, whose classifier is not read.
        statistics: batch norm normalises by those of each ``batch``, or by the ``frozen`` running
            ones of the weights; `None`: frozen if there are weights.
        restored: whether all parameters will be replaced, so that weights need not be read.

    Returns:
        ``[B, image_channels, image_size, image_size]`` float -> ``[B, F]`` features.

    Raises:
        InputError: timm is not installed or has no such network, weights that cannot be read or do
            not fit, or a network that keeps more than its parameters from one task to the next.
    """
    timm = _library()
    if statistics not in (None, "batch", "frozen"):
        raise InputError(f"model.statistics={statistics}: must be batch, frozen or null")
    if statistics == "frozen" and weights is None:
        raise InputError("model.statistics=frozen: has no statistics without model.weights")
    about = _about(timm, name)
    options: dict[str, Any] = {"img_size": image_size} if about.fixed_input_size else {}
    if weights is not None and not restored:
        options["pretrained"] = True
        if weights != "pretrained":
            state = _read(timm, weights, about.classifier)
            options["pretrained_cfg_overlay"] = {"state_dict": state, "classifier": None}
    try:
        network = timm.create_model(name, in_chans=image_channels, num_classes=0, **options)
    except Exception as error:
        if "pretrained" in options:
            wrong = f"model.weights={weights}: {name} cannot start from them"
        else:
            wrong = f"model.name={name}: timm cannot make it"
        raise InputError(f"{wrong}: {_line(error)}") from error
    network.pretrained_cfg.pop("state_dict", None)  # a second copy
    for path, module in network.named_modules():
        if hasattr(module, "attention_bias_cache"):
            raise InputError(
                f"model.name={name}: {path} caches what it computes from its parameters, which "
                "would leak from one task into others"
            )
    _normalise(network, frozen=(statistics or ("frozen" if weights else "batch")) == "frozen")
    return network


def _library() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"model=timm: a package is missing ({error}): pip install 'metadraw[timm]'"
        ) from error
    return timm


def _about(timm: Any, name: str) -> Any:
    """What timm knows about a network and its weights, without making it."""
    if timm.is_model(name):
        with suppress(RuntimeError):  # of this architecture, but there are no such weights
            return timm.get_pretrained_cfg(name)
    names = [*timm.list_models(), *timm.list_models(pretrained=True)]
    close = get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has all"
    raise InputError(f"model.name={name}: timm has no such network: {hint}")


def _read(timm: Any, path: str | Path, heads: Any) -> dict[str, Tensor]:
    """The parameters of a file without those of the classifiers, ``heads``."""
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"model.weights={path}: there is no such file") from error
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"model.weights={path}: not a readable file of weights") from error
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads or []))
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def _line(error: Exception) -> str:
    """The start of an error, without PyTorch's heading of a list of differences."""
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]}"
    lines = [" ".join(line.split()) for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading"):
        del lines[0]
    return shorten(": ".join([type(error).__name__, *lines[:1]]), 200, placeholder="...")


def _normalise(network: nn.Module, frozen: bool) -> None:
    """Replace batch norm by the project's own, with the statistics of each batch or frozen ones."""
    running = []
    for path, layer in list(network.named_modules()):
        if not isinstance(layer, _BatchNorm):
            continue
        mean, variance = layer.running_mean, layer.running_var
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            norm: _BatchNorm = TaskBatchNorm2d(layer.num_features)
            norm.eps, norm.weight, norm.bias = layer.eps, layer.weight, layer.bias
            # timm's own batch norm continues with an activation.
            after = [m for m in layer.children() if not isinstance(m, nn.Identity)]
            parent, _, own = path.rpartition(".")
            setattr(
                network.get_submodule(parent), own, nn.Sequential(norm, *after) if after else norm
            )
        else:
            norm, layer.track_running_stats = layer, False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        running.append((norm, mean, variance))
    if frozen and running:
        freeze_statistics(network)
        for norm, mean, variance in running:
            norm.running_mean, norm.running_var = mean, variance
