"""PyTorch's layers, one by one, mapped over tasks in both ways: the table of docs/layers.md.

``python tests/test_layers.py`` rewrites it. Every layer is compared with plain per-task
``torch.autograd`` in float64, and its float32 result with that.
"""

import inspect
import warnings
from copy import deepcopy
from functools import cache, partial
from itertools import groupby

import pytest
import torch
from conftest import ROOT, every_fifth, tasks_of
from test_meta_gradients import maml, reference_mean, relative_error
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import metadraw
from metadraw import InputError
from metadraw.training.factory import _make_learner, build_learner

TABLE = ROOT / "docs" / "layers.md"
SIZE, WAYS = 8, 3


class Around(nn.Module):
    """A network around one layer, whose input is ``[B, 4, 8, 8]`` images or ``[B, 8, 8]`` rows."""

    def __init__(self, make_layer, before):
        super().__init__()
        self.before, self.layer = before(), make_layer()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = self.features(torch.zeros(2, 1, SIZE, SIZE)).shape[1]
        self.head = nn.Linear(features, WAYS)

    def features(self, x):
        x = self.before(x)
        times = 3 if isinstance(self.layer, nn.MultiheadAttention) else 1  # query, key and value
        x = self.layer(*(x,) * times)
        # Recurrent layers and attention also return something else.
        return (x[0] if isinstance(x, tuple) else x).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


def images():
    return nn.Conv2d(1, 4, 3, padding=1)


def rows():
    return nn.Sequential(nn.Flatten(1, 2), nn.Linear(SIZE, SIZE))


class Numbers(nn.Module):
    """Images as integers."""

    def forward(self, x):
        return (10 * x).long().flatten(1)


class Buffer(nn.Module):
    """A buffer that is used as a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 2, SIZE))

    def forward(self, x):
        return x * self.scale


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(SIZE, SIZE)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


def frozen(layer):
    """In evaluation mode, with fixed parameters and statistics, as in a pre-trained body."""
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    return layer.eval().requires_grad_(False)


def activation(kind):
    """A layer with default settings, and any value for those without a default."""
    given = inspect.signature(kind).parameters.values()
    needed = {
        p.name: 0.1 for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    # Without a dimension, these warn that they must choose one.
    return kind(**needed | {p.name: 1 for p in given if p.name == "dim" and p.default is None})


ACTIVATIONS = [
    kind
    for kind in vars(nn.modules.activation).values()
    if isinstance(kind, type)
    and issubclass(kind, nn.Module)
    and kind.__module__ == nn.modules.activation.__name__
    and kind is not nn.MultiheadAttention
]
#: Row of the table: (layer, what precedes it).
LAYERS = {
    "Linear": (partial(nn.Linear, SIZE, 5), rows),
    "Conv1d": (partial(nn.Conv1d, SIZE, 5, 3), rows),
    "Conv2d": (partial(nn.Conv2d, 4, 3, 3), images),
    "Conv2d, strided": (partial(nn.Conv2d, 4, 3, 3, stride=2), images),
    "Conv2d, dilated": (partial(nn.Conv2d, 4, 3, 3, dilation=2), images),
    "Conv2d, grouped": (partial(nn.Conv2d, 4, 4, 3, groups=2), images),
    "ConvTranspose2d": (partial(nn.ConvTranspose2d, 4, 3, 3, stride=2), images),
    "BatchNorm1d, statistics of the batch": (
        partial(nn.BatchNorm1d, SIZE, track_running_stats=False),
        rows,
    ),
    "BatchNorm2d, statistics of the batch": (
        partial(nn.BatchNorm2d, 4, track_running_stats=False),
        images,
    ),
    "BatchNorm2d, frozen": (lambda: frozen(nn.BatchNorm2d(4)), images),
    "GroupNorm": (partial(nn.GroupNorm, 2, 4), images),
    "InstanceNorm2d": (partial(nn.InstanceNorm2d, 4, affine=True), images),
    "LayerNorm": (partial(nn.LayerNorm, SIZE), rows),
    "Dropout": (nn.Dropout, rows),
    "Embedding": (partial(nn.Embedding, 11, 3), Numbers),
    "RNN": (partial(nn.RNN, SIZE, 5, batch_first=True), rows),
    "GRU": (partial(nn.GRU, SIZE, 5, batch_first=True), rows),
    "LSTM": (partial(nn.LSTM, SIZE, 5, batch_first=True), rows),
    "LSTM, two layers": (partial(nn.LSTM, SIZE, 5, 2, batch_first=True), rows),
    "MultiheadAttention": (partial(nn.MultiheadAttention, SIZE, 2, batch_first=True), rows),
    "TransformerEncoderLayer": (
        # Dropout has a separate row: here vmap would draw random numbers in another order.
        partial(nn.TransformerEncoderLayer, SIZE, 2, 16, dropout=0.0, batch_first=True),
        rows,
    ),
    "MaxPool2d": (partial(nn.MaxPool2d, 2), images),
    "AvgPool2d": (partial(nn.AvgPool2d, 2), images),
    "AdaptiveAvgPool2d": (partial(nn.AdaptiveAvgPool2d, 3), images),
    "AdaptiveMaxPool2d": (partial(nn.AdaptiveMaxPool2d, 3), images),
    "a buffer in use": (Buffer, rows),
    "shared weights": (Shared, rows),
    "frozen parameters": (lambda: frozen(nn.Linear(SIZE, 5)), rows),
    "ReLU, in place": (partial(nn.ReLU, inplace=True), images),
    **{kind.__name__: (partial(activation, kind), images) for kind in ACTIVATIONS},
}
CELLS = [(how, first_order) for how in ("vmap", "loop") for first_order in (True, False)]


def make(name):
    """The target of the config: always returns the same network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Around(*LAYERS[name])


@cache
def common():
    return metadraw.compose(
        *("algorithm=maml", "algorithm.inner_steps=2", "algorithm.inner_lr=0.1"),
        *(f"data.ways={WAYS}", "data.shots=2", f"data.image_size={SIZE}"),
    )


def config(name, how, first_order):
    cfg = deepcopy(common())
    cfg.algorithm.first_order, cfg.learner.map_tasks = first_order, how
    cfg.model = {"_target_": f"{__name__}.make", "name": name}
    return cfg


def tasks(number):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, number, 2 * WAYS, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return tasks_of(*x, WAYS)


def draws(network):
    """Whether its forward pass draws random numbers."""
    before = torch.get_rng_state()
    network(torch.zeros(2, 1, SIZE, SIZE))
    return not torch.equal(torch.get_rng_state(), before)


def attempt(learner, batch):
    """The mean meta-gradient in both precisions, with the same random numbers."""
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(2)
        gradients, _ = learner.to(dtype).meta_gradients(batch.to(dtype))
        assert learner.evaluate(batch.to(dtype)).after.isfinite().all()
        found.append({key: value.double() for key, value in gradients.items()})
    return found


def works(name, how, first_order):
    """Whether the meta-gradient is right; otherwise there must be a clear one-line error."""
    cfg = config(name, how, first_order)
    learner = _make_learner(cfg, tasks(2).to(torch.float32))
    # The random numbers of a task have the order of the reference.
    batch = tasks(1 if draws(learner.algorithm.network) else 2)
    try:
        in_double, in_single = attempt(learner, batch)
    except RuntimeError:
        with pytest.raises(InputError, match=r"^model: layer .* fails in a trial step: .*$"):
            refuse(cfg)
        return False
    torch.manual_seed(2)
    reference = partial(maml, first_order=first_order)
    with sdpa_kernel(SDPBackend.MATH):
        expected, _ = reference_mean(reference, learner.double().algorithm, batch, 2)
    assert relative_error(in_double, expected) < 1e-9
    assert relative_error(in_single, expected) < 1e-3
    return True


def refuse(cfg):
    """Build it in both precisions: at least one must fail."""
    for dtype in (torch.float32, torch.float64):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            build_learner(cfg)
        finally:
            torch.set_default_dtype(usual)


def find(name):
    """The cells of a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a layer is mapped slowly
        return tuple(works(name, *cell) for cell in CELLS)


def table():
    """The document."""
    head = TEXT.format(torch=torch.__version__.partition("+")[0])
    found = {name: find(name) for name in LAYERS}
    activations = sorted((found.pop(kind.__name__), kind.__name__) for kind in ACTIVATIONS)
    for cells, group in groupby(reversed(activations), key=lambda row: row[0]):
        found[", ".join(sorted(name for _, name in group))] = cells
    lines = [
        f"| {name} | {' | '.join('yes' if cell else 'no' for cell in cells)} |"
        for name, cells in found.items()
    ]
    return head + "\n".join(lines) + "\n"


TEXT = """# Layers

Which of PyTorch's layers work with `learner.map_tasks=vmap` and `learner.map_tasks=loop`, at first
order (`algorithm=fomaml`) and at second order (`algorithm=maml`). *yes*: the meta-gradient equals
that of plain per-task `torch.autograd`, to 1e-9 in float64 and to 1e-3 in float32. *no*: it cannot
be computed in at least one of these precisions, and the run is refused before it starts, with one
line that names the layer and what works instead. All activations of `torch.nn` come last.

Measured with torch {torch} on a CPU by `python tests/test_layers.py`, which writes this file.

| layer | `vmap`, first order | `vmap`, second order | `loop`, first order | `loop`, second order |
| --- | --- | --- | --- | --- |
"""


@pytest.mark.parametrize("name", every_fifth(map(pytest.param, LAYERS)))
def test_layer(name):
    """The right gradient or one line; with the table's version of PyTorch, as in the table."""
    found = find(name)
    written = TABLE.read_text()
    if f"torch {torch.__version__.partition('+')[0]} " in written:
        lines = [line.strip("| \n").split(" | ") for line in written.splitlines()]
        rows = {
            key: cells for names, *cells in lines for key in (names, *names.split(", ")) if cells
        }
        assert rows[name] == ["yes" if cell else "no" for cell in found]


if __name__ == "__main__":
    torch.set_num_threads(1)
    TABLE.write_text(table())
